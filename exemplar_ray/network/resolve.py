"""From a model's and layers' names to a `NetworkSpec`: build the network and look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.describe import describe_layers
from exemplar_ray.network.models import find_architecture, load_network
from exemplar_ray.network.spec import NetworkSpec


def resolve_network(
    model: str, weights: str, layers: Sequence[str], channels: str, preprocess: Mapping[str, Any] | None
) -> NetworkSpec:
    """Build a network once, and settle everything that decides its numbers.

    Args:
        model: see `models.load_network`.
        weights: see `models.load_network`.
        layers: names of the wanted layers.
        channels: the wanted channels, as `layers.parse_channels` reads them.
        preprocess: keys over the model's own preprocessing.

    Raises:
        UsageError: the model, its weights, a layer, a channel or the preprocessing cannot be had.
    """
    settled = Preprocess.of(find_architecture(model, weights).preprocess, preprocess)
    network = load_network(model, weights, image_size=settled.crop)
    return NetworkSpec(
        model=network.model,
        model_title=network.architecture.title,
        model_source_sha256=network.architecture.source_sha256,
        weights=weights,
        weights_title=network.weights_title,
        weights_sha256=network.weights_sha256,
        trained=network.trained,
        layers=describe_layers(network.module, layers, channels, settled),
        preprocess=settled,
    )
