"""The same network with random weights, over the same images: what a map owes to training, and what to the network's
build alone."""

from __future__ import annotations

from rich.console import Console

from exemplar_ray.activations.job import Subject, activations
from exemplar_ray.activations.spec import ActivationOptions
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.driver import JobOutcome
from exemplar_ray.network.layers import NCHW, VECTOR, format_channels
from exemplar_ray.network.layouts import AUTO
from exemplar_ray.network.spec import NetworkRequest
from exemplar_ray.results.store import open_store


def store_untrained(
    uri: str, layer: str | None, pool: str | None, seed: int, cluster: Cluster, console: Console
) -> tuple[JobOutcome, str]:
    """Store what a network answers with random weights to the images of a store.

    Args:
        uri: of the store.
        layer, pool: whose points are mapped; None where the store has one.
        seed: of the weights.

    Returns:
        How it ended, and where the store is: below the first.

    Raises:
        UsageError: the network cannot be had, or has random weights already.
    """
    store = open_store(uri)
    network = store.network
    if not network.trained:
        raise UsageError(f"'{uri}' is of an untrained network already; leave --untrained out")
    layer, pool = store.chosen(layer, pool)
    [of] = [one for one in network.layers if one.name == layer]
    channels = "all" if len(of.channels) == of.channel_count else format_channels(of.channels)
    layout = AUTO if of.layout in (NCHW, VECTOR) else of.written_layout
    request = NetworkRequest(network.model, f"random:{seed}", (layer,), channels, network.preprocess.to_json(), layout)
    out = f"{uri.rstrip('/')}/untrained-{seed}/{store.folder_of(layer)}-{pool}"
    options = ActivationOptions(pool=(pool,), dtype=store.dtype.name)
    skipped = int(store.summary.get("skipped", 0))
    return activations(Subject(request, store.images), out, options, cluster, console, store.decode, skipped), out
