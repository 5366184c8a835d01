"""Layer 6: the web studio."""
