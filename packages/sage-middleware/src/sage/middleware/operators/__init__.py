"""Pipeline operators: split, embed, index, retrieve, rerank, focus, prompt, generate, refine, by name too.

Each is a factory with plain parameters (entry point group `sage.operators`), so that a pipeline in YAML and
one in Python use the same code. The modules are loaded when first used.
"""
