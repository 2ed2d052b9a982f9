"""What a run would take, before it is started: a few images are scanned as the run would, the rest is arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from exemplar_ray.cluster import Cluster, Resources
from exemplar_ray.errors import UsageError
from exemplar_ray.samples import sample_rate
from exemplar_ray.shards import discover, inspect
from exemplar_ray.spec import RunSpec

PROBED_IMAGES = 200

# Tasks that share memory and caches slow each other down, so that many are probed at the same time.
_MOST_PROBES = 16


def forecast(spec: RunSpec, data: Sequence[str], resources: Resources, price: float | None = None) -> list[str]:
    """Say in lines of text what a run would do, how long that takes and what it costs.

    Args:
        price: of one hour of all machines together, in any currency.

    Raises:
        UsageError: the run cannot be done, or its data cannot be read.
    """
    shards, _ = inspect(discover(data))
    known = [shard for shard in shards if shard.rows]
    if not known:
        raise UsageError("no shard can be read as parquet, or all are empty")
    images = sum(shard.rows for shard in known)
    with Cluster(resources) as cluster:
        resolved = cluster.resolve(spec)
        at_once = max(min(cluster.slots, len(shards)), 1)
        probed = known[: min(at_once, _MOST_PROBES)]
        rate = sample_rate(images, resolved.top_k)
        outcomes = list(cluster.probe(resolved, probed, rate, images, PROBED_IMAGES))
        for outcome in outcomes:
            if outcome.error:
                raise UsageError(f"the probe of {probed[outcome.key].name} failed: {outcome.error}")
        each = [outcome.value["images"] / outcome.value["seconds"] for outcome in outcomes]
        loading = max(outcome.value["loading_seconds"] for outcome in outcomes)
        batch = cluster.batch_size
        device = "a GPU" if cluster.gpus_per_task else f"{cluster.cpus_per_task} CPU"
    together = statistics.mean(each) * at_once
    # A task is a shard: in the last round not all have one.
    rounds = -(-len(shards) // at_once)
    seconds = loading + rounds * (images / len(shards)) / statistics.mean(each)
    screening = f", {resolved.precision}, decoding {resolved.decode}" if resolved.screened else ""
    untrained = "" if resolved.trained else " — UNTRAINED"
    lines = [
        f"{resolved.model_title}, {resolved.weights_title}{untrained}; "
        f"{sum(len(layer.channels) for layer in resolved.layers)} channels{screening}",
        f"{len(shards)} shards, {images:,} images; {at_once} tasks at once, {device} and batches of {batch} each",
        f"a task: {statistics.mean(each):.1f} images/s ({min(each):.1f}-{max(each):.1f} in {len(each)} tasks at the "
        f"same time, {outcomes[0].value['images']} images each), after {loading:.0f} s to get ready",
        f"all together: {together:.1f} images/s, so the scan takes about {_duration(seconds)}",
        "not in it: gathering the exemplars' images, whose number does not depend on the data set's",
    ]
    if len(known) < len(shards):
        lines.append(f"{len(shards) - len(known)} shards cannot be read, or are empty: they are not counted")
    if price is not None:
        lines.append(f"at {price:g} an hour for all machines: {price * seconds / 3600:.2f}")
    return lines


def _duration(seconds: float) -> str:
    """Write seconds as people say it.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 minutes', '2.5 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
