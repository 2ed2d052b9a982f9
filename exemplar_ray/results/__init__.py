"""Reading a run: its tables, channels and exemplars, how they show themselves, its status. Needs no torch, no Ray."""
