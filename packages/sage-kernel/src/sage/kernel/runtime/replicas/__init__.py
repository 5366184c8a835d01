"""Operators on workers beside the event loop: threads or processes that take batches and give results."""
