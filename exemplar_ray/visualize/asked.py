"""What tasks are handed. Imports no torch: the driver needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from exemplar_ray.network.layouts import AUTO, GivenLayout
from exemplar_ray.network.spec import whole_paths
from exemplar_ray.visualize.spec import PicturesSpec


@dataclass(frozen=True)
class AskedNetwork:
    """Which network and layers, in the user's words; see `network.resolve.NetworkRequest`."""

    model: str
    weights: str
    layers: tuple[str, ...]
    channels: str
    preprocess: Mapping[str, Any] | None = None
    layout: GivenLayout = AUTO

    def with_whole_paths(self) -> AskedNetwork:
        """Return the same for processes with another working folder."""
        model, weights = whole_paths(self.model, self.weights)
        return replace(self, model=model, weights=weights)


@dataclass(frozen=True)
class MakeSettings:
    """How groups of pictures are made."""

    spec: PicturesSpec
    use_gpu: bool
