"""Images that are files of their own, in a folder and the folders in it, whose names are the classes.

A shard is a run of these files in the order of their names, so that a row is always the same file. How long a run is
depends on how many files there are, and on nothing else: about sixteen runs, of 100 files at least and 1,000 at most.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from exemplar_ray.data.columns import LABEL, NO_LABELS, Chosen, Columns, lacking_labels
from exemplar_ray.data.footers import POINTER_BYTES, read_surely, refuse_pointer
from exemplar_ray.data.formats.format import HUNDRED, Format, Look, in_hundreds
from exemplar_ray.data.labels import label_of
from exemplar_ray.data.listed import ImageFile, ImageFolder, class_of
from exemplar_ray.data.shard import ImageRow, ReadingCost, Shard, ShardReader
from exemplar_ray.errors import ShardError, UsageError
from exemplar_ray.prefetch import map_ahead
from exemplar_ray.storage import hub
from exemplar_ray.storage.hub_uri import is_on_hub

IMAGES = "images"

# {files in a run: of how many files at most}; beyond these, runs are of the longest.
_RUNS = {100: 1_600, 200: 3_200, 500: 8_000}
_LONGEST_RUN = 1_000
_FOOTER = "list of files"
# What takes long on a storage is the answer to each request.
_THREADS, _AHEAD = 16, 32
_END = "\0"


def files_in_a_run(files: int) -> int:
    """Return how many files a shard of a folder has.

    >>> [files_in_a_run(files) for files in (24, 1_600, 1_601, 60_000)]
    [100, 100, 200, 1000]
    """
    return next((run for run, most in _RUNS.items() if files <= most), _LONGEST_RUN)


def shards_of(folder: ImageFolder) -> list[Shard]:
    """Cut the images of a folder in runs: shards whose names are places below the folder."""
    files, run = folder.files, files_in_a_run(len(folder.files))
    runs = [files[start : start + run] for start in range(0, len(files), run)]
    return [
        Shard(
            name=f"{folder.place.rstrip('/')}/images-{number:05d}-of-{len(runs):05d}",
            uri=folder.given,
            size=sum(file.size for file in of_run),
            rows=len(of_run),
            stamp=_stamp(of_run),
            format=IMAGES,
            files=_packed(folder.uri, of_run),
        )
        for number, of_run in enumerate(runs)
    ]


def _stamp(files: Sequence[ImageFile]) -> str | None:
    """Return what tells of other contents, of what the storage says of files; None where it says nothing of one."""
    stamps = [file.stamp for file in files if file.stamp is not None]
    return f"of files {xxhash.xxh3_128_hexdigest(_END.join(stamps).encode())}" if len(stamps) == len(files) else None


# Which files a shard is made of ------------------------------------------------------------


class Files(NamedTuple):
    """The files of a run, as a shard carries them: a data set may have millions."""

    folder: str
    """URI."""
    names: list[str]
    sizes: list[int]

    def place(self, row: int) -> str:
        """Return where a file is, for messages."""
        return f"{self.folder.rstrip('/')}/{self.names[row]}"


def _packed(folder: str, files: Sequence[ImageFile]) -> bytes:
    # A name has anything but this in it.
    return zlib.compress(_END.join([folder, *(f"{file.size}/{file.name}" for file in files)]).encode())


def _unpacked(shard: Shard) -> Files:
    """Raises:
    ShardError: the shard does not say which files it is made of.
    """
    if shard.files is None:
        raise ShardError(f"{shard.name}: which files it is made of is not known; give the folder of images (--data)")
    folder, *files = zlib.decompress(shard.files).decode().split(_END)
    sizes, _, names = zip(*(file.partition("/") for file in files), strict=True)
    return Files(folder, list(names), list(map(int, sizes)))


# The format -------------------------------------------------------------------------------


class ImagesFormat(Format):
    """See the module."""

    name = IMAGES

    def look_at(self, shard: Shard, chosen: Chosen) -> Look:
        """Find out whether there are classes; reads nothing, but one file that may be a pointer to another."""
        if chosen.image is not None:
            raise UsageError(f"'{shard.uri}' stands for images by themselves, which have no columns (--image-column)")
        files = _unpacked(shard)
        _refuse_pointer(files)
        listed = "\n".join(f"{size}/{name}" for size, name in zip(files.sizes, files.names, strict=True))
        label = LABEL if any(map(class_of, files.names)) else None
        if label is not None and chosen.label not in (None, LABEL):
            label = NO_LABELS if chosen.label == NO_LABELS else None
        is_labelled = label == LABEL
        return Look(
            uri=shard.uri,
            rows=len(files.names),
            footer=f"{_FOOTER} {hashlib.sha256(listed.encode()).hexdigest()}",
            columns=Columns(label=label, texts=is_labelled),
            label_type=pa.string() if is_labelled else None,
        )

    def texts(self, shard: Shard, columns: Columns, most: int) -> set[str]:
        """Return the names of folders."""
        return {name for name in map(class_of, _unpacked(shard).names) if name is not None}

    def open(self, shard: Shard) -> ImagesReader:
        """Open the folder."""
        return ImagesReader(shard)

    def groups(self, numbers: Sequence[int]) -> str:
        """Name rows."""
        return in_hundreds(numbers)

    def describe(self, columns: Sequence[Columns | None]) -> list[str]:
        """Say what the classes are."""
        names = next((one.names for one in columns if one is not None and one.names), None)
        lines = [f"labels are the names of {len(names)} folders, such as '{names[0]}'"] if names else []
        return lines + lacking_labels(columns, "the images are in no folders that could be classes")


def _refuse_pointer(files: Files) -> None:
    """Refuse files that are pointers of Git LFS to images; the first tells of all.

    Raises:
        PointerError: they are.
        UsageError: the first cannot be read.
    """
    if files.sizes[0] < POINTER_BYTES:
        read = _reading(files)
        refuse_pointer(files.place(0), read_surely(files.place(0), lambda: read(0)))


def _reading(files: Files) -> Any:
    """Return what reads a file's bytes, by its row."""
    fs, folder = hub.file_system(files.folder)
    below = f"{folder.rstrip('/')}/" if folder else ""

    def read(row: int) -> bytes:
        # The Hub would list the folder to find out the size.
        known = {"size": files.sizes[row], "cache_type": "none"} if is_on_hub(files.folder) else {}
        return fs.cat_file(below + files.names[row], **known)

    return read


class ImagesReader(ShardReader):
    """Reads files, each in one request."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._files = _unpacked(shard)
        self._read_file = _reading(self._files)
        columns = shard.columns
        names = columns.names or () if columns is not None and columns.texts else ()
        self._numbers = {name: number for number, name in enumerate(names)}
        self._contents: list[str] | None = None

    @property
    def rows(self) -> int:
        """Return how many files are wanted."""
        return self._shard.images

    def images(self) -> Iterator[ImageRow]:
        """Yield every row that is wanted, in order, with its path."""
        groups = [xxhash.xxh3_128() for _ in range(0, len(self._files.names), HUNDRED)]
        for image in map_ahead(self._read, self._shard.chosen_rows.tolist(), _THREADS, _AHEAD):
            groups[image.row // HUNDRED].update(xxhash.xxh3_128_digest(image.data or b""))
            yield image
        self._contents = [group.hexdigest() for group in groups]

    def select(self, rows: Iterable[int]) -> Iterator[ImageRow]:
        """Yield the given rows in order."""
        wanted = np.unique(np.fromiter(rows, dtype=np.int64)).tolist()
        there = len(self._files.names)
        yield from map_ahead(self._read, (row for row in wanted if row < there), _THREADS, _AHEAD)

    def paths_and_labels(self) -> Iterator[tuple[list[str | None], list[int | None]]]:
        """Yield the paths and labels of all rows, which reads nothing."""
        yield list(self._files.names), [self._label(row) for row in range(len(self._files.names))]

    @property
    def contents(self) -> list[str] | None:
        """Return an XXH3-128 (hex) of each hundred files, as far as they are wanted; None before they are read."""
        return self._contents

    def contents_now(self) -> list[str]:
        """Read all files that are wanted, and return what `contents` would be."""
        for _ in self.images():
            pass
        return self._contents or []

    def cost(self) -> ReadingCost:
        """Return what reading takes: a request a file."""
        of_a_row = self._shard.size // max(len(self._files.names), 1)
        return ReadingCost(self.rows, 1, of_a_row, looking=0, opening=0, files=self.rows)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _read(self, row: int) -> ImageRow:
        size = self._files.sizes[row]
        try:
            content = self._read_file(row)
        except FileNotFoundError as error:
            raise ShardError(
                f"{self._shard.name} changed: '{self._files.place(row)}' was listed and is not there any more; run the "
                "same command again"
            ) from error
        if len(content) != size:
            raise ShardError(
                f"{self._shard.name} changed: '{self._files.place(row)}' had {size} bytes when it was listed, and has "
                f"{len(content)} now; run the same command again"
            )
        return ImageRow(row, content, self._files.names[row], self._label(row))

    def _label(self, row: int) -> int | None:
        try:
            return label_of(class_of(self._files.names[row]), self._numbers) if self._numbers else None
        except ValueError as error:
            raise ShardError(f"{self._shard.name}: '{self._files.place(row)}': {error}") from error
