"""A tar that is open, on a disk or a storage that is asked for ranges."""

from __future__ import annotations

import threading
from typing import Self

from exemplar_ray.data.footers import open_file, read_range
from exemplar_ray.data.shard import Shard
from exemplar_ray.data.tar_samples import BLOCK, Hops, Stream
from exemplar_ray.errors import ShardError
from exemplar_ray.storage import hub


class OpenTar:
    """A tar that is open.

    Args:
        place: where to read it, if not where it is.
    """

    def __init__(self, shard: Shard, place: str | None = None) -> None:
        self._shard = shard
        place = place or shard.uri
        self._is_local = hub.is_on_disk(place)
        self._file = open_file(place, shard.size)
        size = self._file.size() if self._is_local else getattr(self._file, "size", shard.size)
        if size not in (shard.size, None):
            self._file.close()
            raise ShardError(f"{shard.name} changed: {shard.size} bytes when it was listed, {size} now")
        # What comes next is fetched in another thread.
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, start: int, end: int) -> bytes:
        """Read some bytes."""
        with self._one_at_a_time:
            return read_range(self._file, start, end)

    def stream(self, piece: int) -> Stream:
        """Return the whole file, to be read once, so many bytes at a time."""
        return Stream(self.read, self._shard.size, piece)

    def hops(self, ahead: int) -> Hops:
        """Return the file, to be read here and there."""
        return Hops(self.read, self._shard.size, BLOCK if self._is_local else ahead)

    def close(self) -> None:
        """Close the file."""
        with self._one_at_a_time:
            self._file.close()
