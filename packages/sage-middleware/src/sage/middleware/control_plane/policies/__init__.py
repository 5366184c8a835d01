"""The policies that are shipped, one per module, loaded by name."""
