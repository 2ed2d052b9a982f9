"""From the user's words to what they mean."""

from __future__ import annotations

from exemplar_ray.exemplars.spec import ExemplarsSpec, RunSpec, margin_of
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.statistics import check_statistics


def resolve(spec: RunSpec) -> ExemplarsSpec:
    """Build the network once and settle everything that decides the numbers.

    Raises:
        UsageError: the model, its weights, a layer, a channel, a statistic or the
            preprocessing cannot be had.
    """
    check_statistics(spec.statistic)
    return ExemplarsSpec(
        network=resolve_network(spec.model, spec.weights, spec.layer, spec.channels, spec.preprocess),
        statistics=spec.statistic,
        top_k=spec.top_k,
        samples=spec.sample,
        distinct=spec.distinct or spec.max_per_class is not None,
        max_per_class=spec.max_per_class,
        class_top_k=spec.class_top_k,
        seed=spec.seed,
        precision=spec.precision,
        decode=spec.decode,
        margin=margin_of(spec),
    )
