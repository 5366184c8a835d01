"""The sub-commands, one module per subject. They import what they need when they run."""
