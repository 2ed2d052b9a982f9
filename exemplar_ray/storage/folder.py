"""A folder on local disk or object store, whose files appear whole or not at all.

On a local disk through a temporary name, fsync and rename, on an object store through a single PUT.
On the Hugging Face Hub a folder is only read.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.errors import UsageError
from exemplar_ray.storage import hub


class Folder:
    """A folder on any file system that fsspec opens.

    On the Hugging Face Hub it can only be read, and is read at one commit, that of when it is opened.

    Raises:
        UsageError: there is no such file system, or no such repository on the Hub, or no access to it.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            self._fs, path = hub.file_system(hub.pinned(uri, hub.resolve_revisions([uri])))
        except (ValueError, ImportError) as error:
            raise UsageError(f"folder '{uri}' cannot be opened: {error}") from error
        self._root = path.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)

    @property
    def full_uri(self) -> str:
        """The same folder for other processes, whose working folder may be another one."""
        return self._root if self._local else self.uri

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names of what is in a folder of it ("": in itself), past any cache; nothing where there is none."""
        path = self._path(folder)
        try:
            if self._local:
                # A folder of many files is gone through, not held: fsspec would make a list of paths.
                with os.scandir(path) as entries:
                    yield from (entry.name for entry in entries)
                return
            self._fs.invalidate_cache(path)
            yield from (posixpath.basename(p.rstrip("/")) for p in self._fs.ls(path, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return

    def exists(self, name: str) -> bool:
        """Whether a file is there now."""
        path = self._path(name)
        if self._local:
            # fsspec's own answers no to whatever happens meanwhile, an interruption too.
            return os.path.exists(path)
        self._fs.invalidate_cache(posixpath.dirname(path))
        return self._fs.exists(path)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object; None where there is none or it is torn."""
        try:
            values = json.loads(self.read(name))
        except (FileNotFoundError, ValueError):
            return None
        return values if isinstance(values, dict) else None

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        if not self._local:
            return self._fs.cat_file(self._path(name))
        with open(self._path(name), "rb") as file:
            return file.read()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON object, whole or not at all."""
        # Piece by piece: of many shards the pieces would take several times the room of the file.
        content = io.BytesIO()
        for piece in json.JSONEncoder(indent=1).iterencode(values):
            content.write(piece.encode())
        content.write(b"\n")
        self.write(name, content.getvalue())

    def write(self, name: str, content: bytes, durable: bool = True) -> None:
        """Write a file, whole or not at all.

        Args:
            durable: wait until a local disk has it, so that it outlasts the machine's sudden end.
        """
        if not self._local:
            self._fs.pipe_file(self._path(name), content)
            return
        self._write_local(name, content, durable)
        if durable:
            _fsync(os.path.dirname(self._path(name)))

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """Write several files side by side, each whole or not at all; on return a local disk has all of them.

        Most of what writing takes is waiting for the disk, or for the object store's answers.
        """
        if not self._local:
            self._fs.pipe({self._path(name): content for name, content in files.items()})
            return
        with ThreadPoolExecutor(len(files)) as pool:
            written = [pool.submit(self._write_local, name, content, True) for name, content in files.items()]
        for one in written:
            one.result()
        for folder in {os.path.dirname(self._path(name)) for name in files}:
            _fsync(folder)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    @contextmanager
    def writing(self, name: str) -> Iterator[str]:
        """Give a local path to write to; on leaving without an exception it becomes `name`."""
        if self._local:
            with self._temporary(name, durable=True) as temporary:
                yield temporary
            _fsync(os.path.dirname(self._path(name)))
            return
        with tempfile.TemporaryDirectory(prefix="exemplar_ray-") as folder:
            local = os.path.join(folder, posixpath.basename(name))
            yield local
            self._fs.put_file(local, self._path(name))

    def open(self, name: str) -> Any:
        """Open a file for reading in binary mode."""
        return self._fs.open(self._path(name), "rb")

    def _write_local(self, name: str, content: bytes, durable: bool) -> None:
        with self._temporary(name, durable) as temporary, open(temporary, "wb") as file:
            file.write(content)

    @contextmanager
    def _temporary(self, name: str, durable: bool) -> Iterator[str]:
        """Local disk: a temporary name beside the final one, then fsync if wanted, and rename. The new name outlasts
        the machine's sudden end once the folder is fsynced, too."""
        path = self._path(name)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            if durable:
                _fsync(temporary)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
