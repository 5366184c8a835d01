"""The control plane in virtual time: the same core as live, over models of engines. SIMULATED, all of it."""
