"""Pipeline operators: split, embed, index, retrieve, rerank, prompt, generate, refine; also found by name.

Each is a factory with plain parameters (entry point group `sage.operators`), so that a pipeline in YAML and
one in Python use the same code. The modules are loaded when first used.
"""
