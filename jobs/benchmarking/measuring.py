"""What a measurement is, where it runs, and how several of them are told."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

UNTRAINED = "random weights: untrained, the speed is the same"


@dataclass(frozen=True)
class Rate:
    """So many images in so many seconds."""

    images: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Return images/s."""
        return self.images / self.seconds


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a fresh process, so that no measurement finds what another left behind."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def allowed_cores() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def only_on(cores: Sequence[int]) -> Iterator[None]:
    """While inside, this process, and for good every process that it starts, runs on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def reference_machine(cores: Sequence[int]) -> dict[str, str]:
    """Describe where and with what it was measured."""
    versions = {name: metadata.version(name) for name in ("torch", "ray")}
    return {
        "CPU": _cpu_model(),
        "cores": f"{len(cores)} (of {os.cpu_count()})",
        **versions,
        "date": time.strftime("%Y-%m-%d"),
        "note": UNTRAINED,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def ratios(figures: Sequence[float], base: Sequence[float]) -> list[float]:
    """Divide repetition by repetition: what slowed the machine down for one slowed the other down, too."""
    return [figure / other for figure, other in zip(figures, base, strict=True)]


def spread(figures: Sequence[float], digits: int = 1) -> str:
    """Write the median, and the least and the largest.

    >>> spread([3.0, 1.0, 2.5])
    '2.5 (1.0-3.0)'
    """
    return f"{statistics.median(figures):.{digits}f} ({min(figures):.{digits}f}-{max(figures):.{digits}f})"


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns under their heads: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    print(flush=True)


def write_figures(folder: str | None, name: str, figures: Any) -> None:
    """Write figures, plain JSON values, to a file of this name; nowhere if there is no folder."""
    if folder is None:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
