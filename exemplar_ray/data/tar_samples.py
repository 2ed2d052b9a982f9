"""Samples in a tar, as WebDataset has them: members that stand together and share a name up to its first dot.

https://github.com/webdataset/webdataset says how: `n01440764_18.jpg` and `n01440764_18.cls` are the members `jpg` and
`cls` of the sample `n01440764_18`. Headers are read by Python's tarfile. Unlike that, what ends early is no tar.
"""

from __future__ import annotations

import io
import re
import tarfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from exemplar_ray.data.listed import is_hidden, shown
from exemplar_ray.errors import ShardError, one_line
from exemplar_ray.prefetch import map_ahead

BLOCK = tarfile.BLOCKSIZE
_CHECKED_AT_ONCE = 1 << 20
# Up to the first dot of the last part, and what is behind it.
_KEY_AND_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)

Read = Callable[[int, int], bytes]
"""Reads bytes of a file from one offset up to another."""


class Member(NamedTuple):
    """A file in a tar, and where it is."""

    name: str
    start: int
    """Of its header."""
    data: int
    """Where its content begins."""
    size: int


@dataclass
class Sample:
    """Members of one name."""

    key: str
    start: int
    """Of its first header."""
    members: dict[str, Member]
    """By what is behind the first dot, in lower case."""


class Bytes(io.RawIOBase, ABC):
    """A file's bytes, as tarfile and others want them.

    Args:
        size: the file's.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self._place = 0

    @abstractmethod
    def at(self, start: int, end: int) -> bytes:
        """Return bytes from one offset up to another, which the file has."""

    def forget(self, before: int) -> None:
        """Take notice that nothing before an offset is asked for any more."""

    def read(self, size: int = -1) -> bytes:
        """Read on, as files do."""
        end = self.size if size is None or size < 0 else min(self._place + size, self.size)
        content = self.at(self._place, end) if end > self._place else b""
        self._place += len(content)
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as in files."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place


class Stream(Bytes):
    """A file that is read once, from its beginning to its end, in large pieces, the next while one is worked on."""

    def __init__(self, read: Read, size: int, piece: int) -> None:
        super().__init__(size)
        starts = range(0, size, piece)
        contents = map_ahead(lambda start: read(start, min(start + piece, size)), starts, threads=1, ahead=1)
        self._coming = zip(starts, contents, strict=True)
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._reached = self._forgotten = 0

    def at(self, start: int, end: int) -> bytes:
        """Return bytes that were not forgotten."""
        if start < self._forgotten:
            raise ValueError(f"byte {start} was read and forgotten")
        while self._reached < end:
            place, content = next(self._coming)
            self._pieces.append((place, content))
            self._reached = place + len(content)
        within = (content[max(start - place, 0) : end - place] for place, content in self._pieces if place < end)
        return b"".join(within)

    def forget(self, before: int) -> None:
        """Let go of pieces."""
        self._forgotten = max(before, self._forgotten)
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= before:
            self._pieces.popleft()


class Hops(Bytes):
    """A file of which some bytes are read here and there, each time with some of those behind them."""

    def __init__(self, read: Read, size: int, ahead: int) -> None:
        super().__init__(size)
        self._read_range, self._ahead = read, ahead
        self._start, self._content = 0, b""

    def at(self, start: int, end: int) -> bytes:
        """Return bytes from what is at hand, or read them."""
        if start < self._start or end > self._start + len(self._content):
            self._start, self._content = start, self._read_range(start, min(max(end, start + self._ahead), self.size))
        return self._content[start - self._start : end - self._start]


class Piece(Bytes):
    """Some bytes of a file, as if they were all."""

    def __init__(self, content: bytes) -> None:
        super().__init__(len(content))
        self._content = content

    def at(self, start: int, end: int) -> bytes:
        """Return some of the bytes."""
        return self._content[start:end]


def samples(source: Bytes, name: str) -> Iterator[Sample]:
    """Yield the samples of a tar in order. Nothing but headers is read.

    Args:
        source: the tar; or a piece of one, which may end anywhere: then the last sample may lack members.
        name: what to call it in messages.

    Raises:
        ShardError: it is damaged, or ends early.
    """
    sample: Sample | None = None
    archive = _Archive(source)
    for member in _members(archive, name):
        parts = _KEY_AND_MEMBER.fullmatch(member.name)
        if parts is None or any(map(is_hidden, member.name.split("/"))):
            continue
        key, what = parts[1], parts[2].lower()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
                source.forget(member.start)
            sample = Sample(key, member.start, {})
        if what in sample.members:
            raise ShardError(f"{name}: sample '{shown(key)}' has several members '{what}'")
        sample.members[what] = member
    if sample is not None:
        yield sample
    if not isinstance(source, Piece):
        _refuse_more(source, archive.offset, name)


def _members(archive: _Archive, name: str) -> Iterator[Member]:
    """Yield the files in a tar, up to the mark of its end."""
    source = archive.fileobj
    while True:
        start = archive.offset
        if source.at(start, min(start + BLOCK, source.size)) == bytes(BLOCK):
            return
        source.seek(start)
        try:
            info = tarfile.TarInfo.fromtarfile(cast(tarfile.TarFile, archive))
        except (tarfile.HeaderError, ValueError) as error:
            if source.tell() < source.size:
                raise ShardError(
                    f"{name} is damaged, or no tar: what stands at byte {start} is no header of a file in it "
                    f"({one_line(error)})"
                ) from error
            if isinstance(source, Piece):
                return
            raise ShardError(_torn(name, source.size, "without the mark of its end")) from error
        if not info.isreg():
            continue
        if (end := info.offset_data + info.size) > source.size:
            if isinstance(source, Piece):
                return
            raise ShardError(_torn(name, source.size, f"within '{shown(info.name)}', which goes on to byte {end}"))
        if info.issparse():
            raise ShardError(f"{name}: '{shown(info.name)}' is stored without its zeros (tar --sparse), and not read")
        yield Member(info.name.removeprefix("./"), info.offset, info.offset_data, info.size)


def _torn(name: str, size: int, where: str) -> str:
    return f"{name} is torn: it ends at byte {size}, {where}; restore the file"


def _refuse_more(source: Bytes, end: int, name: str) -> None:
    """Refuse a tar in which something stands behind its end, as in tars that were put together.

    Raises:
        ShardError: it does.
    """
    for start in range(end, source.size, _CHECKED_AT_ONCE):
        source.forget(start)
        if source.at(start, min(start + _CHECKED_AT_ONCE, source.size)).strip(b"\0"):
            raise ShardError(
                f"{name} goes on behind the mark of its end, at byte {end}, as tars do that were put one behind the "
                "other; unpack it with tar --ignore-zeros, and pack it anew"
            )


class _Archive:
    """What `tarfile.TarInfo` wants to know of the archive that it is in."""

    encoding, errors = "utf-8", "surrogateescape"

    def __init__(self, source: Bytes) -> None:
        self.fileobj = source
        self.offset = 0
        self.pax_headers: dict[str, str] = {}
