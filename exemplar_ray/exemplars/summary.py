"""The summary of a run: what was searched, what came of it, what it cost. What `summary.json` holds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.plan import EXEMPLARS, Plan, ScannedShard
from exemplar_ray.exemplars.rerank.selected import Certainty, Selected
from exemplar_ray.exemplars.spec import Readout
from exemplar_ray.network.layers import format_channels
from exemplar_ray.runs import versions
from exemplar_ray.runs.run_folder import SUMMARY

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True)
class UnsettledRanking:
    """A ranking that screening left in doubt."""

    layer: str
    statistic: str
    channel: int
    sample: str


@dataclass(frozen=True)
class ShortChannel:
    """A channel with fewer distinct exemplars than asked for."""

    layer: str
    statistic: str
    channel: int
    exemplars: int


@dataclass(frozen=True)
class NotFinite:
    """How many of a shard's images gave a channel NaN or infinity, which are not ranked."""

    shard: str
    layer: str
    statistic: str
    channel: int
    images: int


@dataclass(frozen=True)
class SkippedImage:
    """An image that cannot be decoded."""

    shard: str
    row: int
    reason: str
    path: str | None = None
    """Where the scan knows it."""


@dataclass(frozen=True)
class ShardSummary:
    """What the scan of one shard came to: rows = scored + skipped."""

    name: str
    rows: int
    scored: int
    skipped: int
    seconds: float
    device: str
    host: str | None = None
    """None in a published result."""


@dataclass(frozen=True)
class ComputedBy:
    """How many shards were scanned by workers of some versions."""

    versions: dict[str, str] | None
    """{package: version}; None where their records do not say."""
    shards: int


@dataclass(frozen=True)
class Summary:
    """What `summary.json` says of a run."""

    fingerprint: str
    class_labels_sha256: str
    complete: bool
    partial: str | None
    """What the result leaves out: `7 of 8 shards`."""
    model: str
    weights: str
    weights_sha256: str
    trained: bool
    rows: int
    scored: int
    skipped: int
    skipped_images: list[SkippedImage]
    not_finite: list[NotFinite]
    channels: dict[str, int]
    """{layer: how many of its channels}"""
    exemplars: int
    images_gathered: int
    precision: str
    decode: str
    largest_error: float
    """Largest difference between a scanned and a recomputed activation."""
    certainty: list[dict[str, Any]]
    """For each layer and statistic, by channel; nothing where the scan itself is exact."""
    unsettled: list[UnsettledRanking]
    short_of_distinct: list[ShortChannel]
    task_seconds: float
    shards: list[ShardSummary]
    settled_anew: int | None = None
    """How many channels were scanned once more, exactly; None if that was not allowed."""
    computed_by: list[ComputedBy] = field(default_factory=list)
    """More than one if a rerun had other versions; none in summaries of earlier versions."""
    result: str = EXEMPLARS
    beyond_rounding: int = 0
    """How many activations an exact scan saw otherwise than rounding explains in most networks."""
    this_invocation: dict[str, float] = field(default_factory=dict)
    """What the command took that wrote the result."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """Read back what `to_json` wrote; what other versions add to it is passed over.

        Raises:
            UsageError: something that every summary has is not there.
        """
        entries = {
            "skipped_images": SkippedImage,
            "not_finite": NotFinite,
            "unsettled": UnsettledRanking,
            "short_of_distinct": ShortChannel,
            "shards": ShardSummary,
            "computed_by": ComputedBy,
        }
        missing = [one.name for one in fields(cls) if one.name not in values and _is_required(one)]
        if missing:
            raise UsageError(f"{SUMMARY} lacks {', '.join(missing)}; exemplar-ray merge writes it anew")
        read: dict[str, Any] = {
            name: [_take(kind, entry) for entry in values.get(name, [])] for name, kind in entries.items()
        }
        return _take(cls, {**values, **read})

    def lines(self) -> list[str]:
        """Return what is to be said when the run is over."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        lines = [f"{self.scored} images searched{skipped}, {self.exemplars} exemplars"]
        if self.not_finite:
            lines.append(f"NaN or infinite activations on {len(self.not_finite)} channels: see {SUMMARY}")
        if self.unsettled:
            lines.append(f"NOT SETTLED: {len(self.unsettled)} channels, where the scan's error may hide an exemplar")
        if mixed := self.mixed_versions():
            lines.append(f"computed by different versions: {mixed}")
        if self.beyond_rounding:
            lines.append(
                f"{self.beyond_rounding} activations hang on rounding, by up to {self.largest_error:.2g}: this network "
                "makes more of it than most; scan_error in channels.parquet has the largest of each channel"
            )
        if self.short_of_distinct:
            channels = len(self.short_of_distinct)
            lines.append(f"{channels} channels have fewer distinct exemplars than asked for: see {SUMMARY}")
        return lines

    def mixed_versions(self) -> str | None:
        """Say which versions scanned how many shards; None if all were scanned by the same."""
        return versions.in_words([versions.ComputedBy(one.versions, one.shards) for one in self.computed_by], "shards")


def _is_required(one: Field) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _take(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a dataclass from those values that are its fields."""
    names = {one.name for one in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


@dataclass(frozen=True)
class Account:
    """What only the run itself can tell of how it went."""

    images_gathered: int
    settled_anew: int | None
    """See `Summary`."""
    partial: str | None
    """See `Summary`."""


def summarise(plan: Plan, completed: Mapping[int, ScannedShard], selected: Selected, account: Account) -> Summary:
    """Put a run's summary together: rows read = scored + skipped, per shard and in all."""
    spec, network = plan.spec, plan.spec.network
    keys = [readout.key for readout in spec.readouts]
    shards = [
        ShardSummary(plan.shards[p].name, s.rows, s.scored, s.skipped, s.seconds, s.device, s.host)
        for p, s in completed.items()
    ]
    return Summary(
        fingerprint=plan.fingerprint,
        class_labels_sha256=labels_digest(plan.class_labels),
        complete=account.partial is None,
        partial=account.partial,
        model=network.model_title,
        weights=network.weights_title,
        weights_sha256=network.weights_sha256,
        trained=network.trained,
        rows=sum(shard.rows for shard in shards),
        scored=sum(shard.scored for shard in shards),
        skipped=sum(shard.skipped for shard in shards),
        skipped_images=[
            SkippedImage(shard=plan.shards[p].name, **image) for p, s in completed.items() for image in s.skipped_images
        ],
        not_finite=[
            *(NotFinite(shard=plan.shards[p].name, **entry) for p, s in completed.items() for entry in s.not_finite),
            *_not_finite(plan, selected),
        ],
        channels={layer.name: len(layer.channels) for layer in spec.layers},
        exemplars=len(selected.ranks),
        images_gathered=account.images_gathered,
        precision=spec.precision,
        decode=spec.decode,
        largest_error=selected.largest_error,
        certainty=_certainty(spec.readouts if spec.screened else (), selected.certainty),
        unsettled=[UnsettledRanking(*keys[one.readout], one.channel, one.sample) for one in selected.unsettled],
        short_of_distinct=[ShortChannel(*keys[one.readout], one.channel, one.exemplars) for one in selected.short],
        task_seconds=round(sum(shard.seconds for shard in shards), 3),
        shards=shards,
        settled_anew=account.settled_anew,
        computed_by=[ComputedBy(*one) for one in versions.computed_by(s.versions for s in completed.values())],
        beyond_rounding=selected.beyond_rounding,
    )


def _not_finite(plan: Plan, selected: Selected) -> list[NotFinite]:
    """Return what was a number to the scan, and none when it was recomputed."""
    lost = selected.not_finite
    each = zip(*(column.tolist() for column in (lost.shard, lost.readout, lost.channel)), strict=True)
    return [
        NotFinite(plan.shards[shard].name, layer.name, statistic, channel, images)
        for (shard, readout, channel), images in sorted(Counter(each).items())
        for layer, statistic in [plan.spec.readouts[readout]]
    ]


def _certainty(readouts: Sequence[Readout], certainty: Sequence[Certainty]) -> list[dict[str, Any]]:
    return [
        {"layer": layer.name, "statistic": statistic, "channels": format_channels(layer.channels)}
        | {name: [None if np.isinf(v) else v for v in values.tolist()] for name, values in of_readout.columns().items()}
        for (layer, statistic), of_readout in zip(readouts, certainty, strict=False)
    ]


def labels_digest(labels: ClassLabels) -> str:
    """Return the SHA-256 (hex) of class names: a result is written anew when they change."""
    return hashlib.sha256(json.dumps(labels.to_json(), sort_keys=True).encode()).hexdigest()
