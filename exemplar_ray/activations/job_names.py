"""Where activations are, for those who read them. Imports neither torch nor Ray."""

FOLDER = "activations"
"""The store of a run: a run folder of its own, below the run."""
_LAYERS = "layers"
INDEX = "index.parquet"
"""Which rows are in which file."""
MOMENTS = "moments.parquet"
"""Count, mean and covariance of each layer's pooled activations."""
WHOLE = "none"
"""The pool that is none: whole maps."""


def folder_of(layer_folder: str, pool: str) -> str:
    """Return the folder of a layer's files, below the store.

    >>> folder_of("mixed4a", "mean")
    'layers/mixed4a/mean'
    """
    return f"{_LAYERS}/{layer_folder}/{pool}"
