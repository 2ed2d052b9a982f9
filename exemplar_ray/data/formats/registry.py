"""Which kinds of files there are. Another one is a module with a `Format`, and its line here."""

from __future__ import annotations

from collections.abc import Sequence

from exemplar_ray.data.columns import Columns
from exemplar_ray.data.formats.format import Format
from exemplar_ray.data.formats.images import ImagesFormat
from exemplar_ray.data.formats.parquet import ParquetFormat
from exemplar_ray.data.formats.tar import TarFormat
from exemplar_ray.data.shard import PARQUET, Shard, ShardReader
from exemplar_ray.errors import UsageError

_FORMATS: dict[str, Format] = {one.name: one for one in (ParquetFormat(), TarFormat(), ImagesFormat())}


def format_named(name: str | None) -> Format:
    """Return a format by its name, as `run.json` has it; parquet where it has none.

    Raises:
        UsageError: there is no such format in this version.
    """
    try:
        return _FORMATS[name or PARQUET]
    except KeyError:
        raise UsageError(f"shards are of the format '{name}', which this version of exemplar_ray cannot read") from None


def format_of(shard: Shard) -> Format:
    """Return what kind of file a shard is."""
    return format_named(shard.format)


def open_shard(shard: Shard, piece: int | None = None) -> ShardReader:
    """Open a shard to read its rows, whichever kind of file it is.

    Args:
        piece: which piece's rows to read; None for all.

    Raises:
        ShardError: see `ShardReader`.
    """
    return format_of(shard).open(shard) if piece is None else format_of(shard).open_piece(shard, piece)


def describe(shards: Sequence[Shard]) -> list[str]:
    """Say in lines where a data set's images and labels are, if not in the usual places."""
    columns: dict[str, list[Columns | None]] = {}
    for shard in shards:
        columns.setdefault(shard.format, []).append(shard.columns)
    return [line for name, of_format in columns.items() for line in format_named(name).describe(of_format)]
