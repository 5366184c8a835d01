"""Key-value and blob ports, and the embedded database below the default ones."""
