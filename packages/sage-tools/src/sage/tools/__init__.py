"""Layer 6: sage-dev, the repository's checks and chores."""
