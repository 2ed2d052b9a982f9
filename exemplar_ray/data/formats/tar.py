"""Tars as WebDataset has them: a row is a sample, see `tar_samples`.

A sample's image is its member that is one by its name, its label the member `cls`. Nobody knows how many samples there
are before a tar is read to its end, as it has no table of contents. Who has read it knows where they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice

import numpy as np
import pyarrow as pa
import xxhash

from exemplar_ray.data.columns import IMAGE, LABEL, NO_LABELS, USUAL, Chosen, Columns, describe
from exemplar_ray.data.footers import POINTER_BYTES, read_surely, refuse_pointer
from exemplar_ray.data.formats.format import HUNDRED, Format, Look, in_hundreds
from exemplar_ray.data.labels import label_of
from exemplar_ray.data.listed import is_image, shown
from exemplar_ray.data.open_tar import OpenTar
from exemplar_ray.data.shard import ImageRow, ReadingCost, Shard, ShardReader, few_wanted, only_wanted
from exemplar_ray.data.shard_cache import place_of
from exemplar_ray.data.tar_samples import BLOCK, Bytes, Member, Piece, Sample, samples
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.prefetch import map_ahead

TAR = "tar"

_LABEL = "cls"
_FOOTER = "beginning"
_IN_FOOTER = 1 << 16
# What is looked at before a tar is read.
_LOOKED_AT = 1 << 20
# In a storage that is asked for ranges: to fetch more takes less time than to ask again.
_AHEAD = 1 << 20
_PIECE = 16 << 20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_NUMBER = re.compile(r"[+-]?\d+")
_LONGEST_LABEL = 1000
_NAMED, _SHOWN = 8, 40


class TarFormat(Format):
    """See the module."""

    name = TAR

    def look_at(self, shard: Shard, chosen: Chosen) -> Look | None:
        """Read a tar's first samples."""
        try:
            return read_surely(shard.uri, lambda: _look_at(shard, chosen))
        except ShardError as error:
            raise UsageError(f"{error}; run the same command again") from error

    def texts(self, shard: Shard, columns: Columns, most: int) -> set[str]:
        """Go through a tar for its labels."""

        def read() -> set[str]:
            found: set[str] = set()
            what = _member_of(columns.label)
            with OpenTar(shard) as file:
                source = file.hops(_AHEAD)
                for sample in samples(source, shard.name):
                    if what is not None and (member := sample.members.get(what)) is not None:
                        found.add(_text(source.at(member.data, member.data + member.size)))
                    if len(found) > most:
                        break
            return found - {""}

        try:
            return read_surely(shard.uri, read)
        except (ShardError, ValueError) as error:
            raise UsageError(
                f"labels are texts, and those of '{shard.uri}' cannot be read: {error}; mend it, or leave it out"
            ) from error

    def open(self, shard: Shard) -> TarReader:
        """Open the file."""
        return TarReader(shard)

    def groups(self, numbers: Sequence[int]) -> str:
        """Name rows."""
        return in_hundreds(numbers)

    def describe(self, columns: Sequence[Columns | None]) -> list[str]:
        """Say which members are read."""
        return describe(columns, "member", _LABEL)


# Looking at a tar -------------------------------------------------------------------------


def _look_at(shard: Shard, chosen: Chosen) -> Look | None:
    """Read the first samples of a tar; None if it is none.

    Raises:
        UsageError: it is a pointer to a file, or compressed; or where its images or labels are is not clear.
    """
    uri = shard.uri
    with OpenTar(shard) as file:
        beginning = file.read(0, min(_LOOKED_AT, shard.size))
        if shard.size < POINTER_BYTES:
            refuse_pointer(uri, beginning)
        if beginning.startswith(_COMPRESSED):
            raise UsageError(
                f"'{uri}' is compressed, so that no image in it can be found without reading all before it; decompress "
                "it, and give the tar"
            )
        source: Bytes = Piece(beginning)
        first = _first_samples(source, shard)
        if first == [] and len(beginning) < shard.size:
            # A sample may be larger.
            source = file.hops(_IN_FOOTER)
            first = _first_samples(source, shard, most=1)
        if first is None:
            return None
        label, texts = _label_of(uri, first, chosen.label, source)
    image = IMAGE if chosen.image is None else chosen.image.lower()
    if first and not any(_images_in(sample, image, uri) for sample in first):
        raise UsageError(
            f"'{uri}' has no image in its first samples, but {_named(first)}; --image-column NAME says which it is, if "
            "it is one of these"
        )
    footer = f"{_FOOTER} {hashlib.sha256(beginning[:_IN_FOOTER]).hexdigest()}"
    kind = None if texts is None else pa.string() if texts else pa.int64()
    about = len(first)
    if first and len(beginning) < shard.size:
        about = round(shard.size * len(first) / (_end_of(first[-1]) - first[0].start))
    return Look(uri, None, footer, Columns(image, label, bool(texts)), kind, about=about)


def _first_samples(source: Bytes, shard: Shard, most: int | None = None) -> list[Sample] | None:
    """Return samples that are whole, from the first on; None if there is no tar."""
    first: list[Sample] = []
    try:
        for sample in islice(samples(source, shard.name), most):
            first.append(sample)
    except ShardError:
        # It fails when it is scanned.
        return first or None
    # Of a piece's last sample some members may be in the next one.
    return first[:-1] if source.size < shard.size else first


def _end_of(sample: Sample) -> int:
    return max(member.data + -(-member.size // BLOCK) * BLOCK for member in sample.members.values())


def _named(several: Sequence[Sample]) -> str:
    names = sorted({what for sample in several for what in sample.members})
    return ", ".join(map(shown, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def _images_in(sample: Sample, image: str, where: str) -> list[str]:
    """Return which member of a sample is its image: one, or none.

    Raises:
        UsageError: it may be several.
    """
    if image != IMAGE:
        return [image] if image in sample.members else []
    found = [what for what in sample.members if is_image(f"{IMAGE}.{what}")]
    if len(found) > 1:
        raise UsageError(
            f"'{where}' has several images in sample '{shown(sample.key)}': {', '.join(map(shown, found))}; choose one "
            "with --image-column NAME"
        )
    return found


def _label_of(uri: str, first: Sequence[Sample], chosen: str | None, source: Bytes) -> tuple[str | None, bool | None]:
    """Return which members are labels, in terms of `Columns`, and whether they are texts; None without labels.

    Raises:
        UsageError: a label is neither a number nor a text in one line.
    """
    if chosen == NO_LABELS:
        return NO_LABELS, None
    wanted = _LABEL if chosen in (None, LABEL) else str(chosen).lower()
    there = [member for sample in first if (member := sample.members.get(wanted)) is not None]
    if not there:
        return None, None
    try:
        found = [_text(source.at(member.data, member.data + member.size)) for member in there]
    except ValueError as error:
        raise UsageError(
            f"'{uri}': member '{wanted}': {error}; choose another with --label-column NAME, or --label-column "
            f"{NO_LABELS}"
        ) from error
    return (LABEL if wanted == _LABEL else wanted), any(text and not _NUMBER.fullmatch(text) for text in found)


def _member_of(label: str | None) -> str | None:
    """Return which member is the label that `Columns` speak of."""
    return None if label in (None, NO_LABELS) else _LABEL if label == LABEL else label


def _text(content: bytes) -> str:
    """Return what a label's member says.

    Raises:
        ValueError: it says more than a label does.
    """
    text = content[:_LONGEST_LABEL].decode().strip()
    if len(content) > _LONGEST_LABEL or "\n" in text or text[:1] in ("{", "[") or not text.isprintable():
        raise ValueError(f"label {text[:_SHOWN]!r} is neither a whole number nor a name in one line")
    return text


# Reading a tar ----------------------------------------------------------------------------


class TarReader(ShardReader):
    """Reads a tar from its beginning to its end, or samples of which it is known where they are."""

    def __init__(self, shard: Shard) -> None:
        self._shard, self._rows = shard, 0
        columns = shard.columns or USUAL
        if shard.footer is None:
            # One that was no tar when it was listed is seen here first.
            try:
                look = _look_at(shard, Chosen())
            except UsageError as error:
                raise ShardError(str(error)) from error
            columns = look.columns if look is not None else USUAL
        self._image, self._label = columns.image, _member_of(columns.label)
        self._is_unlabelled = columns.label is None
        if columns.texts and columns.names is None:
            raise ShardError(f"{shard.name}: labels are texts; the shard list does not say so")
        self._numbers = {name: i for i, name in enumerate(columns.names or ())} if columns.texts else None
        self._file = OpenTar(shard, place_of(shard.uri, shard.size, shard.stamp))
        self._contents: list[str] | None = None
        self._places: list[int] | None = None

    @property
    def rows(self) -> int:
        """Return how many rows are wanted; if there is no choice, how many `images` has yielded."""
        return self._rows if self._shard.chosen is None else self._shard.images

    def images(self) -> Iterator[ImageRow]:
        """Yield every row that is wanted, in order, with its path."""
        few = few_wanted(self._shard)
        return only_wanted(self._all_images(), self._shard) if few is None else self.select(few)

    def _all_images(self) -> Iterator[ImageRow]:
        source, digests, group = self._file.stream(_PIECE), [], xxhash.xxh3_128()
        self._rows = 0
        for sample in self._noting_places(samples(source, self._shard.name)):
            image, bytes_read = self._row(self._rows, sample, source)
            group.update(b"".join(xxhash.xxh3_128_digest(part) for part in bytes_read))
            self._rows += 1
            if self._rows % HUNDRED == 0:
                digests.append(group.hexdigest())
                group.reset()
            yield image
        if self._rows % HUNDRED:
            digests.append(group.hexdigest())
        self._contents = digests

    def _noting_places(self, all_samples: Iterable[Sample]) -> Iterator[Sample]:
        starts: list[int] = []
        end = 0
        for sample in all_samples:
            starts.append(sample.start)
            end = _end_of(sample)
            yield sample
        self._places = (np.diff([0, *starts, end]) // BLOCK).tolist()

    def paths_and_labels(self) -> Iterator[tuple[list[str | None], list[int | None]]]:
        """Yield the paths and labels of all rows, in order, going from header to header."""
        source = self._file.hops(_AHEAD)
        for sample in self._noting_places(samples(source, self._shard.name)):
            label, _ = self._label_of(sample, source)
            yield [self._path(sample, self._member(sample))], [label]

    def select(self, rows: Iterable[int]) -> Iterator[ImageRow]:
        """Yield the given rows in order: in a request each where it is known where they are, else after going through
        the headers of all before."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64)).tolist()
        return self._found(wanted) if self._shard.places is None else self._at(self._shard.places, wanted)

    def _at(self, blocks: Sequence[int], wanted: Sequence[int]) -> Iterator[ImageRow]:
        places = [BLOCK * place for place in accumulate(blocks)]
        here = [row for row in wanted if row + 1 < len(places)]
        pieces = map_ahead(lambda row: self._file.read(places[row], places[row + 1]), here, threads=1, ahead=1)
        for row, content in zip(here, pieces, strict=True):
            piece = Piece(content)
            sample = next(samples(piece, f"{self._shard.name} row {row}"), None)
            if sample is None:
                raise ShardError(f"{self._shard.name} changed: row {row} is not where it was when it was scanned")
            yield self._row(row, sample, piece)[0]

    def _found(self, wanted: Sequence[int]) -> Iterator[ImageRow]:
        source, left = self._file.hops(_AHEAD), set(wanted)
        for row, sample in enumerate(samples(source, self._shard.name) if left else ()):
            if row in left:
                yield self._row(row, sample, source)[0]
                left.remove(row)
            if not left:
                return

    def _row(self, row: int, sample: Sample, source: Bytes) -> tuple[ImageRow, list[bytes]]:
        """Return a row, and the bytes that it is made of."""
        member = self._member(sample)
        path = self._path(sample, member)
        data = source.at(member.data, member.data + member.size) if member is not None else None
        label, text = self._label_of(sample, source)
        return ImageRow(row, data, path, label), [path.encode(), data or b"", text]

    def _member(self, sample: Sample) -> Member | None:
        """Return a sample's image."""
        try:
            what = next(iter(_images_in(sample, self._image, self._shard.name)), None)
        except UsageError as error:
            raise ShardError(str(error)) from error
        return None if what is None else sample.members[what]

    @staticmethod
    def _path(sample: Sample, member: Member | None) -> str:
        return shown(sample.key if member is None else member.name)

    def _label_of(self, sample: Sample, source: Bytes) -> tuple[int | None, bytes]:
        """Return a sample's label, and the bytes that say it."""
        name = self._shard.name
        text = sample.members.get(self._label) if self._label is not None else None
        content = source.at(text.data, text.data + text.size) if text is not None else b""
        if self._is_unlabelled and _LABEL in sample.members:
            raise ShardError(
                f"{name}: sample '{shown(sample.key)}' has a label ('{_LABEL}'), and the first ones have none; give "
                f"all of them labels, or --label-column {NO_LABELS}"
            )
        try:
            return self._label_number(_text(content)), content
        except ValueError as error:
            raise ShardError(f"{name}: sample '{shown(sample.key)}': member '{self._label}': {error}") from error

    def _label_number(self, text: str) -> int | None:
        if self._numbers is not None or not text:
            return label_of(text, self._numbers)
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"label {text!r} is no whole number, as the first ones are")
        return label_of(int(text))

    @property
    def contents(self) -> list[str] | None:
        """Return an XXH3-128 (hex) of each hundred samples that `images` read; None if it has not read them all, as
        where few are wanted."""
        return self._contents

    def contents_now(self) -> list[str]:
        """Read all samples, and return what `contents` would be."""
        for _ in self._all_images():
            pass
        return self._contents or []

    @property
    def places(self) -> list[int] | None:
        """Return how many blocks of 512 bytes stand before the first sample, and how many each sample takes."""
        return self._places

    def cost(self) -> ReadingCost:
        """Return what reading takes, after a scan."""
        size = self._shard.size
        of_a_row = size // max(self._shard.expected_rows, 1)
        return ReadingCost(-(-size // _PIECE), 1, of_a_row, opening=0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
