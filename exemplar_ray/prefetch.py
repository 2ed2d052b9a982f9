"""Work ahead in threads: one value is used while the next ones are made."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def map_ahead(function: Callable[[Given], Made], values: Iterable[Given], threads: int, ahead: int) -> Iterator[Made]:
    """Map in threads, in order, with at most `ahead` results made or being made beyond the one in use.

    What `concurrent.futures.Executor.map(buffersize=...)` does from Python 3.14 on.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for value in values:
            waiting.append(pool.submit(function, value))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
