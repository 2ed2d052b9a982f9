"""What tasks are handed. Imports no torch: the driver needs none."""

from __future__ import annotations

from dataclasses import dataclass

from exemplar_ray.visualize.spec import PicturesSpec


@dataclass(frozen=True)
class MakeSettings:
    """How groups of pictures are made."""

    spec: PicturesSpec
    use_gpu: bool
