"""Layer 6: ready-made applications."""
