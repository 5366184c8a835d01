"""Layer 1: configuration, ports, paths, errors, clock, ids and wire types."""
