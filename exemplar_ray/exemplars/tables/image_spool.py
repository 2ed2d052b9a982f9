"""Gathered images and maps on their way to the result: few in memory, more on the local disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from exemplar_ray.errors import UsageError
from exemplar_ray.exemplars.gathered import BYTES_OF_A_UNIT, SPOOLED_MAPS_SCHEMA

# Of few images, writing them to a file takes longer than all else that is done to them here.
_MOST_IN_MEMORY = 256 << 20


class ImageSpool:
    """Gathered images and maps: so many bytes in memory, more in a file without a name, of which only what is asked for
    is in memory.

    Bytes that several images have, as copies of a file do, stand in it once: they are one content.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_MOST_IN_MEMORY, prefix="exemplar_ray-images-")  # noqa: SIM115
        # Of each content where it begins, and how many bytes it has.
        self._contents: list[tuple[int, int]] = []
        self._digests: list[bytes] = []
        self._known: dict[bytes, int] = {}
        self._content_of: dict[tuple[int, int], int] = {}
        self._described: dict[tuple[int, int], dict[str, Any]] = {}
        # Of each map where it begins, and how many numbers it has.
        self._maps: list[tuple[int, int]] = []

    def __enter__(self) -> ImageSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._content_of)

    def add(self, shard: int, images: pa.Table) -> None:
        """Keep some of a shard's images (`IMAGES_SCHEMA`).

        Raises:
            UsageError: the temporary folder has no room for them.
        """
        described = images.drop_columns(["bytes", "content", "hash"]).to_pylist()
        for image, digest, data in zip(described, images["content"].to_pylist(), images["bytes"], strict=True):
            if digest not in self._known:
                self._contents.append(self._append(data.as_buffer()))
                self._digests.append(digest)
                self._known[digest] = len(self._contents) - 1
            self._content_of[shard, image["row"]] = self._known[digest]
            self._described[shard, image["row"]] = image
        self._written(self._file.flush)

    def had(self, shard: int, rows: Iterable[int]) -> dict[int, bytes]:
        """Return {row: content, see `IMAGES_SCHEMA`} of those of a shard's images that are here."""
        numbers = {row: self._content_of[shard, row] for row in rows if (shard, row) in self._content_of}
        return {row: self._digests[number] for row, number in numbers.items()}

    def add_maps(self, maps: pa.Table) -> pa.Table:
        """Keep maps (`MAPS_SCHEMA`); return their numbers in their place (`SPOOLED_MAPS_SCHEMA`).

        Raises:
            UsageError: the temporary folder has no room for them.
        """
        numbers = []
        for chunk in maps["activation_map"].chunks:
            units = np.diff(chunk.offsets.to_numpy())
            begin, _ = self._append(chunk.flatten().to_numpy())
            begins = begin + BYTES_OF_A_UNIT * (np.cumsum(units) - units)
            first = len(self._maps)
            self._maps += zip(begins.tolist(), units.tolist(), strict=True)
            no_map = ~chunk.is_valid().to_numpy(zero_copy_only=False)
            numbers.append(pa.array(np.arange(first, first + len(chunk)), mask=no_map))
        self._written(self._file.flush)
        peaks = [maps["peak_y"], maps["peak_x"]]
        return pa.table([*peaks, pa.chunked_array(numbers, pa.int64())], schema=SPOOLED_MAPS_SCHEMA)

    def _append(self, data: Any) -> tuple[int, int]:
        """Write bytes behind the others; return where they begin, and how many they are."""
        begin = self._file.seek(0, os.SEEK_END)
        self._written(lambda: self._file.write(data))
        return begin, self._file.tell() - begin

    @staticmethod
    def _written(write: Any) -> None:
        try:
            write()
        except OSError as error:
            raise UsageError(
                f"the temporary folder '{tempfile.gettempdir()}' has no room for the exemplars' images and maps "
                f"({error.strerror}); set TMPDIR to a folder with more, and give the same command again"
            ) from error

    def described(self, shard: int, row: int) -> dict[str, Any]:
        """Return what is known of one image: its row of `IMAGES_SCHEMA` without bytes, content and hash."""
        return self._described[shard, row]

    def content(self, shard: int, row: int) -> int:
        """Return the number of an image's content: equal for images of equal bytes."""
        return self._content_of[shard, row]

    def size(self, shard: int, row: int) -> int:
        """Return how many bytes an image has."""
        return self._contents[self._content_of[shard, row]][1]

    def contents(self, numbers: Sequence[int]) -> pa.LargeBinaryArray:
        """Return the bytes of some contents."""
        places = [self._contents[number] for number in numbers]
        ends = np.cumsum([0, *(size for _, size in places)], dtype=np.int64)
        # They are many: there is one copy of them in memory.
        data = bytearray(ends[-1])
        for (begin, size), start in zip(places, ends.tolist(), strict=False):
            data[start : start + size] = self._read(begin, size)
        return pa.Array.from_buffers(pa.large_binary(), len(places), [None, pa.py_buffer(ends), pa.py_buffer(data)])

    def paths(self, keys: Sequence[tuple[int, int]]) -> list[str | None]:
        """Return the paths of some images by their shards and rows."""
        return [self._described[key]["path"] for key in keys]

    def map_bytes(self, numbers: Sequence[int | None]) -> np.ndarray:
        """Return how large some maps are, int64 [maps]; 0 where there is none."""
        return np.array([0 if n is None else BYTES_OF_A_UNIT * self._maps[n][1] for n in numbers], np.int64)

    def maps(self, numbers: Sequence[int | None]) -> list[np.ndarray | None]:
        """Return some maps, float16 [units] each; None where there is none."""
        return [None if number is None else self._map(*self._maps[number]) for number in numbers]

    def _map(self, begin: int, units: int) -> np.ndarray:
        return np.frombuffer(self._read(begin, BYTES_OF_A_UNIT * units), np.float16)

    def _read(self, begin: int, size: int) -> bytes:
        self._file.seek(begin)
        return self._file.read(size)
