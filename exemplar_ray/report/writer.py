"""Many small files, written side by side into one folder."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from exemplar_ray.storage.folder import Folder

# Object stores answer slowly and take many requests at once. Encoding pictures lets go of the interpreter's lock.
_THREADS = 16
# So many files wait at most, in memory.
_MOST_WAITING = 64


class ReportWriter:
    """Writes a report's files in threads. Leaving its `with` block waits for all of them.

    The files may be lost when the machine stops, unlike a run folder's: the report is made again.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(_THREADS)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def write(self, name: str, content: bytes | Callable[[], bytes]) -> None:
        """Write a file, now or soon.

        Args:
            name: below the report's folder, with forward slashes.
            content: the bytes, or what makes them, which is then called in a thread.

        Raises:
            Exception: what an earlier file's writing raised.
        """
        if len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, name, content))

    def finish(self) -> None:
        """Wait until everything is written."""
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, name: str, content: bytes | Callable[[], bytes]) -> None:
        self._folder.write(name, content() if callable(content) else content, durable=False)
