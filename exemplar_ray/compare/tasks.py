"""What a worker does for a comparison: the numbers of two layers with the pictures that their page shows, or the small
pictures of a shard's images.

Named by the driver as `module:function`; see `executor.cluster`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from PIL import Image

from exemplar_ray.compare.binned import binned_networks, binned_sets
from exemplar_ray.compare.chosen import Picture, pictures_wanted
from exemplar_ray.compare.networks import compared_networks
from exemplar_ray.compare.points import paired, pointed
from exemplar_ray.compare.sets import compared_sets
from exemplar_ray.compare.sides import Side
from exemplar_ray.compare.spec import SETS, A, B, CompareSpec, Piece
from exemplar_ray.compare.tables import PICTURE_SCHEMA, PICTURES, THUMBNAILS, Tables, to_files
from exemplar_ray.data.shard import Shard
from exemplar_ray.data.thumbnails import thumbnails
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.executor.job import Made
from exemplar_ray.maps.drawing import drawn
from exemplar_ray.results.exemplar import Exemplar

SIDE, THUMBNAIL_SIDE = 112, 64
_QUALITY = 85


@dataclass(frozen=True)
class CompareSettings:
    """What a task is handed; of it, `threads` does not change what it makes."""

    spec: CompareSpec
    threads: int


def make(settings: CompareSettings, given: tuple[int, Piece]) -> Made:
    """Do one piece.

    Raises:
        UsageError: it cannot be compared.
        ShardError: A or B is not what it was, or its images cannot be read.
    """
    piece, spec = given[1], settings.spec
    if piece.shard is not None:
        return Made(to_files({THUMBNAILS: _small_pictures(settings, piece)}))
    sides = Side(A, spec.a), Side(B, spec.b)
    for side, readout, digest in zip(sides, piece.readouts, piece.digests, strict=True):
        if side.digest(readout) != digest:
            raise ShardError(f"{piece.name}: '{side.uri}' is another than when the comparison began; run compare again")
    try:
        tables = _compared(sides, piece, spec)
    except UsageError as error:
        raise UsageError(f"{piece.name}: {error}") from error
    if spec.options.pictures:
        pictures = _pictures(settings, sides, pictures_wanted(tables))
        tables = {**tables, PICTURES: pa.Table.from_pylist(list(pictures), schema=PICTURE_SCHEMA)}
    return Made(to_files(tables))


def _compared(sides: tuple[Side, Side], piece: Piece, spec: CompareSpec) -> Tables:
    options, (one, other) = spec.options, piece.readouts
    a, b = (side.store for side in sides)
    if a is None or b is None:
        return (binned_sets if spec.kind == SETS else binned_networks)(sides, piece, options)
    channels = sides[0].layer(piece.layer).channels, sides[1].layer(piece.other_layer).channels
    if spec.kind == SETS:
        return compared_sets(pointed(a, one), pointed(b, other), one, channels[0], options)
    return compared_networks(*paired((a, b), (one, other), options.by), piece, channels, options)


def _pictures(
    settings: CompareSettings, sides: tuple[Side, Side], wanted: Iterable[Picture]
) -> Iterator[dict[str, object]]:
    """Yield the wanted pictures, in the order of sets, shards and rows."""
    by_shard: dict[tuple[str, str], set[int]] = {}
    for letter, shard, row in wanted:
        by_shard.setdefault((letter, shard), set()).add(row)
    for side, preprocess in zip(sides, settings.spec.preprocess, strict=True):
        mine = {shard: sorted(rows) for (letter, shard), rows in sorted(by_shard.items()) if letter == side.letter}
        if side.run is not None:
            yield from _of_run(side, mine)
            continue
        shards = {shard.name: shard for shard in side.shards}
        for name, rows in mine.items():
            with _there(shards[name]):
                for row, jpeg in thumbnails(shards[name], rows, preprocess, settings.threads, SIDE):
                    yield {"set": side.letter, "shard": name, "row": row, "jpeg": jpeg}


def _of_run(side: Side, wanted: dict[str, list[int]]) -> Iterator[dict[str, object]]:
    """Yield pictures that a run holds."""
    assert side.run is not None
    for shard, rows in wanted.items():
        done = set()
        for exemplar in side.run.exemplars(shard=shard, row=rows):
            if exemplar["row"] not in done and exemplar["image"] is not None:
                done.add(exemplar["row"])
                yield {"set": side.letter, "shard": shard, "row": exemplar["row"], "jpeg": _small(exemplar)}


def _small(exemplar: Exemplar) -> bytes:
    sink = io.BytesIO()
    exemplar.view.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0).save(sink, "JPEG", quality=_QUALITY)
    return sink.getvalue()


def _small_pictures(settings: CompareSettings, piece: Piece) -> pa.Table:
    """Return small pictures of a shard's images, of a share of them."""
    shard, spec = piece.shard, settings.spec
    assert shard is not None
    store = Side(piece.set, spec.a if piece.set == A else spec.b).store
    assert store is not None
    rows = store.ids_of(shard.name)["row"].to_numpy()
    chosen = rows[drawn(len(rows), math.ceil(piece.share * len(rows)), spec.options.seed)]
    preprocess = spec.preprocess[piece.set != A]
    with _there(shard):
        found = [
            {"set": piece.set, "shard": shard.name, "row": row, "jpeg": jpeg}
            for row, jpeg in thumbnails(shard, chosen.tolist(), preprocess, settings.threads, THUMBNAIL_SIDE)
        ]
    return pa.Table.from_pylist(found, schema=PICTURE_SCHEMA)


@contextmanager
def _there(shard: Shard) -> Iterator[None]:
    """Say what to do where images are gone."""
    try:
        yield
    except FileNotFoundError as error:
        raise ShardError(
            f"the images of {shard.name} are not where they were ({error}); --no-pictures compares without them"
        ) from error
