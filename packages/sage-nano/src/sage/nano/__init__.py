"""Layer 4: SAGE Nano, the weights of a small model in the folder `model`; no code of its own."""
