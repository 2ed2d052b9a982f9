"""Opening shards' files, and reading their footers: as parquet, as a pointer, or not at all, which are three things."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.errors import UsageError, one_line
from exemplar_ray.storage import hub
from exemplar_ray.storage.hub_uri import AccessError, NoAnswerError, is_on_hub
from exemplar_ray.storage.transient import ATTEMPTS, is_transient, patiently

# ImageNet's footers are below this, so one request reads a whole footer.
TAIL_BYTES = 1 << 16
_MAGIC = b"PAR1"
_TAKE_THE_SIZE = ("hf://", "http://", "https://")
# Pointers are smaller.
POINTER_BYTES = 1024
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("Git LFS pointer", "git lfs pull"),
    b"/annex/objects/": ("git-annex pointer", "git annex get ."),
}


class PointerError(UsageError):
    """A file is a pointer to another one: arguments are its URI, what it is, and the command that fetches the file."""

    def __str__(self) -> str:
        uri, what, command = self.args
        return f"'{uri}' is a {what}, not the file: run `{command}` where the data set was cloned"


class Footer(NamedTuple):
    """What a parquet file says of itself."""

    metadata: pq.FileMetaData
    digest: str
    """SHA-256 (hex)."""


def open_file(uri: str, size: int) -> Any:
    """Open a shard's file for reading in binary mode.

    Args:
        size: in bytes, as it was listed.
    """
    fs, path = hub.file_system(uri)
    # pyarrow reads local files without the interpreter; others are read range by range,
    # without a read-ahead cache that would fetch bytes twice.
    if isinstance(fs, LocalFileSystem):
        return pa.OSFile(path)
    # They would ask for the size; the Hub would list the folder for that, in every process. S3 is asked all the same,
    # for what the file is at that moment (its ETag): then no piece of another one comes.
    options = {"size": size} if uri.startswith(_TAKE_THE_SIZE) else {}
    file = fs.open(path, "rb", cache_type="none", **options)
    with suppress(AttributeError):
        # An archive is closed when nobody has its file system any more.
        file.file_system_kept = fs
    return file


def read_footer(uri: str, size: int) -> Footer | None:
    """Read a file's footer; None if the file can be read and is no parquet file.

    Raises:
        UsageError: the file cannot be read, now or at all.
        PointerError: it is a pointer of Git LFS to another one.
    """
    content = read_surely(uri, lambda: _footer_bytes(uri, size))
    if content is None:
        return None
    try:
        return Footer(pq.read_metadata(pa.BufferReader(content)), hashlib.sha256(content).hexdigest())
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def read_surely(uri: str, read: Any) -> Any:
    """Call what reads a file, again where that may help, and say what is wrong if it does not.

    Raises:
        UsageError: the file cannot be read. What pyarrow finds fault with is the caller's.
    """
    try:
        # The Hub's client is patient itself.
        return patiently(read, 1 if is_on_hub(uri) else ATTEMPTS)
    except (AccessError, NoAnswerError) as error:
        raise UsageError(str(error)) from error
    except pa.ArrowInvalid:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"'{uri}' was listed and is not there any more; run the same command again") from error
    except PermissionError as error:
        raise UsageError(
            f"'{uri}' cannot be read: access denied ({one_line(error)}); check permissions or credentials"
        ) from error
    except ValueError as error:
        if "http" not in uri:
            raise UsageError(f"'{uri}' cannot be read: {one_line(error)}") from error
        raise UsageError(
            f"'{uri}' cannot be read in pieces: its server gives whole files only (no range requests); copy the files "
            "to a disk or an object store"
        ) from error
    except Exception as error:
        if not (isinstance(error, OSError) or is_transient(error)):
            raise
        raise UsageError(
            f"'{uri}' cannot be read now ({type(error).__name__}: {one_line(error)}); nothing was changed, run the "
            "same command again"
        ) from error


def _footer_bytes(uri: str, size: int) -> bytes | None:
    """Return the footer: its metadata, the metadata's length, and the magic bytes; None if there is none."""
    with open_file(uri, size) as file:
        # A footer does not begin before the magic bytes at the start; and a server that cannot give pieces says so.
        tail = read_range(file, max(len(_MAGIC), size - TAIL_BYTES), size)
        if len(tail) < 8 or tail[-4:] != _MAGIC:
            refuse_pointer(uri, read_range(file, 0, size) if size < POINTER_BYTES else b"")
            return None
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            tail = read_range(file, max(len(_MAGIC), size - length), size)
    return tail[-length:]


def read_range(file: Any, start: int, end: int) -> bytes:
    """Read bytes of a file from one offset up to another.

    Raises:
        ConnectionError: fewer came.
    """
    if start >= end:
        return b""
    file.seek(start)
    content = file.read(end - start)
    if len(content) != end - start:
        raise ConnectionError(f"{len(content)} bytes came for {end - start}")
    return content


def refuse_pointer(uri: str, content: bytes) -> None:
    """Refuse a small file that is a pointer to another one.

    Raises:
        PointerError: it is.
    """
    for beginning, (what, command) in _POINTERS.items():
        if content.startswith(beginning):
            raise PointerError(uri, what, command)
