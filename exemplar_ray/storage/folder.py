"""A folder on local disk or object store, whose files appear whole or not at all.

On a local disk through a temporary name, fsync and rename, on an object store through a single PUT.
On the Hugging Face Hub a folder is only read.

What fails for a moment is done again, with pauses: everything here may be repeated. What then still fails is raised. A
storage that does not answer has not said that a file is not there.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from exemplar_ray.errors import UsageError
from exemplar_ray.storage import hub
from exemplar_ray.storage.hub_uri import is_on_hub
from exemplar_ray.storage.transient import ATTEMPTS, is_transient, patiently

Value = TypeVar("Value")


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
        # The Hub's own client asks again.
        self._attempts = 1 if is_on_hub(uri) else ATTEMPTS

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
                with self._asked(lambda: os.scandir(path)) as entries:
                    yield from (entry.name for entry in entries)
                return
            yield from (posixpath.basename(p.rstrip("/")) for p in self._asked(lambda: self._listed(path)))
        except (FileNotFoundError, NotADirectoryError):
            return

    def _listed(self, path: str) -> list[str]:
        self._fs.invalidate_cache(path)
        return self._fs.ls(path, detail=False)

    def exists(self, name: str) -> bool:
        """Whether a file is there now."""
        path = self._path(name)
        # What fsspec's own `exists` cannot find out it takes for a no, and an interruption, too.
        look = partial(os.stat, path) if self._local else partial(self._looked_up, path)
        try:
            self._asked(look)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _looked_up(self, path: str) -> Any:
        self._fs.invalidate_cache(posixpath.dirname(path))
        return self._fs.info(path)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON object; None where there is none or it is torn."""
        try:
            content = self.read(name)
        except FileNotFoundError:
            return None
        try:
            values = json.loads(content)
        except ValueError:
            return None
        return values if isinstance(values, dict) else None

    def read(self, name: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._asked(lambda: self._read_once(name))

    def _read_once(self, name: str) -> bytes:
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
            self._asked(lambda: self._fs.pipe_file(self._path(name), content))
            return
        self._asked(lambda: self._write_local(name, content, durable))
        if durable:
            _fsync(os.path.dirname(self._path(name)))

    def write_all(self, files: Mapping[str, bytes | Path]) -> None:
        """Write several files side by side, each whole or not at all; on return a local disk has all of them.

        Most of what writing takes is waiting for the disk, or for the object store's answers.

        Args:
            files: {name: its content, or a local file, which is moved there}.
        """
        if not self._local:
            held = {self._path(name): content for name, content in files.items() if isinstance(content, bytes)}
            if held:
                self._asked(lambda: self._fs.pipe(held))
            for name, content in files.items():
                if isinstance(content, Path):
                    self._asked(partial(self._fs.put_file, str(content), self._path(name)))
                    content.unlink()
            return
        with ThreadPoolExecutor(len(files)) as pool:
            written = [
                pool.submit(self._asked, partial(self._write_local, name, content, True))
                for name, content in files.items()
            ]
        for one in written:
            one.result()
        for folder in {os.path.dirname(self._path(name)) for name in files}:
            _fsync(folder)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self._asked(lambda: self._fs.rm_file(self._path(name)))

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
            self._asked(lambda: self._fs.put_file(local, self._path(name)))

    def open(self, name: str) -> Any:
        """Open a file for reading in binary mode."""
        return self._asked(lambda: self._fs.open(self._path(name), "rb"))

    def _write_local(self, name: str, content: bytes | Path, durable: bool) -> None:
        with self._temporary(name, durable) as temporary:
            if isinstance(content, Path):
                shutil.move(content, temporary)
                return
            with open(temporary, "wb") as file:
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

    def _asked(self, question: Callable[[], Value]) -> Value:
        """Ask the storage for something, or have it do something, patiently.

        Raises:
            FileNotFoundError, NotADirectoryError: it says that there is no such thing.
            OSError: it says nothing.
        """
        try:
            return patiently(question, self._attempts)
        except (FileNotFoundError, NotADirectoryError) as error:
            # Some file systems say "not found" to whatever happens; then the cause says what did.
            if is_transient(error):
                raise ConnectionError(f"no answer about {error} ({type(error.__cause__).__name__})") from error
            raise

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _fsync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
