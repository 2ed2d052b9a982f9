"""The log of one task: kept while it runs, and sent along with the error if it fails."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

# The last lines tell what went wrong.
_MOST_LINES = 200
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_ATTRIBUTE = "exemplar_ray_log"


class _Lines(logging.Handler):
    """Keeps the last lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_MOST_LINES)
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(self.format(record))


@contextmanager
def logged(logger: logging.Logger, level: str) -> Iterator[None]:
    """Keep what is logged in the block, and put it on whatever exception leaves it; see `log_of`.

    What is kept starts at INFO, or lower if `level` is lower. From `level` on it is written to standard error, too,
    which for a Ray task is its worker's log file.
    """
    kept, shown = _Lines(), logging.StreamHandler()
    shown.setFormatter(kept.formatter)
    shown.setLevel(level)
    before = logger.level
    logger.setLevel(min(logging.INFO, shown.level))
    for handler in (kept, shown):
        logger.addHandler(handler)
    try:
        yield
    except Exception as error:
        # An attribute: it is pickled with the exception.
        setattr(error, _ATTRIBUTE, tuple(kept.lines))
        raise
    finally:
        for handler in (kept, shown):
            logger.removeHandler(handler)
        logger.setLevel(before)


def log_of(error: BaseException | None) -> tuple[str, ...]:
    """Return what a task had logged when it raised this."""
    return getattr(error, _ATTRIBUTE, ())
