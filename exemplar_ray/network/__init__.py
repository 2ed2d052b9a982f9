"""Which network, its layers, how they are hooked, pooled and compiled, what their units see. Knows nothing of jobs."""
