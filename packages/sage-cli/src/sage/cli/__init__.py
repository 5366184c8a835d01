"""Layer 6: the sage command."""
