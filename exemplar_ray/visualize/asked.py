"""What tasks are handed. Imports no torch: the driver needs none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exemplar_ray.visualize.spec import PicturesSpec


@dataclass(frozen=True)
class MakeSettings:
    """How groups of pictures are made."""

    spec: PicturesSpec
    use_gpu: bool
    run: str | None = None
    """The folder of the finished run that the pictures are of, wherever a task runs."""
    spectrum: np.ndarray | None = None
    """Of the images that a run searched, see `spectrum.spectrum_of`; only where pictures keep to it."""
