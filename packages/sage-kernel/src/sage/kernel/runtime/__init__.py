"""Running plans: on one event loop of this process."""
