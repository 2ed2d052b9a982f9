"""The images: copies of shards, the first so many of them, shards of another size."""

import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq


class RowGroup(NamedTuple):
    """The first `rows` rows of one row group; `first` is the number of its first image among all."""

    shard: str
    group: int
    first: int
    rows: int


def copies_of(shards: Sequence[str], folder: Path, copies: int) -> list[str]:
    """Put copies of all shards into folders of their own, where possible without copying a byte; return the folders."""
    folders = [folder / f"copy-{number:02}" for number in range(copies)]
    for copy in folders:
        copy.mkdir(parents=True)
        for place, shard in enumerate(shards):
            target = copy / f"{place:05}-{Path(shard).name}"
            try:
                os.link(shard, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(shard, target)
    return [str(copy) for copy in folders]


def row_groups(shards: Sequence[str], limit: int | None = None) -> Iterator[RowGroup]:
    """Yield the row groups of local shards in order; with a limit, of that many images only."""
    first = 0
    for shard in shards:
        metadata = pq.read_metadata(shard)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            rows = rows if limit is None else min(rows, limit - first)
            if rows <= 0:
                return
            yield RowGroup(shard, group, first, rows)
            first += rows


def images_of(group: RowGroup) -> list[bytes]:
    """Return the encoded images of a row group."""
    table = pq.ParquetFile(group.shard).read_row_group(group.group, columns=["image.bytes"])
    return [image["bytes"] for image in table["image"].slice(0, group.rows).to_pylist()]


def first_images(shards: Sequence[str], limit: int) -> list[bytes]:
    """Return the first encoded images, in memory."""
    return [image for group in row_groups(shards, limit) for image in images_of(group)]


def first_shards(shards: Sequence[str], limit: int) -> list[str]:
    """Return the shards that hold the first `limit` images."""
    return list(dict.fromkeys(group.shard for group in row_groups(shards, limit)))


def shards_of_rows(shards: Sequence[str], folder: Path, rows: int, count: int) -> list[str]:
    """Write `count` shards of so many rows from the given ones, over and over if need be; return the files."""
    folder.mkdir(parents=True)
    groups = cycle(list(row_groups(shards)))
    files = []
    for number in range(count):
        tables: list[pa.Table] = []
        while (missing := rows - sum(map(len, tables))) > 0:
            group = next(groups)
            tables.append(pq.ParquetFile(group.shard).read_row_group(group.group).slice(0, missing))
        files.append(str(folder / f"train-{number:05}-of-{count:05}.parquet"))
        pq.write_table(pa.concat_tables(tables), files[-1], row_group_size=100)
    return files
