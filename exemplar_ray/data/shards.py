"""Where images come from: list parquet shards, look at them, read rows of one.

A shard is one parquet file in the layout of `ILSVRC/imagenet-1k` on the Hugging Face Hub:
`image: struct<bytes, path>` (a plain binary column is taken too) and, if the data is
labelled, `label: int64` with the class names in the `huggingface` schema metadata. What
else is taken, see `columns`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from exemplar_ray.data.columns import (
    TEXT,
    USUAL,
    Chosen,
    Columns,
    find_columns,
    image_bytes,
    image_fields,
    image_paths,
    label_kind,
    label_reader,
)
from exemplar_ray.data.inspection import PATHS_ONLY, look_at
from exemplar_ray.data.listing import LeftOut, list_files
from exemplar_ray.data.row_groups import RowGroupFile
from exemplar_ray.data.shard_cache import place_of
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.storage import hub

_SHARDS_TO_QUESTION_WITH = 3
_SHOWN_OF_A_HASH = 12
# Where more of a shard's rows are wanted, all are read: a range a row group takes fewer requests.
_FEW = 0.25


@dataclass(frozen=True)
class Shard:
    """One parquet file of images.

    `name` is its path below the folder that all shards of a run share; it is what results
    refer to. `uri` names the commit, if the file is in a repository on the Hub. `rows` and
    `footer` (SHA-256 of the parquet footer) are None while the file cannot be read as parquet:
    such a shard fails when it is scanned, not before. `columns` is None where images and labels are in the usual
    columns, and before the shard has been looked at. `stamp` is what its storage says of its content, an ETag or when
    it was modified: with another one the content may be another. None where the storage says neither. `chosen` says
    which rows are wanted, as `subset.packed` writes them; None for all.
    """

    name: str
    uri: str
    size: int
    rows: int | None = None
    footer: str | None = None
    columns: Columns | None = None
    stamp: str | None = None
    chosen: str | None = None

    @property
    def images(self) -> int:
        """Return how many images there are to be scanned; 0 while the file cannot be read."""
        return (self.rows or 0) if self.chosen is None else len(self.chosen_rows)

    @property
    def chosen_rows(self) -> np.ndarray:
        """Return the rows that are wanted, ascending: int64."""
        if self.chosen is None:
            return np.arange(self.rows or 0)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(self.chosen)), np.uint8)
        return np.flatnonzero(np.unpackbits(bits, count=self.rows))

    @property
    def kind(self) -> str:
        """Return what it is called in records and for people."""
        return "shard"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        names = ("name", "uri", "size", "rows", "footer")
        values = {name: getattr(self, name) for name in names}
        if self.columns is not None:
            values["columns"] = self.columns.to_json()
        unusual = {name: getattr(self, name) for name in ("stamp", "chosen")}
        return {**values, **{name: value for name, value in unusual.items() if value is not None}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Shard:
        """Read back what `to_json` wrote.

        Args:
            class_names: of the data set: what labels that are texts may be.
        """
        columns = values.get("columns")
        known = {name: value for name, value in values.items() if name != "columns"}
        return cls(**known, columns=None if columns is None else Columns.from_json(columns, class_names))

    def change_since(self, recorded: Mapping[str, Any]) -> str | None:
        """Say how the file differs from what a completion record says of it; None if it does not.

        A record without a footer is of a file that could not be looked at when the run was planned, and was scanned.
        """
        then, now = recorded["footer"], self.footer
        if recorded["size"] != self.size:
            return f"{recorded['size']} bytes then, {self.size} now"
        if then == now or then is None:
            return None
        if now is None:
            return f"{self.size} bytes as then, but no longer a parquet file"
        short = (footer[:_SHOWN_OF_A_HASH] for footer in (then, now))
        return "{} bytes as then, but another footer: SHA-256 {} then, {} now".format(self.size, *short)

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


class ReadingCost(NamedTuple):
    """What reading a shard takes, from a storage that is asked for ranges of bytes."""

    requests: int
    """To read all rows, the footer included."""
    requests_of_a_row: int
    """To read one, the footer included."""
    bytes_of_a_row: int


def discover(
    data: Sequence[str], revisions: Mapping[str, str] | None = None, left_out: LeftOut | None = None
) -> list[Shard]:
    """List the shards that files, folders and globs stand for, sorted by name.

    Args:
        data: paths or URIs of any file system that fsspec opens. A folder stands for the
            `*.parquet` files directly in it.
        revisions: the commits at which to read repositories on the Hub, as
            `hub.resolve_revisions` returns them; None to look them up.
        left_out: gets what is passed over: hidden files, and those named before.

    Raises:
        UsageError: nothing matches, or a file system cannot be reached.
    """
    if revisions is None:
        revisions = hub.resolve_revisions(data)
    # Names are of places, not of commits: a run is the same at another commit if its shards are.
    files = list_files(data, revisions, LeftOut() if left_out is None else left_out)
    levels = zip(*(file.place.split("/")[:-1] for file in files), strict=False)
    shared = len(list(takewhile(lambda folders: len(set(folders)) == 1, levels)))
    shards = [Shard("/".join(file.place.split("/")[shared:]), file.uri, file.size, stamp=file.stamp) for file in files]
    return sorted(shards, key=lambda shard: shard.name)


def inspect(
    shards: Sequence[Shard], chosen: Chosen | None = None, numbers_are_known: bool = False
) -> tuple[list[Shard], list[str] | None]:
    """Look at every shard: fill in `rows`, `footer` and `columns`, and find the class names.

    Nothing but footers is read if labels are whole numbers. Texts are read to find out which classes there are.

    Args:
        chosen: the columns that the user names.
        numbers_are_known: the user says what class each number is, so that shards may name them differently.

    Returns:
        The shards, completed where they are parquet files, and the class names (index = label): the texts, if labels
        are texts, else those that the shards have, or None.

    Raises:
        UsageError: a shard cannot be looked at now, is a pointer of Git LFS, has no image column or none that can be
            told from others, or labels that are none; or two shards do not agree on what labels are.
    """
    looked_at = look_at([(shard.uri, shard.size) for shard in shards], chosen or Chosen(), numbers_are_known)
    inspected = [
        shard
        if look is None
        else replace(shard, rows=look.rows, footer=look.footer, columns=None if look.columns == USUAL else look.columns)
        for shard, look in zip(shards, looked_at.looks, strict=True)
    ]
    return inspected, looked_at.class_names


def to_question_with(shards: Sequence[Shard]) -> list[Shard]:
    """Return the few shards whose first images a network is questioned with."""
    return [shard for shard in shards if shard.images][:_SHARDS_TO_QUESTION_WITH]


def labels_are_texts(shards: Sequence[Shard]) -> bool:
    """Whether a data set's labels are texts."""
    return any(shard.columns is not None and shard.columns.texts for shard in shards)


def identity_of_columns(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return what is unusual about where a data set's images and labels are, as far as it decides a result.

    The keys are the user's; there are none where images are in `image`, and labels whole numbers in `label`.
    """
    looked_at = [shard.columns or USUAL for shard in shards if shard.rows is not None]
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


class ShardReader:
    """Reads rows of one shard, one small batch at a time.

    Raises:
        ShardError: the file is not the one that the shard list describes, has no image
            column, or a label that is none. Corrupt files raise pyarrow's errors, unreachable ones OSError.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._file = RowGroupFile(shard.name, place_of(shard.uri, shard.size, shard.stamp), shard.size)
        try:
            rows = self._file.metadata.num_rows
            if shard.rows is not None and rows != shard.rows:
                raise ShardError(f"{shard.name} changed: {rows} rows, the shard list says {shard.rows}")
            self.rows = rows if shard.chosen is None else shard.images
            self._find_columns(self._file.schema)
        except BaseException:
            self._file.close()
            raise

    def _find_columns(self, schema: pa.Schema) -> None:
        """Find out what to read.

        Raises:
            ShardError: there are no images where they should be, or labels are none.
        """
        shard = self._shard
        try:
            # One that has been looked at says what is unusual about it.
            looked_at = USUAL if shard.rows is not None else None
            columns = shard.columns or looked_at or find_columns(schema, Chosen(), shard.name)
        except UsageError as error:
            raise ShardError(str(error)) from error
        fields = image_fields(schema, columns.image)
        if fields is None:
            raise ShardError(f"{shard.name} changed: it has no images in column '{columns.image}'")
        self._image, self._image_columns = columns.image, fields
        # A shard that was no parquet file when it was listed is seen here first.
        self._label = columns.label_column if columns.label_column in schema.names else None
        if self._label is None:
            return
        kind = schema.field(self._label).type
        if label_kind(kind) is None or (label_kind(kind) == TEXT and columns.names is None):
            raise ShardError(f"{shard.name}: column '{self._label}' is {kind}; the shard list does not say so")
        self._read_labels = label_reader(kind, columns.names)

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def images(self) -> Iterator[ImageRow]:
        """Yield every row that is wanted, in order; `path` may be None."""
        if self._shard.chosen is None:
            yield from self._all_images()
            return
        wanted = self._shard.chosen_rows
        if len(wanted) < _FEW * self._file.metadata.num_rows:
            yield from self.select(wanted)
            return
        is_wanted = np.zeros(self._file.metadata.num_rows, bool)
        is_wanted[wanted] = True
        yield from (image for image in self._all_images() if is_wanted[image.row])

    def _all_images(self) -> Iterator[ImageRow]:
        row = 0
        has_images = False
        for batch in self._file.read(self._columns(self._image_columns[:1])):
            images = image_bytes(batch[self._image])
            has_images = has_images or any(images)
            for data, label in zip(images, self._labels(batch), strict=True):
                yield ImageRow(row, data, None, label)
                row += 1
        if row and not has_images and any(image.path for image in self.select([0])):
            raise ShardError(f"{self._shard.name} {PATHS_ONLY}")

    def paths_and_labels(self) -> Iterator[tuple[list[str | None], list[int | None]]]:
        """Yield the paths and labels of all rows, in order, batch by batch, without reading images."""
        columns = self._columns(self._image_columns[1:])
        if not columns:
            rows = self._file.metadata.num_rows
            yield list[str | None]([None] * rows), list[int | None]([None] * rows)
            return
        for batch in self._file.read(columns):
            paths: list[str | None] = [None] * len(batch)
            if len(self._image_columns) > 1:
                paths = image_paths(batch[self._image])
            yield paths, self._labels(batch)

    @property
    def contents(self) -> list[str] | None:
        """Return what the bytes were that `images` read: an XXH3-128 (hex) of each row group; None if it has
        not read them all, as where few rows are wanted."""
        contents = self._file.contents
        groups = range(self._file.metadata.num_row_groups)
        return [contents[group] for group in groups] if len(contents) == len(groups) else None

    def contents_now(self) -> list[str]:
        """Read the bytes that `images` reads, and return what `contents` would be."""
        return self._file.digests(self._columns(self._image_columns[:1]))

    def cost(self) -> ReadingCost:
        """Find out what reading the file takes; its first row is read for that."""
        of_a_row = self._file.cost_of_a_row(self._columns(self._image_columns))
        return ReadingCost(self._file.requests(self._columns(self._image_columns[:1])), *of_a_row)

    def select(self, rows: Iterable[int]) -> Iterator[ImageRow]:
        """Yield the given rows in order, reading only what holds them: pages, where the file has a page index, else
        row groups."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64))
        at = 0
        for batch, places in self._file.select(self._columns(self._image_columns), wanted):
            picked = _take(batch, places)
            rows_here = wanted[at : at + len(places)].tolist()
            at += len(places)
            images = picked[self._image]
            yield from map(ImageRow, rows_here, image_bytes(images), image_paths(images), self._labels(picked))

    def _columns(self, of_images: list[str]) -> list[str]:
        return [*of_images, *([] if self._label is None else [self._label])]

    def _labels(self, batch: pa.RecordBatch) -> list[int | None]:
        if self._label is None:
            return [None] * len(batch)
        try:
            return self._read_labels(batch[self._label])
        except ValueError as error:
            raise ShardError(f"{self._shard.name}: column '{self._label}': {error}") from error


def _take(batch: pa.RecordBatch, places: np.ndarray) -> pa.RecordBatch:
    """Return rows of a batch; pyarrow has no `take` of views, such as `binary_view`."""
    try:
        return batch.take(pa.array(places))
    except pa.ArrowNotImplementedError:
        columns = [pa.array([column[i].as_py() for i in places.tolist()], column.type) for column in batch.columns]
        return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def imagenet_schema(class_names: Sequence[str] | None) -> pa.Schema:
    """Return the schema of a shard, with the Hugging Face features that name its classes."""
    label = {"names": list(class_names), "_type": "ClassLabel"} if class_names else None
    features = {"image": {"_type": "Image"}, "label": label or {"dtype": "int64", "_type": "Value"}}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
