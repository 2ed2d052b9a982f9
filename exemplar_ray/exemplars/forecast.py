"""What a run would take, before it is started: a few images are scanned as the run would, the rest is arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.data.shard import ReadingCost, Shard
from exemplar_ray.data.shards import discover, inspect
from exemplar_ray.data.subset import choose
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.cluster import Cluster
from exemplar_ray.executor.resources import Resources
from exemplar_ray.exemplars.job import resolve_spec
from exemplar_ray.exemplars.plan import images_wanted
from exemplar_ray.exemplars.scan_job import TASKS, pieces_of, scan_settings
from exemplar_ray.exemplars.settings import Probed, ScanSettings
from exemplar_ray.exemplars.spec import ExemplarsSpec, RunSpec, columns_chosen
from exemplar_ray.storage.hub_uri import is_on_hub

PROBED_IMAGES = 200

# Tasks that share memory and caches slow each other down, so that many are probed at the same time.
_MOST_PROBES = 16

# What a free account may ask the Hub for files: https://huggingface.co/docs/hub/rate-limits.
_OF_HUB, _SECONDS_OF_HUB = 5000, 300


@dataclass(frozen=True)
class Forecast:
    """What was measured, and what follows from it for any number of tasks at once."""

    spec: ExemplarsSpec
    shards: int
    pieces: int
    """Of all shards, see `data.pieces`."""
    unreadable: int
    images: int
    counted: bool
    """Whether there are so many, or about so many."""
    at_once: int
    """Tasks that this cluster runs at the same time."""
    device: str
    on_gpu: bool
    batch_size: int
    per_second: list[float]
    """Images/s of each task that was tried; all were at the same time."""
    tried: int
    """Images a task."""
    loading_seconds: float
    decoding_seconds: float
    """Of one image, by all CPUs of a task."""
    gathering_seconds: float
    """To recompute one image on a CPU."""
    cpus: int
    """Of all tasks together."""
    bytes: int
    """Of all shards."""
    reading: ReadingCost
    """Of a shard, as those are that were tried."""
    on_hub: bool

    def rate(self, tasks: int) -> float:
        """Return images/s of so many tasks at once, if nothing that they share slows them down."""
        return statistics.mean(self.per_second) * tasks

    def seconds(self, tasks: int) -> float:
        """Return how long the scan takes so many tasks. The last shards are shared, piece by piece: in the last round
        of pieces not all have one."""
        rounds = -(-self.pieces // tasks)
        return self.loading_seconds + rounds * (self.images / self.pieces) / self.rate(1)

    @property
    def limit(self) -> str:
        """Return what an image waits for longest. On a GPU decoding goes on beside the network, on a CPU in turns."""
        share = self.decoding_seconds * self.rate(1)
        return "decoding" if share > (0.8 if self.on_gpu else 0.5) else "the network"

    @property
    def gathered(self) -> int:
        """Return how many images are gathered at most: as many as there are candidates, if no two share one."""
        spec = self.spec
        candidates = (spec.top_k + spec.margin) * len(spec.shown_samples) + spec.class_top_k
        channels = sum(len(layer.channels) for layer in spec.layers) * len(spec.statistics)
        return min(self.images, channels * candidates)

    @property
    def gathered_bytes(self) -> int:
        """Return how much is read for that at most."""
        return min(self.bytes, self.gathered * self.reading.bytes_of_a_row)

    @property
    def requests(self) -> int:
        """Return how many requests the storage gets: the driver's, which looks at what there is, those for all rows,
        and those for images that are gathered."""
        reading = self.reading
        of_scan = self.shards * (reading.looking + reading.requests) + self._opened_again
        of_row_groups = self.shards * reading.requests
        opening, each = reading.opening, reading.requests_of_a_row - reading.opening
        of_rows = min(self.shards, self.gathered) * opening + self.gathered * each
        # Where a row is not found by itself, nothing is read twice.
        return of_scan + (min(of_rows, of_row_groups) if opening and each < 2 else of_rows)

    @property
    def requests_of_hub(self) -> int:
        """Return how many of them the Hub counts: those that ask where a file's content is, once each time that it is
        opened."""
        files = self.shards * self.reading.files
        return self.shards * self.reading.looking + files + self._opened_again + min(files, self.gathered)

    @property
    def _opened_again(self) -> int:
        """Return how often the last shards are opened for a piece other than their first."""
        return min(self.at_once, self.shards) * (self.pieces - self.shards) // self.shards


def measure(spec: RunSpec, data: Sequence[str], resources: Resources) -> Forecast:
    """Scan a few images as a run would.

    Raises:
        UsageError: the run cannot be done, or its data cannot be read.
    """
    chosen = columns_chosen(spec)
    listed, names = inspect(discover(data, split=chosen.split), chosen, numbers_are_known=True)
    shards, _, _ = choose(listed, ClassLabels(names), images_wanted(spec))
    readable = [shard for shard in shards if shard.images]
    if not readable:
        raise UsageError("no shard can be read, or all are empty")
    with Cluster(resources) as cluster:
        resolved = resolve_spec(cluster, spec, shards).spec
        at_once = max(min(cluster.slots, len(shards)), 1)
        shards_tried = readable[: min(at_once, _MOST_PROBES)]
        settings = scan_settings(resolved, shards, cluster, PROBED_IMAGES)
        probed = _probe(cluster, replace(settings, most_rows=PROBED_IMAGES), shards_tried)
        return Forecast(
            spec=resolved,
            shards=len(shards),
            pieces=sum(pieces_of(shard, settings) for shard in shards),
            unreadable=sum(not shard.expected_rows for shard in shards),
            images=sum(shard.images for shard in readable),
            counted=all(shard.rows is not None for shard in readable),
            at_once=at_once,
            device=str(cluster.demand),
            on_gpu=cluster.demand.gpus > 0,
            batch_size=cluster.batch_size,
            per_second=[probe.images / probe.seconds for probe in probed],
            tried=probed[0].images,
            loading_seconds=max(probe.loading_seconds for probe in probed),
            decoding_seconds=statistics.mean(probe.decoding_seconds for probe in probed) / cluster.demand.cpus,
            gathering_seconds=statistics.mean(probe.gathering_seconds for probe in probed),
            cpus=at_once * cluster.demand.cpus,
            bytes=sum(shard.size for shard in readable),
            reading=probed[0].reading,
            on_hub=any(is_on_hub(shard.uri) for shard in shards),
        )


def _probe(cluster: Cluster, settings: ScanSettings, tried: Sequence[Shard]) -> list[Probed]:
    """Scan the first rows of some shards, all at the same time if that can be.

    Raises:
        UsageError: a probe fails.
    """
    outcomes = list(
        cluster.map(
            f"{TASKS}:probe", enumerate(tried), settings, demand=cluster.demand, named=lambda place: tried[place].name
        )
    )
    for outcome in outcomes:
        if outcome.error:
            raise UsageError(f"the probe of {tried[outcome.key].name} failed: {outcome.error}")
    return [outcome.value for outcome in outcomes]


def forecast(
    spec: RunSpec,
    data: Sequence[str],
    resources: Resources,
    price: float | None = None,
    tasks: Sequence[int] = (),
) -> list[str]:
    """Say in lines of text what a run would do, how long that takes and what it costs.

    Args:
        price: of one hour of all machines together, in any currency.
        tasks: how many tasks at once to tell of, beside as many as there would be.

    Raises:
        UsageError: the run cannot be done, or its data cannot be read.
    """
    measured = measure(spec, data, resources)
    each, resolved, tasks_here = measured.per_second, measured.spec, measured.at_once
    screening = f", {resolved.precision}, decoding {resolved.decode}" if resolved.screened else ""
    images = f"{'' if measured.counted else 'about '}{measured.images:,}"
    lines = [
        f"{resolved.network.title}; {sum(len(layer.channels) for layer in resolved.layers)} channels{screening}",
        f"{measured.shards} shards, {images} images; {tasks_here} tasks at once, {measured.device} and "
        f"batches of {measured.batch_size} each",
        f"a task: {measured.rate(1):.1f} images/s ({min(each):.1f}-{max(each):.1f} in {len(each)} tasks at the "
        f"same time, {measured.tried} images each), after {measured.loading_seconds:.0f} s to get ready",
        f"an image takes it {1000 / measured.rate(1):.1f} ms; decoding alone, "
        f"{1000 * measured.decoding_seconds:.1f} ms: {measured.limit} limits it",
        f"all together: {measured.rate(measured.at_once):.1f} images/s, so the scan takes about "
        f"{_duration(measured.seconds(measured.at_once))}{_cost(measured, measured.at_once, price)}",
    ]
    for count in tasks:
        lines.append(
            f"{count} tasks: {measured.rate(count):.1f} images/s, about {_duration(measured.seconds(count))}"
            f"{_cost(measured, count, price)}"
        )
    if tasks:
        lines.append("if the storage keeps up, which has to deliver that many images, and no task waits for another's")
    lines += _reading_lines(measured)
    if measured.unreadable:
        lines.append(f"{measured.unreadable} shards cannot be read, or are empty: they are not counted")
    return lines


def _reading_lines(measured: Forecast) -> list[str]:
    """Say what is gathered after the scan, and what is asked of the storage."""
    seconds = measured.gathered * measured.gathering_seconds / measured.cpus
    lines = [
        f"then {measured.gathered:,} images are gathered at most, {measured.gathered_bytes / 1e6:,.0f} MB to read and "
        f"about {_duration(seconds)} for {measured.cpus} CPUs, which need no GPU",
        f"the storage gets about {measured.requests:,} requests",
    ]
    if measured.on_hub:
        limited = measured.requests_of_hub / _OF_HUB * _SECONDS_OF_HUB
        lines.append(
            f"the Hugging Face Hub counts about {measured.requests_of_hub:,} of them; a free account has {_OF_HUB:,} "
            f"in {_duration(_SECONDS_OF_HUB)}, so they take at least {_duration(limited)}"
        )
    return lines


def _cost(measured: Forecast, tasks: int, price: float | None) -> str:
    """Write what so many tasks cost, at a price for as many as there are."""
    if price is None:
        return ""
    cost = price * tasks / measured.at_once * measured.seconds(tasks) / 3600
    return f"; at {price:g} an hour for {measured.at_once} tasks: {cost:.2f}"


def _duration(seconds: float) -> str:
    """Write seconds as people say it.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 minutes', '2.5 hours')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
