"""From the user's words to what they mean: build the model and look at it."""

from __future__ import annotations

from exemplar_ray.activations import check_statistics, describe_layers
from exemplar_ray.models import load_network
from exemplar_ray.spec import Preprocess, ResolvedSpec, RunSpec, margin_of


def resolve(spec: RunSpec) -> ResolvedSpec:
    """Build the network once and settle everything that decides the numbers.

    Raises:
        UsageError: the model, its weights, a layer, a channel, a statistic or the
            preprocessing cannot be had.
    """
    check_statistics(spec.statistic)
    network = load_network(spec.model, spec.weights)
    preprocess = Preprocess.of(network.architecture.preprocess, spec.preprocess)
    return ResolvedSpec(
        model=spec.model,
        model_title=network.architecture.title,
        model_source_sha256=network.architecture.source_sha256,
        weights=spec.weights,
        weights_title=network.weights_title,
        weights_sha256=network.weights_sha256,
        trained=network.trained,
        layers=describe_layers(network.module, spec.layer, spec.channels, preprocess),
        statistics=spec.statistic,
        top_k=spec.top_k,
        samples=spec.sample,
        distinct=spec.distinct or spec.max_per_class is not None,
        max_per_class=spec.max_per_class,
        class_top_k=spec.class_top_k,
        seed=spec.seed,
        preprocess=preprocess,
        precision=spec.precision,
        decode=spec.decode,
        margin=margin_of(spec),
    )
