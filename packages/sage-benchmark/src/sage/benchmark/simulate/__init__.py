"""Simulated comparisons of policies and fleets, and how far the simulator is off. All of it is SIMULATED."""
