"""Conformance suites and test doubles of the middleware ports; a product, used by the packages above too."""
