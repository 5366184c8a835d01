"""Open-loop benchmarks of a SAGE stack: load, definitions, statistics with intervals, reports."""
