"""Copies of shards on a machine's own disk, for those who read the same data again: other layers, other networks.

Where they lie is the machine's affair, so an environment variable says it. A copy goes by what its storage says of the
content, so it is never that of another file. Nothing is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.data.listed import SHARD_ENDINGS
from exemplar_ray.storage import hub

FOLDER = "EXEMPLAR_RAY_SHARD_CACHE"


def _ending(path: str) -> str:
    return next((ending for ending in SHARD_ENDINGS if path.endswith(ending)), SHARD_ENDINGS[0])


def place_of(uri: str, size: int, stamp: str | None) -> str:
    """Return where to read a file: a copy on this machine's disk, which is made if there is none, or the file itself.

    It is the file itself where the environment names no folder for copies, where it is on a disk, and where its storage
    says neither an ETag nor when it was modified.

    Raises:
        OSError: the copy cannot be made.
    """
    folder = os.environ.get(FOLDER)
    if not folder or stamp is None:
        return uri
    fs, path = hub.file_system(uri)
    if isinstance(fs, LocalFileSystem):
        return uri
    copy = os.path.join(folder, hashlib.sha256(f"{uri}\n{size}\n{stamp}".encode()).hexdigest() + _ending(path))
    if not os.path.exists(copy):
        os.makedirs(folder, exist_ok=True)
        # Workers of a machine that read pieces of a shard want its copy at the same time.
        with _one_at_a_time(f"{copy}.lock"):
            if not os.path.exists(copy):
                _fetch(fs, path, copy, size)
    return copy


def _fetch(fs: AbstractFileSystem, path: str, copy: str, size: int) -> None:
    temporary = f"{copy}.{uuid.uuid4().hex}.tmp"
    try:
        fs.get_file(path, temporary)
        if os.path.getsize(temporary) != size:
            raise ConnectionError(f"{os.path.getsize(temporary)} bytes of '{path}' came for {size}")
        os.replace(temporary, copy)
    finally:
        with suppress(FileNotFoundError):
            os.remove(temporary)


@contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Wait until no other process of this machine is in here with that name. One that is killed waits for nobody."""
    with open(name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Who waits for it has it open, and finds what there is to find.
            with suppress(FileNotFoundError):
                os.remove(name)
