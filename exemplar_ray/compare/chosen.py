"""Which channels and images the pages show. Tasks ask, too: they make the pictures of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.compare.spec import A, B
from exemplar_ray.compare.tables import CHANNELS, EXEMPLARS, IMAGES, Tables

CHANNELS_SHOWN, IMAGES_SHOWN, EXEMPLARS_SHOWN, CLASSES_SHOWN = 12, 24, 5, 100

Row = dict[str, Any]
Picture = tuple[str, str, int]
"""Set, shard and row."""


def channels_by_shift(channels: pa.Table) -> tuple[list[Row], list[Row]]:
    """Return the most and the least shifted channels, by Kolmogorov-Smirnov, those left out that never change."""
    rows = channels.filter(pc.and_(pc.invert(channels["constant"]), pc.is_valid(channels["ks"])))
    order = [("ks", "descending"), ("channel", "ascending")]
    return _ends(rows.sort_by(order).to_pylist())


def channels_by_exemplars(channels: pa.Table) -> tuple[list[Row], list[Row]]:
    """Return the channels with the fewest and the most exemplars in common: of the same number where layers have one
    name, else with the channel that they are matched with."""
    by = "in_common" if channels["in_common"].null_count < len(channels) else "in_common_match"
    rows = channels.filter(pc.is_valid(channels[by]))
    return _ends(rows.sort_by([(by, "ascending"), ("channel", "ascending")]).to_pylist())


def _ends(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    first = rows[:CHANNELS_SHOWN]
    return first, rows[len(first) :][: -CHANNELS_SHOWN - 1 : -1]


def uncovered(images: pa.Table) -> list[Row]:
    """Return the images of A that nothing of B comes near, the loneliest first: how many radii it is away."""
    rows = images.filter(pc.and_(pc.equal(images["set"], A), pc.equal(images["covered"], False)))
    radii, nearest = (rows[name].to_numpy() for name in ("radius", "nearest"))
    with np.errstate(divide="ignore"):
        away = np.where(radii > 0, nearest / radii, np.inf)
    order = np.lexsort((np.arange(len(away)), -nearest, -away))[:IMAGES_SHOWN]
    return [{**row, "away": float(away[at])} for row, at in zip(rows.take(order).to_pylist(), order, strict=True)]


def furthest(images: pa.Table) -> list[Row]:
    """Return the images of B that lie among none of A, the furthest from all of A first."""
    rows = images.filter(pc.and_(pc.equal(images["set"], B), pc.equal(images["among_other"], False)))
    return rows.sort_by([("nearest", "descending"), ("shard", "ascending"), ("row", "ascending")])[
        :IMAGES_SHOWN
    ].to_pylist()


def exemplars_by_channel(exemplars: pa.Table) -> dict[tuple[str, int], list[Row]]:
    """Return the exemplars that are shown: {(set, channel): its strongest}."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in exemplars.filter(pc.less_equal(exemplars["rank"], EXEMPLARS_SHOWN)).to_pylist():
        found.setdefault((row["set"], row["channel"]), []).append(row)
    return found


def channels_shown(channels: pa.Table) -> tuple[list[Row], list[Row]]:
    """Return the channels on a page: those of most change, and those of least."""
    return channels_by_shift(channels) if "ks" in channels.column_names else channels_by_exemplars(channels)


def pictures_wanted(tables: Tables) -> set[Picture]:
    """Return which images a page shows."""
    return set(_wanted(tables))


def _wanted(tables: Tables) -> Iterator[Picture]:
    by_channel = exemplars_by_channel(tables[EXEMPLARS])
    for row in (row for rows in channels_shown(tables[CHANNELS]) for row in rows):
        match = row.get("match")
        for key in ((A, row["channel"]), (B, row["channel"]), (B, row["channel"] if match is None else match)):
            yield from ((one["set"], one["shard"], one["row"]) for one in by_channel.get(key, ()))
    if IMAGES in tables:
        for letter, other, rows in ((A, B, uncovered(tables[IMAGES])), (B, A, furthest(tables[IMAGES]))):
            for row in rows:
                yield letter, row["shard"], row["row"]
                yield other, row["nearest_shard"], row["nearest_row"]
