"""The strongest images of channels, as a table, and whether two channels have the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.activations.rows_table import IDS
from exemplar_ray.compare.points import Pointed
from exemplar_ray.compare.spec import SETS, A, Names
from exemplar_ray.compare.tables import EXEMPLARS, SCHEMAS, of_columns
from exemplar_ray.comparisons.same_images import NONE, strongest
from exemplar_ray.exemplars.sample_names import TOP
from exemplar_ray.results.run import Run

_SCHEMA = SCHEMAS[SETS][EXEMPLARS]


def ranked(of: Pointed, k: int) -> np.ndarray:
    """Return the images that excite each channel most: int64 [channels, k]; `NONE` of channels that are the same for
    all images."""
    found = strongest(of.points, min(k, len(of)))
    found[of.constant()] = NONE
    return found


def exemplars_of(of: Pointed, letter: str, channels: Sequence[int], names: Names, k: int) -> pa.Table:
    """Return the strongest images of a set's channels.

    Args:
        letter: which set.
        channels: their numbers.
    """
    which = ranked(of, k)
    there = which[:, 0] != NONE
    rows, count = which[there].reshape(-1), which.shape[1]
    places = np.repeat(np.flatnonzero(there), count)
    taken = of.rows.take(rows)
    columns: dict[str, Any] = {name: taken[name] for name in IDS.names}
    columns["channel"] = np.asarray(channels, np.int32)[places]
    columns["rank"] = np.tile(np.arange(1, count + 1, dtype=np.int32), int(there.sum()))
    columns["activation"] = of.points[rows, places]
    return of_columns(columns, _SCHEMA, {**names._asdict(), "set": letter})


def exemplars_of_run(run: Run, letter: str, names: Names, k: int) -> pa.Table:
    """Return the strongest images of a run's channels, as the run ranks them."""
    layer = names.layer if letter == A else names.other_layer
    wanted = ["channel", "rank", "activation", "sample", *IDS.names]
    rows = run.table(wanted, layer=layer, statistic=names.pool, sample=TOP)
    rows = rows.filter(pc.less_equal(rows["rank"], k)).sort_by([("channel", "ascending"), ("rank", "ascending")])
    columns = {name: rows[name] for name in wanted if name != "sample"}
    return of_columns(columns, _SCHEMA, {**names._asdict(), "set": letter})


def as_numbers(tables: Iterable[pa.Table], channels: Sequence[Sequence[int]], k: int) -> list[np.ndarray]:
    """Return which images channels' exemplars are, numbered alike in all tables: int64 [channels, k] each."""
    numbers: dict[tuple[str, int], int] = {}
    found = []
    for table, of in zip(tables, channels, strict=True):
        place = {channel: at for at, channel in enumerate(of)}
        which = np.full((len(of), k), NONE, np.int64)
        for row in table.select(["channel", "rank", "shard", "row"]).to_pylist():
            number = numbers.setdefault((row["shard"], row["row"]), len(numbers))
            which[place[row["channel"]], row["rank"] - 1] = number
        found.append(which)
    return found
