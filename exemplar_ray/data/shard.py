"""A shard: some rows of images, its name, and what it is read by. Which kinds of files there are, see `formats`."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from exemplar_ray.data.columns import USUAL, Columns
from exemplar_ray.data.pieces import first_rows

PARQUET = "parquet"

# Where more of a shard's rows are wanted, all are read: that takes fewer requests.
_FEW = 0.25

_SHARDS_TO_QUESTION_WITH = 3
_SHOWN_OF_A_HASH = 12


@dataclass(frozen=True)
class Shard:
    """Some rows of images: a parquet file, a tar, or some files of a folder.

    `name` is its path below the folder that all shards of a run share; it is what results refer to. `uri` is the file,
    and names the commit, if the file is in a repository on the Hub; of images by themselves it is the folder that they
    are in, or the glob that they match.

    `rows` is None while nobody knows, which is always so of tars. `footer` says what the shard is, as far as that can
    be told without reading it: the SHA-256 of a parquet file's footer; of other formats what is hashed stands before
    it. It is None while the file cannot be read as what it should be: such a shard fails when it is scanned, not
    before. `columns` is None where images and labels are in the usual places, and before the shard has been looked at.
    `stamp` is what its storage says of its content, an ETag or when it was modified: with another one the content may
    be another. None where the storage says neither. `chosen` says which rows are wanted, as `subset.packed` writes
    them; None for all.
    """

    name: str
    uri: str
    size: int
    rows: int | None = None
    footer: str | None = None
    columns: Columns | None = None
    stamp: str | None = None
    chosen: str | None = None
    format: str = PARQUET
    """Its format's name, see `formats.registry`."""
    about: int | None = None
    """How many rows there may be, where nobody knows."""
    files: bytes | None = field(default=None, repr=False)
    """Which files it is made of, if not one: see `formats.images`."""
    places: Sequence[int] | None = field(default=None, repr=False)
    """Where its rows are, if a scan has found out; of no interest to records. See `ShardReader.places`."""
    pieces: int = 1
    """How many pieces all its rows fall into, as far as was found out; of no interest to records. See `data.pieces`."""

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "shard"

    @property
    def images(self) -> int:
        """Return how many images there are, or may be, to be scanned; 0 while the file cannot be read."""
        return self.expected_rows if self.chosen is None else len(self.chosen_rows)

    @property
    def chosen_rows(self) -> np.ndarray:
        """Return the rows that are wanted, ascending: int64."""
        if self.chosen is None:
            return np.arange(self.expected_rows)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(self.chosen)), np.uint8)
        return np.flatnonzero(np.unpackbits(bits, count=self.rows))

    @property
    def expected_rows(self) -> int:
        """Return how many rows it has, or may have; 0 while it cannot be read."""
        return (self.about or 0) if self.rows is None else self.rows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        values = {name: getattr(self, name) for name in ("name", "uri", "size", "rows", "footer")}
        if self.columns is not None:
            values["columns"] = self.columns.to_json()
        values |= {name: value for name in ("stamp", "chosen", "about") if (value := getattr(self, name)) is not None}
        if self.format != PARQUET:
            values["format"] = self.format
        return values if self.files is None else {**values, "files": base64.b64encode(self.files).decode()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Shard:
        """Read back what `to_json` wrote.

        Args:
            class_names: of the data set: what labels that are texts may be.
        """
        known = dict(values)
        if (columns := known.pop("columns", None)) is not None:
            known["columns"] = Columns.from_json(columns, class_names)
        if (files := known.pop("files", None)) is not None:
            known["files"] = base64.b64decode(files)
        return cls(**known)

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Say how it differs from what a completion record says of it; None if it does not.

        A record without a footer is of a file that could not be looked at when the run was planned, and was scanned.
        """
        then, now = recorded["footer"], self.footer
        if self.files is not None and recorded["rows"] != self.rows:
            return f"{recorded['rows']} images then, {self.rows} now"
        if recorded["size"] != self.size:
            return f"{recorded['size']} bytes then, {self.size} now"
        if then == now or then is None:
            return None
        if now is None:
            return f"{self.size} bytes as then, but no longer a {self.format} file"
        what = now.rpartition(" ")[0] or "footer"
        short = (footer.rpartition(" ")[2][:_SHOWN_OF_A_HASH] for footer in (then, now))
        return "{} bytes as then, but another {}: SHA-256 {} then, {} now".format(self.size, what, *short)

    def may_differ(self, recorded: Mapping[str, Any]) -> bool:
        """Whether only reading the file can tell that it is the one of a completion record."""
        then = recorded.get("stamp")
        return then is not None and self.stamp is not None and then != self.stamp


class ImageRow(NamedTuple):
    """One row of a shard; `data` is None where the row has no image bytes."""

    row: int
    data: bytes | None
    path: str | None
    label: int | None


def row_of_skipped(image: Mapping[str, Any]) -> str:
    """Say which image of a shard was skipped, of what its completion record says."""
    path = image.get("path")
    return f"row {image['row']}" + (f" ({path})" if path else "")


class ReadingCost(NamedTuple):
    """What reading a shard takes, from a storage that is asked for ranges of bytes."""

    requests: int
    """To read all rows, the footer included."""
    requests_of_a_row: int
    """To read one, the footer included."""
    bytes_of_a_row: int
    looking: int = 1
    """To find out what is where, before."""
    opening: int = 1
    """Of the requests of a row, those that are made once a shard."""
    files: int = 1
    """How many files are opened to read all rows."""


class ShardReader(ABC):
    """Reads rows of one shard, one small batch at a time. Another kind of file is another subclass, see `formats`.

    Raises:
        ShardError: the file is not the one that the shard list describes, or it is damaged, or has a label that is
            none. Corrupt parquet files raise pyarrow's errors, unreachable ones OSError.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def rows(self) -> int:
        """Return how many rows are wanted; where nobody knows before, how many `images` has yielded."""

    @abstractmethod
    def images(self) -> Iterator[ImageRow]:
        """Yield every row that is wanted, in order; `path` is None where it takes reading more."""

    @abstractmethod
    def select(self, rows: Iterable[int]) -> Iterator[ImageRow]:
        """Yield the given rows in order, with their paths, reading little else; those that there are not are passed
        over."""

    @abstractmethod
    def paths_and_labels(self) -> Iterator[tuple[list[str | None], list[int | None]]]:
        """Yield the paths and labels of all rows, in order, batch by batch, without reading images."""

    @property
    @abstractmethod
    def contents(self) -> list[str] | None:
        """Return what the bytes were that `images` read: an XXH3-128 (hex) of each group of rows; None if it has
        not read them all, as where few rows are wanted."""

    @abstractmethod
    def contents_now(self) -> list[str]:
        """Read the bytes that `images` reads, and return what `contents` would be."""

    @property
    def cuts(self) -> Sequence[int]:
        """Return the rows that pieces begin with, but for the first piece's, ascending: none where there is one piece,
        as where a row is reached through all before it, where nobody knows how many there are, and where few are
        wanted. See `data.pieces`."""
        return ()

    @property
    def footer(self) -> str | None:
        """Return the SHA-256 (hex) of the footer of a file that may fall into pieces, so that those who read a piece
        each can tell whether they have read the same file; None for others."""
        return None

    @property
    def places(self) -> Sequence[int] | None:
        """Return where rows are, if `images` or `paths_and_labels` has found out and `select` is better off with it: it
        goes to the next reader as `Shard.places`."""
        return None

    @abstractmethod
    def cost(self) -> ReadingCost:
        """Find out what reading the shard takes."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


def few_wanted(shard: Shard) -> np.ndarray | None:
    """Return the rows of a shard that are wanted, if they are so few that they are better read one by one."""
    if shard.chosen is None or len(wanted := shard.chosen_rows) >= _FEW * (shard.rows or 0):
        return None
    return wanted


def pieces_to_share(shard: Shard) -> int:
    """Return how many pieces of a shard may be read by as many readers, see `data.pieces`."""
    return 1 if few_wanted(shard) is not None else shard.pieces


def small_pieces(shard: Shard) -> list[int]:
    """Return the rows that small pieces begin with, but for the first piece's, see `data.pieces`: none where the shard
    has other pieces, where nobody knows how many rows there are, and where few are wanted."""
    if shard.rows is None or shard.pieces > 1 or few_wanted(shard) is not None:
        return []
    return first_rows(shard.rows)


def only_wanted(images: Iterable[ImageRow], shard: Shard) -> Iterator[ImageRow]:
    """Yield those of all rows that are wanted."""
    if shard.chosen is None:
        yield from images
        return
    wanted = set(shard.chosen_rows.tolist())
    yield from (image for image in images if image.row in wanted)


def to_question_with(shards: Sequence[Shard]) -> list[Shard]:
    """Return the few shards whose first images a network is questioned with."""
    return [shard for shard in shards if shard.images][:_SHARDS_TO_QUESTION_WITH]


def labels_are_texts(shards: Sequence[Shard]) -> bool:
    """Whether a data set's labels are texts."""
    return any(shard.columns is not None and shard.columns.texts for shard in shards)


def identity_of_columns(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return what is unusual about where a data set's images and labels are, as far as it decides a result.

    The keys are the user's; there are none where images are in the usual places, and labels whole numbers.
    """
    looked_at = [shard.columns or USUAL for shard in shards if shard.footer is not None]
    images = sorted({columns.image for columns in looked_at})
    labels = sorted({columns.label for columns in looked_at if columns.label is not None})
    identity: dict[str, Any] = {}
    if images and images != [USUAL.image]:
        identity["image_column"] = images[0] if len(images) == 1 else images
    if labels and labels != [USUAL.label]:
        identity["label_column"] = labels[0] if len(labels) == 1 else labels
    names = next((columns.names for columns in looked_at if columns.texts), None)
    if names is not None:
        # A label's number is its place among these.
        identity["label_texts"] = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    return identity
