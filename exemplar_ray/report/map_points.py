"""What a map's page shows of its points: where they lie, what they are coloured by, which channels they excite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.activations.rows_table import IDS
from exemplar_ray.data.imagenet_names import spelled_out
from exemplar_ray.errors import UsageError

ID_COLUMNS = tuple(IDS.names)
MOST_CATEGORIES = 65_535
"""Codes have 16 bits; the last one stands for none."""
_AT_ONCE = 65_536


@dataclass(frozen=True)
class Categories:
    """Points coloured by what they belong to: a class, a cluster, a set."""

    codes: npt.NDArray[np.integer]
    """[points]: places in `names`; -1 for a point that belongs to none."""
    names: Sequence[str]
    also_called: Sequence[str] = ()
    """A second name of each, by which it is found too, such as a synset id; empty for no such names."""
    none: str = "none"
    """What a point of none is called, such as "noise"."""

    def __post_init__(self) -> None:
        if len(self.names) > MOST_CATEGORIES:
            raise UsageError(
                f"{len(self.names):,} categories: a map is coloured by at most {MOST_CATEGORIES:,}; leave this "
                "colouring out"
            )
        if self.also_called and len(self.also_called) != len(self.names):
            raise ValueError(f"{len(self.names)} names, {len(self.also_called)} second names")
        if len(self.codes) and not -1 <= self.codes.min() <= self.codes.max() < len(self.names):
            raise ValueError(f"codes from {self.codes.min()} to {self.codes.max()} for {len(self.names)} names")


@dataclass(frozen=True)
class Values:
    """Points coloured by a number, such as a channel's activation."""

    values: npt.NDArray[np.floating]
    """[points]; NaN where it is not known."""
    group: str = ""
    """The layer whose channel it is. Colourings of one group stand together in a list; those without have buttons."""
    page: str | None = None
    """The channel's page, relative to the map's, if there is one."""

    def __post_init__(self) -> None:
        refuse_scripts(self.page)


@dataclass(frozen=True)
class StrongestChannels:
    """Of each point, the few channels that it excites most; all of them would be too large for a page."""

    channels: npt.NDArray[np.integer]
    """[points, a few]: places in `names`, the strongest first."""
    names: Sequence[str]
    pages: Sequence[str | None] = ()
    """Each channel's page, relative to the map's, if there is one; empty if there are none."""
    words: str = "the channels that an image excites most"
    """By which measure they were chosen."""

    def __post_init__(self) -> None:
        if len(self.names) > MOST_CATEGORIES:
            raise UsageError(
                f"{len(self.names):,} channels: a map tells apart at most {MOST_CATEGORIES:,}; leave them out, or "
                "choose fewer"
            )
        if self.pages and len(self.pages) != len(self.names):
            raise ValueError(f"{len(self.names)} channels, {len(self.pages)} pages")
        if self.channels.size and not 0 <= self.channels.min() <= self.channels.max() < len(self.names):
            raise ValueError(f"a channel that is none of {len(self.names)}")
        for page in self.pages:
            refuse_scripts(page)

    @classmethod
    def of(
        cls,
        activations: npt.NDArray[np.floating],
        names: Sequence[str],
        pages: Sequence[str | None] = (),
        count: int = 8,
    ) -> StrongestChannels:
        """Take the channels furthest above their own mean, in standard deviations over all points.

        The activations themselves would name the same few channels for all images: those that are never silent.
        A channel that is the same for all points counts as being at its mean.

        Args:
            activations: [points, channels], pooled.
            count: how many of each point, if there are that many.
        """
        count = min(count, activations.shape[1])
        mean = activations.mean(axis=0, dtype=np.float64)
        blocks = range(0, len(activations), _AT_ONCE)
        squares = sum(((activations[i : i + _AT_ONCE] - mean) ** 2).sum(axis=0) for i in blocks)
        deviation = np.sqrt(squares / len(activations))
        scale = np.where(deviation > 0, deviation, np.inf)
        strongest = [
            np.argsort(-((activations[i : i + _AT_ONCE] - mean) / scale), axis=1, kind="stable")[:, :count]
            for i in blocks
        ]
        words = f"the {count} channels furthest above their mean over all images, in standard deviations"
        return cls(np.concatenate(strongest).astype(np.uint16), names, pages, words)


@dataclass(frozen=True)
class Score:
    """One line of the table of scores."""

    name: str
    values: Sequence[str]
    """As written, one for each of `MapPoints.score_columns`."""
    words: str
    """What it means, for who does not know it."""


@dataclass(frozen=True)
class MapPoints:
    """Everything that a map's page shows. All texts are plain."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    """[points], upwards."""
    ids: pa.Table
    """Whose points these are: `ID_COLUMNS`, of which all but `shard` and `row` may be null."""
    title: str
    colourings: Mapping[str, Categories | Values] = field(default_factory=dict)
    """By name; the first is shown first. Read one after the other, so that a mapping may make them as they are asked
    for. Classes are searched in the one called `class`."""
    thumbnails: Iterable[tuple[int, bytes | npt.NDArray[np.uint8]]] = ()
    """(place among the points, a square picture), places ascending, some or all: JPEG, or [side, side, 3]."""
    warnings: Sequence[str] = ()
    """What must be in plain sight: untrained weights, part of the data."""
    essentials: Sequence[str] = ()
    """What is always to be seen below the title."""
    facts: Sequence[tuple[str, str]] = ()
    """Where it comes from: (what, which)."""
    command: str = ""
    """What writes this page anew."""
    scores: Sequence[Score] = ()
    score_columns: Sequence[str] = ("score",)
    channels: StrongestChannels | None = None
    beside: tuple[str, str] | None = None
    """Another map, of the same images in another network: what it is, and its page, relative to this one."""

    def __post_init__(self) -> None:
        points = len(self.x)
        refuse_scripts(self.beside[1] if self.beside else None)
        if not points:
            raise UsageError("there are no points to show: the store or the chosen part of it has no rows")
        if len(self.y) != points or self.ids.num_rows != points:
            raise ValueError(f"{points} x, {len(self.y)} y, {self.ids.num_rows} ids")
        if missing := set(ID_COLUMNS) - set(self.ids.column_names):
            raise ValueError(f"the ids have no {', '.join(sorted(missing))}")
        unplaced = int((~(np.isfinite(self.x) & np.isfinite(self.y))).sum())
        if unplaced:
            raise UsageError(f"{unplaced:,} of {points:,} points have no finite place on the map; make the map anew")
        if self.channels is not None and len(self.channels.channels) != points:
            raise ValueError(f"{points} points, strongest channels of {len(self.channels.channels)}")
        for score in self.scores:
            if len(score.values) != len(self.score_columns):
                raise ValueError(f"{score.name}: {len(score.values)} values in {len(self.score_columns)} columns")


def categories_of_labels(ids: pa.Table) -> Categories:
    """Return the classes of points as a colouring: by label, called by name, found by synset id too.

    A label that is called otherwise in another set, such as the fourth of other folders, is another class there. Points
    without a name have that of their label.
    """
    labels = ids["label"].to_numpy(zero_copy_only=False).astype(np.float64)  # null becomes NaN
    known = ~np.isnan(labels) & (labels >= 0)
    classes, by_label = np.unique(labels[known], return_inverse=True)
    named = pc.dictionary_encode(ids["class_name"].combine_chunks())
    by_name = named.indices.fill_null(-1).to_numpy()[known].astype(np.int64)
    usual = np.full(len(classes), -1, np.int64)
    with_name = np.flatnonzero(by_name >= 0)[::-1]  # the first one of a label is written last
    usual[by_label[with_name]] = by_name[with_name]
    by_name = np.where(by_name < 0, usual[by_label], by_name)
    both = by_label * (len(named.dictionary) + 1) + by_name + 1
    _, first, codes = np.unique(both, return_index=True, return_inverse=True)
    rows = ids.take(np.flatnonzero(known)[first]).to_pylist()
    called = [named.dictionary[code].as_py() if code >= 0 else None for code in by_name[first]]
    names = [
        spelled_out(name or row["synset_id"] or f"class {row['label']}") for name, row in zip(called, rows, strict=True)
    ]
    of_points = np.full(ids.num_rows, -1, np.int32)
    of_points[known] = codes
    return Categories(of_points, names, [row["synset_id"] or "" for row in rows], "no class")


def refuse_scripts(page: str | None) -> None:
    """Refuse a link to anything but a page."""
    if page is not None and urlsplit(page).scheme not in ("", "file", "http", "https"):
        raise ValueError(f"'{page}' is no page")
