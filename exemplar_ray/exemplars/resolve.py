"""From the user's words to what they mean."""

from __future__ import annotations

from functools import partial

from exemplar_ray.data.first_images import two_images
from exemplar_ray.exemplars.spec import ExemplarsSpec, margin_of
from exemplar_ray.exemplars.to_resolve import Resolved, ToResolve
from exemplar_ray.network.resolve import NetworkRequest, resolve_network
from exemplar_ray.network.statistics import check_statistics, refuse_missing_class_token


def resolve(given: ToResolve) -> Resolved:
    """Build the network once, question it, and settle everything that decides the numbers.

    Raises:
        UsageError: the model, its weights, a layer, a channel, a statistic or the preprocessing cannot be had, or the
            network is no function of the image.
    """
    spec = given.spec
    check_statistics(spec.statistic)
    request = NetworkRequest(spec.model, spec.weights, spec.layer, spec.channels, spec.preprocess, spec.layout)
    network = resolve_network(request, partial(two_images, given.shards), given.known)
    refuse_missing_class_token(spec.statistic, network.spec.layers)
    resolved = ExemplarsSpec(
        network=network.spec,
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
    return Resolved(resolved, network.answers)
