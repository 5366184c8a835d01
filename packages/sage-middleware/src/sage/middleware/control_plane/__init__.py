"""The control plane: a pure core, the policies, and the driver that runs it live."""
