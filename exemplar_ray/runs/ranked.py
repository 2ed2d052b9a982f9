"""The images that a run's channels answer to, out of its `exemplars.parquet`: which they are, and they themselves.

Imports neither torch nor Ray: the driver asks which they are, tasks look at them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exemplar_ray.runs.run_folder import RunFolder

EXEMPLARS = "exemplars.parquet"
_STRONGEST = "top"
_WHICH = ["layer", "statistic", "sample", "channel"]
_ROW = ["rank", "shard", "row", "activation"]
_PEAK = ["peak_y", "peak_x", "map_height", "map_width"]


class RankedImage(NamedTuple):
    """An image of a run's result."""

    place: tuple[str, int]
    """Its shard and row."""
    data: bytes
    peak: tuple[float, float]
    """Where in the crop the channel that it is an exemplar of answers most, from the top and from the left: 0..1. The
    middle, where there is no map."""
    rank: int


def digests(run: RunFolder, layer: str, statistic: str) -> dict[int, tuple[int, str]]:
    """Return {channel: how many exemplars it has, and a hash that tells these, in their order, from others}."""
    with run.open(EXEMPLARS) as file:
        which = [("layer", "=", layer), ("statistic", "=", statistic), ("sample", "=", _STRONGEST)]
        rows = pq.read_table(file, filters=which, columns=["channel", *_ROW])
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["channel"], []).append(row)
    return {channel: (len(of), _digest(of)) for channel, of in found.items()}


def _digest(rows: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(repr(sorted(tuple(row[name] for name in _ROW) for row in rows)).encode()).hexdigest()


def strongest(run: RunFolder, layer: str, statistic: str, channel: int, most: int) -> tuple[str, list[RankedImage]]:
    """Return what tells a channel's exemplars from others, see `digests`, and the strongest of them.

    The strongest is first; those that the result holds no bytes of are left out.
    """
    with run.open(EXEMPLARS) as file:
        parquet = _opened(file)
        groups = _groups(parquet, layer, statistic, channel)
        rows = _rows(parquet, groups, layer, statistic).filter(pc.field("channel") == channel)
    few = rows.sort_by("rank").slice(0, most).to_pylist()
    return _digest(rows.select(_ROW).to_pylist()), [_image(row) for row in few if _has_bytes(row)]


def of_others(
    run: RunFolder, layer: str, statistic: str, most: int = 24, most_row_groups: int = 6
) -> list[RankedImage]:
    """Return some images that the layer's channels answer to, each once: a choice that is always the same.

    Args:
        most: so many images, if there are so many.
        most_row_groups: of the result, that they are taken from: each may hold megabytes.
    """
    with run.open(EXEMPLARS) as file:
        parquet = _opened(file)
        groups = _groups(parquet, layer, statistic)
        found: dict[tuple[str, int], RankedImage] = {}
        chosen = sorted(groups, key=_drawn)[:most_row_groups]
        for group in chosen:
            rows = _rows(parquet, [group], layer, statistic)
            places = list(zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True))
            new = sorted({place: at for at, place in enumerate(places) if place not in found}.items(), key=_drawn)
            for _, at in islice(new, most // len(chosen)):
                [row] = rows.slice(at, 1).to_pylist()
                if _has_bytes(row):
                    found[places[at]] = _image(row)
    return list(found.values())


def _opened(file: Any) -> pq.ParquetFile:
    # An image may stand in a row group many times, and does not become as many copies when that is read.
    return pq.ParquetFile(file, read_dictionary=["image.bytes"])


def _groups(parquet: pq.ParquetFile, layer: str, statistic: str, channel: int | None = None) -> list[int]:
    """Return the row groups that may hold a layer's strongest images."""
    wanted: dict[str, Any] = {"layer": layer, "statistic": statistic, "sample": _STRONGEST}
    if channel is not None:
        wanted["channel"] = channel
    metadata, names = parquet.metadata, parquet.schema_arrow.names
    paths = [parquet.schema.column(at).path for at in range(metadata.num_columns)]
    columns = {name: paths.index(name) for name in wanted if name in names}
    found = []
    for group in range(metadata.num_row_groups):
        known = {name: metadata.row_group(group).column(at).statistics for name, at in columns.items()}
        if all(s is None or not s.has_min_max or s.min <= wanted[name] <= s.max for name, s in known.items()):
            found.append(group)
    return found


def _rows(parquet: pq.ParquetFile, groups: Sequence[int], layer: str, statistic: str) -> pa.Table:
    """Read the rows of a layer's strongest images."""
    columns = [*_WHICH, *_ROW, *_PEAK, "image"]
    # One by one: pyarrow reads but one dictionary inside a struct at a time.
    tables = [parquet.read_row_group(group, columns=columns) for group in groups]
    table = pa.concat_tables(tables) if tables else parquet.schema_arrow.empty_table().select(columns)
    is_wanted = (pc.field("layer") == layer) & (pc.field("statistic") == statistic) & (pc.field("sample") == _STRONGEST)
    return table.filter(is_wanted)


def _has_bytes(row: dict[str, Any]) -> bool:
    return bool(row["image"] and row["image"]["bytes"])


def _image(row: dict[str, Any]) -> RankedImage:
    y, x, height, width = (row[name] for name in _PEAK)
    peak = ((y + 0.5) / height, (x + 0.5) / width) if height and y is not None else (0.5, 0.5)
    return RankedImage((row["shard"], row["row"]), row["image"]["bytes"], peak, row["rank"])


def _drawn(of: Any) -> bytes:
    """Return what sorts things as if they were shuffled, always in the same way."""
    return hashlib.blake2b(repr(of).encode(), digest_size=8).digest()
