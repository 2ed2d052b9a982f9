"""A picture beside the natural images of its channel, as columns of `visualizations.parquet` tell it: whether it takes
their path, and how far its looks are from theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exemplar_ray.visualize.describe import Description, apart, together
from exemplar_ray.visualize.natural import NaturalImages


def beside_natural(
    natural: NaturalImages, channel: int, picture: np.ndarray | None, looks: Description
) -> dict[str, Any]:
    """Return the columns of one picture.

    Args:
        natural: the natural images of its layer.
        picture: uint8 [size, size, colours]; None of one whose path is not that of what excites the channel.
        looks: what it looks like.
    """
    columns: dict[str, Any] = {"of_exemplars": natural.digest(channel)}
    paths = None if picture is None else natural.paths(channel, [picture])
    if paths is not None:
        [path] = paths
        columns |= {
            "path_similarity": path.similarity,
            "path_layers": [layer.name for layer in natural.passages],
            "path_similarities": path.similarities,
        }
    exemplars = natural.looks(channel)
    if exemplars:
        theirs = together(exemplars)
        columns |= {f"exemplars_{name}": value for name, value in theirs._asdict().items()}
        columns |= {"exemplars_patterns": theirs.patterns}
        columns |= {f"apart_{name}": value for name, value in apart(looks, theirs)._asdict().items()}
    return columns
