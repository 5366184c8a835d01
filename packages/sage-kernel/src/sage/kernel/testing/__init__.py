"""For tests of this layer and of those above: conformance suites of its ports, and synthetic clusters."""
