"""One shard's images on their way to a network, batch by batch, and the account of its rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor

from exemplar_ray.data.batches import Batch, batches
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.preprocess import DECODERS
from exemplar_ray.data.shard import ImageRow, Shard, row_of_skipped, small_pieces
from exemplar_ray.errors import ShardError
from exemplar_ray.network.inputs import labels_for
from exemplar_ray.network.spec import NetworkSpec

_REASONS_IN_MESSAGE = 3

_log = logging.getLogger(__name__)

Prepare = Callable[[Iterable[ImageRow]], Iterable[ImageRow]]
"""Looks at images on their way to the decoder, while their bytes are there."""


@dataclass(frozen=True)
class ReadOptions:
    """How a shard is read. But for `decode`, none of it changes the numbers."""

    batch_size: int
    """Images a forward pass: every one has this shape, the last batch is padded."""
    threads: int
    """How many decode at the same time."""
    max_skipped: int = 0
    """Undecodable images that a shard may have before it fails."""
    decode: str = DECODERS[0]
    """See `preprocess.DECODERS`."""
    most_rows: int | None = None
    """Read only so many."""
    small_pieces: bool = False
    """Of a shard that has no other pieces there are small ones, see `data.pieces`."""


@dataclass
class RowsRead:
    """What reading a shard came to. `scored` and the skipped images add up to `rows`."""

    rows: int
    scored: int
    skipped_images: list[dict[str, object]] = field(default_factory=list)
    """[{"row": int, "reason": str}], in order; with the "path" where the reader knows it."""
    contents: list[str] | None = None
    """What the bytes were that were read, see `ShardReader.contents`."""
    places: Sequence[int] | None = None
    """Where rows are, see `ShardReader.places`."""
    footer: str | None = None
    """Of the file that was read, see `ShardReader.footer`."""
    of_small_piece: bool = False
    """It was read in the whole shard, which `contents` are of."""

    def joined(self, following: RowsRead, shard: Shard) -> RowsRead:
        """Return what reading a piece came to, and the one that follows.

        Raises:
            ShardError: they are of different files.
        """
        is_same = self.footer == following.footer
        if self.of_small_piece:
            is_same, contents = is_same and self.contents == following.contents, self.contents
        else:
            known = self.contents is not None and following.contents is not None
            contents = [*(self.contents or []), *(following.contents or [])] if known else None
        if not is_same:
            raise ShardError(f"{shard.name} changed while it was read; run the same command again")
        return RowsRead(
            rows=self.rows + following.rows,
            scored=self.scored + following.scored,
            skipped_images=[*self.skipped_images, *following.skipped_images],
            contents=contents,
            footer=self.footer,
            of_small_piece=self.of_small_piece,
        )

    def refuse(self, shard: Shard, max_skipped: int) -> None:
        """Refuse what is not all of a shard.

        Raises:
            ShardError: more than `max_skipped` images cannot be decoded, or the rows do not add up.
        """
        if len(self.skipped_images) > max_skipped:
            raise ShardError(_too_many_skipped(shard, self.skipped_images, max_skipped))
        refuse_lost_rows(shard, self.rows, self.scored, len(self.skipped_images))

    def facts(self) -> dict[str, Any]:
        """Return what a completion record says of it: plain JSON values."""
        return {
            "rows": self.rows,
            "scored": self.scored,
            "skipped": len(self.skipped_images),
            "skipped_images": self.skipped_images,
            "contents": self.contents,
            **({} if self.places is None else {"places": list(self.places)}),
        }


class ShardImages:
    """Reads a shard's images; a context manager.

    Args:
        network: which the images are for.
        device: where the batches go.
        piece: which piece of the shard to read, see `data.pieces`; None for all.
    """

    def __init__(
        self,
        network: NetworkSpec,
        shard: Shard,
        reading: ReadOptions,
        device: torch.device,
        piece: int | None = None,
    ) -> None:
        self._network, self._shard, self._reading, self._device, self._piece = network, shard, reading, device, piece
        self._small = small_pieces(shard) if reading.small_pieces and reading.most_rows is None else []
        self._skipped: list[dict[str, object]] = []
        self._scored = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._reader = self._open.enter_context(open_shard(self._shard, None if self._small else self._piece))
        return self

    @property
    def cuts(self) -> Sequence[int]:
        """Return the rows that a batch begins with, as a piece does: see `ShardReader.cuts`."""
        return self._small or (self._reader.cuts if self._reading.most_rows is None else ())

    @property
    def _small_piece(self) -> range | None:
        """The rows of the small piece that is wanted; None where it is no such piece."""
        if self._piece is None or not self._small:
            return None
        edges = [0, *self._small, self._shard.expected_rows]
        return range(edges[self._piece], edges[self._piece + 1])

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def batches(self, prepare: Prepare = iter) -> Iterator[tuple[Batch, Tensor | None]]:
        """Yield batches that have images, with the labels that the network is to be given, if it takes any.

        Every batch has the same shape (the last one is padded), so an image's activation does not depend on how many
        images were left over.

        Raises:
            ShardError: the file is not the listed one, or an image lacks a label that the network is to be given.
        """
        shard, reading = self._shard, self._reading
        read: Iterable[ImageRow] = islice(self._reader.images(), reading.most_rows)
        if (small := self._small_piece) is not None:
            read = (image for image in read if image.row in small)
        images = prepare(read)
        preprocess = self._network.preprocess
        decoded = batches(
            images, preprocess, reading.batch_size, reading.threads, self._device, reading.decode, self.cuts
        )
        for batch in decoded:
            for image, reason in batch.undecodable:
                _log.info("%s row %d is skipped: %s", shard.name, image.row, reason)
                known = {} if image.path is None else {"path": image.path}
                self._skipped.append({"row": image.row, **known, "reason": str(reason)})
            # A shard that has failed is read to its end, so that the message can name every
            # bad image, but nothing more is computed for it.
            if len(self._skipped) > reading.max_skipped or not batch.images:
                continue
            self._scored += len(batch.images)
            yield batch, labels_for(self._network, shard.name, batch.images, len(batch.crops))

    def rows_read(self) -> RowsRead:
        """Return what reading it came to, once all batches have been taken.

        Raises:
            ShardError: more than `max_skipped` images cannot be decoded, or the rows do not add up. Of a piece, its
                shard is judged by, see `RowsRead.refuse`.
        """
        reader, most, small = self._reader, self._reading.most_rows, self._small_piece
        rows = reader.rows if most is None else min(reader.rows, most)
        if small is not None:
            rows = sum(row in small for row in self._shard.chosen_rows.tolist())
        read = RowsRead(
            rows, self._scored, self._skipped, reader.contents, reader.places, reader.footer, small is not None
        )
        if self._piece is None:
            read.refuse(self._shard, self._reading.max_skipped)
        return read


def refuse_lost_rows(shard: Shard, rows: int, scored: int, skipped: int) -> None:
    """Refuse a shard of which rows were neither scored nor skipped.

    Raises:
        ShardError: the rows do not add up.
    """
    if rows != scored + skipped:
        raise ShardError(f"{shard.name}: {rows} rows, but {scored} scored and {skipped} skipped")


def _too_many_skipped(shard: Shard, skipped: list[dict[str, object]], max_skipped: int) -> str:
    shown = "; ".join(f"{row_of_skipped(s)}: {s['reason']}" for s in skipped[:_REASONS_IN_MESSAGE])
    more = f"; and {len(skipped) - _REASONS_IN_MESSAGE} more" if len(skipped) > _REASONS_IN_MESSAGE else ""
    return (
        f"{shard.name}: {len(skipped)} undecodable images, max_skipped is {max_skipped} ({shown}{more}); "
        f"repair the shard, or run again with --max-skipped {len(skipped)}"
    )
