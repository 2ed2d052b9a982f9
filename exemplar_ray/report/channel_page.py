"""What stands on a channel's page: its exemplars by sample, its statistics over all images, its classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from exemplar_ray.data.framing import Box, Framing
from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.exemplars.plan import Plan
from exemplar_ray.exemplars.sample_names import BOTTOM, DISTINCT, RANDOM, TOP, percentile_of
from exemplar_ray.exemplars.summary import Summary
from exemplar_ray.network.layers import Layer
from exemplar_ray.report.charts import HistogramChart, histogram_chart
from exemplar_ray.report.pictures import MapOverlay, Picture, Pictures, map_overlay
from exemplar_ray.report.provenance import words_of

MOST_CLASSES = 10

_QUANTILES = ("min", "q01", "q05", "q10", "q25", "q50", "q75", "q90", "q95", "q99", "max")
_TITLES = {
    TOP: "Strongest",
    DISTINCT: "Strongest, near-duplicates skipped",
    BOTTOM: "Weakest",
    RANDOM: "Drawn at random",
}


@dataclass(frozen=True)
class ShownExemplar:
    """One exemplar as its page shows it. Boxes are in pixels of the original image."""

    row: dict[str, Any]
    """Its row of `exemplars.parquet`, without the image."""
    class_text: str
    """Class name, or synset id, or nothing."""
    percentile: str
    picture: Picture | None
    view_box: Box
    field_box: Box | None
    overlay: MapOverlay | None


@dataclass(frozen=True)
class ShownSample:
    """One sample of a channel."""

    name: str
    title: str
    exemplars: list[ShownExemplar]
    settled: bool
    strongest: bool
    """Whether it shows the strongest. It then comes before all else."""
    short: bool
    """Whether candidates for `distinct` ran out before there were K."""


@dataclass(frozen=True)
class ShownClass:
    """A class that excites a channel; `share` is its mean as a share of the highest, 0..1."""

    label: int
    text: str
    synset_id: str | None
    images: int
    mean: float
    maximum: float
    share: float


@dataclass(frozen=True)
class ShownStatistic:
    """What one statistic says of a channel."""

    name: str
    description: str
    channel_row: dict[str, Any]
    """Its row of `channels.parquet`."""
    quantiles: list[tuple[str, float]]
    samples: list[ShownSample]
    histogram: HistogramChart | None
    classes: list[ShownClass]
    not_finite: int
    """How many images gave NaN or infinity. They are not ranked."""
    screened: bool
    margin: str | None
    """How far the next image is below the K-th; None where the scan itself is exact."""


class ChannelPages:
    """Makes what the pages of a run's channels show."""

    def __init__(self, plan: Plan, summary: Summary, pictures: Pictures | None) -> None:
        self._plan = plan
        self._pictures = pictures
        self._unsettled = {
            (ranking.layer, ranking.statistic, ranking.channel, ranking.sample) for ranking in summary.unsettled
        }
        self._short = {(short.layer, short.statistic, short.channel) for short in summary.short_of_distinct}
        self._not_finite: Counter[tuple[str, str, int]] = Counter()
        for entry in summary.not_finite:
            self._not_finite[entry.layer, entry.statistic, entry.channel] += entry.images

    def statistic(
        self,
        layer: Layer,
        statistic: str,
        channel_row: dict[str, Any],
        rows: Sequence[dict[str, Any]],
        classes: pa.Table | None,
        histogram: pa.Table | None,
    ) -> ShownStatistic:
        """Put together what one statistic says of a channel.

        Args:
            channel_row: its row of `channels.parquet`.
            rows: the channel's rows of `exemplars.parquet`.
            classes: its rows of `classes.parquet`, None where there are none.
            histogram: its row of `histograms.parquet`, None where there is none.
        """
        key = layer.name, statistic, channel_row["channel"]
        spec = self._plan.spec
        samples = [
            ShownSample(
                name=name,
                title=title_of_sample(name),
                exemplars=[self._exemplar(layer, row, channel_row["images"]) for row in rows if row["sample"] == name],
                settled=(*key, name) not in self._unsettled,
                strongest=name in (TOP, DISTINCT),
                short=name == DISTINCT and key in self._short,
            )
            for name in sorted(spec.shown_samples, key=_page_order)
        ]
        marks = {sample.name: [exemplar.row["activation"] for exemplar in sample.exemplars] for sample in samples}
        margin = None
        if spec.screened:
            margin = "no other image is left" if math.isinf(channel_row["margin"]) else f"{channel_row['margin']:.2g}"
        return ShownStatistic(
            name=statistic,
            description=words_of(statistic) if layer.map_size else "the channel's output",
            channel_row=channel_row,
            quantiles=[(name, channel_row[name]) for name in _QUANTILES],
            samples=samples,
            histogram=_chart(histogram, marks),
            classes=strongest_classes(classes, self._plan.class_labels),
            not_finite=self._not_finite[key],
            screened=spec.screened,
            margin=margin,
        )

    def _exemplar(self, layer: Layer, row: dict[str, Any], images: int) -> ShownExemplar:
        picture = self._pictures.get(row["shard"], row["row"]) if self._pictures else None
        overlay = None
        if picture is not None:
            framing = Framing.of(picture.width, picture.height, self._plan.spec.network.preprocess)
            overlay = map_overlay(row, layer, framing)
        return ShownExemplar(
            row=row,
            class_text=spelled_out(row["class_name"] or row["synset_id"] or ""),
            # The digits suffice to tell two images apart.
            percentile=f"{row['percentile']:.{max(0, math.ceil(math.log10(max(images, 1))) - 2)}f}",
            picture=picture,
            view_box=row["view_box"],
            field_box=row["field_box"],
            overlay=overlay,
        )


def strongest_classes(classes: pa.Table | None, labels: ClassLabels, most: int = MOST_CLASSES) -> list[ShownClass]:
    """Return the classes with the highest mean, the highest first.

    Of equal means the lower label comes first.

    Args:
        classes: a channel's rows of `classes.parquet`.
    """
    if classes is None:
        return []
    images, mean, maximum, label = (classes[name].to_numpy() for name in ("images", "mean", "max", "label"))
    order = [i for i in np.argsort(-mean, kind="stable").tolist() if images[i]][:most]
    highest = max((mean[i] for i in order), default=0.0)
    return [
        ShownClass(
            label=int(label[i]),
            text=class_text(labels, int(label[i])),
            synset_id=labels.synset_id(int(label[i]), None),
            images=int(images[i]),
            mean=float(mean[i]),
            maximum=float(maximum[i]),
            share=max(0.0, float(mean[i] / highest)) if highest > 0 else 0.0,
        )
        for i in order
    ]


def class_text(labels: ClassLabels, label: int) -> str:
    """Return what to call a class: its name, or else its number."""
    return spelled_out(labels.class_name(label) or f"class {label}")


def title_of_sample(sample: str) -> str:
    """Return what a sample's exemplars are, in words."""
    return _TITLES.get(sample) or f"Drawn around the {percentile_of(sample)}th percentile"


def _page_order(sample: str) -> tuple[int, int]:
    """Sort samples for a page, from the strongest down.

    Percentiles follow the strongest. Then comes what is drawn from all images, then the weakest.
    """
    order = {TOP: 0, DISTINCT: 1, RANDOM: 3, BOTTOM: 4}
    return (order[sample], 0) if sample in order else (2, -percentile_of(sample))


def _chart(histogram: pa.Table | None, marks: dict[str, list[float]]) -> HistogramChart | None:
    if histogram is None:
        return None
    low, high, images = (histogram[name][0].values.to_numpy() for name in ("low", "high", "images"))
    return histogram_chart(low, high, images, marks)
