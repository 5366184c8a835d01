"""Layer 2: service supervision, state ownership, node inventory."""
