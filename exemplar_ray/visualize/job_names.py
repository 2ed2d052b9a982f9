"""Where pictures are, for those who read them. Imports neither torch nor Ray."""

FOLDER = "visualizations"
"""A run folder of its own, below the run that the pictures are of."""
RESULT = "visualizations.parquet"
