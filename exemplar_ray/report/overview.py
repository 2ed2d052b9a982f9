"""What stands on an overview: a tile a channel, and what tiles are sorted, filtered and searched by."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from exemplar_ray.data.labels import ClassLabels
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.report.channel_page import ShownStatistic, class_text


@dataclass(frozen=True)
class Tile:
    """One channel of an overview."""

    channel: int
    picture: str | None
    """The small picture's name, below the report's folder."""
    pictured: str
    """What it shows, in words."""
    visualization: str | None
    """The name of its small visualisation, if there is one."""
    selectivity: float
    active: float
    skew: float
    top_class: str
    """The class of the highest mean. Empty where the data has no labels."""
    top_label: int | None
    labels: list[int]
    """Class ids of the strongest images, each once."""
    settled: bool


@dataclass(frozen=True)
class KnownClass:
    """A class that can be searched for."""

    label: int
    text: str
    synset_id: str


def tile_of(shown: ShownStatistic, picture: str | None, pictured: int, visualization: str | None) -> Tile:
    """Make the tile of a channel.

    Args:
        picture: the small picture's name, if there is one.
        pictured: how many exemplars it shows.
        visualization: as `picture`, of its visualisation.
    """
    [top] = [sample for sample in shown.samples if sample.name == TOP]
    rows = [exemplar.row for exemplar in top.exemplars]
    names = [exemplar.class_text or exemplar.row["image_path"] or "" for exemplar in top.exemplars[:pictured]]
    return Tile(
        channel=shown.channel_row["channel"],
        picture=picture,
        pictured="; ".join(names),
        visualization=visualization,
        selectivity=shown.channel_row["selectivity"],
        active=shown.channel_row["active_fraction"],
        skew=skew(shown.channel_row),
        top_class=shown.classes[0].text if shown.classes else "",
        top_label=shown.classes[0].label if shown.classes else None,
        # Results of older versions have the -1 of data sets without labels.
        labels=list(dict.fromkeys(row["label"] for row in rows if row["label"] is not None and row["label"] >= 0)),
        settled=top.settled,
    )


def skew(channel_row: dict[str, Any]) -> float:
    """Return the quantile skewness (q99 + q01 - 2 q50) / (q99 - q01).

    It is 0 for a symmetric distribution. It goes towards 1 where the upper tail is long, towards -1 where the lower
    one is. It is NaN for a channel that is all but constant.

    >>> skew({"q01": 0.0, "q50": 1.0, "q99": 10.0})
    0.8
    """
    low, middle, high = (channel_row[name] for name in ("q01", "q50", "q99"))
    return (high + low - 2 * middle) / (high - low) if high > low else math.nan


def known_classes(labels: ClassLabels, used: Iterable[int], synset_ids: dict[int, str]) -> list[KnownClass]:
    """Return the classes that tiles name, sorted by name.

    Args:
        used: class ids.
        synset_ids: {class id: synset id} as the exemplars' paths tell, where the labels do not.
    """
    classes = [
        KnownClass(label, class_text(labels, label), labels.synset_id(label, None) or synset_ids.get(label, ""))
        for label in sorted(used)
    ]
    return sorted(classes, key=lambda searchable: searchable.text.casefold())
