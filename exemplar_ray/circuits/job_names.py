"""Where circuits are, for those who read them. Imports neither torch nor Ray."""

FOLDER = "circuits"
"""A run folder of its own, below the run that the circuits are of."""
RESULT = "circuits.parquet"
CHANNELS = "circuit_channels.parquet"
EXEMPLARS = "circuit_exemplars.parquet"
USES_RESULT = "circuit_uses.parquet"
