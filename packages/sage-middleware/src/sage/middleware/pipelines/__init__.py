"""Pipelines as models: flows that answer chats through the control plane."""
