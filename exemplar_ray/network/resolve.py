"""From a model's and layers' names to a `NetworkSpec`: build the network, look at it, and question it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from exemplar_ray.data.first_images import TwoImages, noise
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.network.describe import question_network
from exemplar_ray.network.inputs import use_of_labels
from exemplar_ray.network.kept_answers import keep_answers, kept_answers
from exemplar_ray.network.layers import parse_channels
from exemplar_ray.network.layouts import AUTO, layout_of
from exemplar_ray.network.models import Network, find_architecture, load_network
from exemplar_ray.network.questions import NOISE, KnownNetwork
from exemplar_ray.network.spec import NetworkRequest, NetworkSpec

Images = Callable[[Preprocess, bool], TwoImages]
"""Gives two different images, with their labels if these are wanted."""


def _no_images(preprocess: Preprocess, labelled: bool) -> TwoImages:
    return noise(preprocess, NOISE, labelled)


def resolve_network(
    request: NetworkRequest, images: Images = _no_images, known: KnownNetwork | None = None
) -> KnownNetwork:
    """Build a network once, settle everything that decides its numbers, and put the questions to it.

    Args:
        images: to question it with; see `describe.question_network`.
        known: what an earlier invocation found out. If it is of this network, or this machine has kept its answers,
            the network is not questioned again.

    Raises:
        UsageError: the model, its weights, a layer, a channel or the preprocessing cannot be had, or the network is
            no function of the image.
    """
    network, spec = build_network(request)
    has_images = images is not _no_images
    if known is None or not _is_known(spec, request, known):
        known = kept_answers(spec, request, has_images)
    if known is not None:
        layers = tuple(
            replace(layer, channels=parse_channels(request.channels, layer.channel_count))
            for layer in known.spec.layers
        )
        return KnownNetwork(replace(spec, layers=layers, channels_last=known.spec.channels_last), known.answers)
    asked_with = images(spec.preprocess, spec.takes_labels)
    questioned = question_network(
        network.module, request.layers, request.channels, spec.preprocess, asked_with, request.layout
    )
    answers = questioned.answers
    known = KnownNetwork(replace(spec, layers=questioned.layers, channels_last=answers.channels_last), answers)
    keep_answers(known, request, has_images)
    return known


def build_network(request: NetworkRequest) -> tuple[Network, NetworkSpec]:
    """Build a network; return it, and what it is, as yet without layers.

    Raises:
        UsageError: the model, its weights or the preprocessing cannot be had.
    """
    found = find_architecture(request.model, request.weights)
    settled = Preprocess.of(found.preprocess, request.preprocess, found.why_no_preprocess)
    network = load_network(request.model, request.weights, preprocess=settled)
    spec = NetworkSpec(
        model=network.model,
        model_title=network.architecture.title,
        model_source_sha256=network.architecture.source_sha256,
        weights=request.weights,
        weights_title=network.weights_title,
        weights_sha256=network.weights_sha256,
        trained=network.trained,
        layers=(),
        preprocess=settled,
        labels=use_of_labels(network.module),
    )
    return network, spec


def _is_known(spec: NetworkSpec, request: NetworkRequest, known: KnownNetwork) -> bool:
    """Whether another invocation has questioned the same network about the same layers."""
    layers = known.spec.layers
    same = (spec.model_source_sha256 or spec.model, spec.weights_sha256, spec.preprocess, request.layers) == (
        known.spec.model_source_sha256 or known.spec.model,
        known.spec.weights_sha256,
        known.spec.preprocess,
        tuple(layer.name for layer in layers),
    )
    given = [layout_of(request.layout, layer.name) for layer in layers]
    return same and all(word in (AUTO, layer.layout) for word, layer in zip(given, layers, strict=True))
