"""Ctrl-C and SIGTERM: an interruption is not lost, and does not leave Ray imported by half."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# After how long an interruption that came at a bad moment comes again.
_AGAIN_SECONDS = 0.05


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt in the block, whenever they come.

    In the middle of an import they wait for its end: Ray, imported by half, fails when the process ends. Where Python
    drops what is raised (in what runs when an object is freed, or a process forked), they come again; as it
    is, the program would go on as if nothing had come.

    SIGTERM is what `ray job stop` and a cluster's manager send. In other threads than the main one, and for a SIGINT
    that is ignored or someone else's, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    around = _imports_under_way(sys._getframe())
    last: int = signal.SIGINT

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        last = number
        if _imports_under_way(frame) > around:
            _come_again(number)
        else:
            raise KeyboardInterrupt

    def dropped(what: Any) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            _come_again(last)
        elif issubclass(what.exc_type, SystemExit) and getattr(what.exc_value, "code", None) == signal.SIGTERM:
            # What Ray's own handler raises, while Ray starts.
            _come_again(signal.SIGTERM)
        else:
            report_dropped(what)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    handlers = {number: signal.signal(number, interrupt) for number in numbers}
    report_dropped, sys.unraisablehook = sys.unraisablehook, dropped
    try:
        yield
    finally:
        sys.unraisablehook = report_dropped
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _come_again(number: int) -> None:
    timer = threading.Timer(_AGAIN_SECONDS, signal.raise_signal, [number])
    timer.daemon = True
    timer.start()


def _imports_under_way(frame: FrameType | None) -> int:
    """Return how many of the import system's frames a stack has."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib.")
        frame = frame.f_back
    return count
