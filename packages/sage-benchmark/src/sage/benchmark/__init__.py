"""Layer 6: benchmarks of a running stack."""
