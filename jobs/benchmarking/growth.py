"""Whether an image costs more, and the job more memory, the more images there are."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarking.data import copies_of
from benchmarking.measuring import print_table, spread, write_figures
from benchmarking.own_job import KINDS, first_runs, job

_MB = 1 << 20


class Memory:
    """How much memory of their own, in bytes, the driver and the largest of its workers had at most.

    That is what Linux calls `RssAnon`: neither files nor Ray's shared memory, which is as large as it is allowed to be.
    """

    def __init__(self) -> None:
        self.driver = self.worker = 0

    def look(self, driver: int) -> None:
        """Look at the processes once."""
        self.driver = max(self.driver, _own_memory(driver))
        for process in psutil.Process(driver).children(recursive=True):
            # Ray names workers so.
            if _command_of(process).startswith("ray::"):
                self.worker = max(self.worker, _own_memory(process.pid))


def growth(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Scan 4 and 16 times `--copies` of the images, exact and screened, `--repeats` times; write growth.json."""
    sizes = (4 * options.copies, 16 * options.copies)
    copies = copies_of(shards, work / "copies", sizes[-1])
    first_runs(shards, KINDS)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for kind, flags in KINDS.items():
            for size in sizes:
                memory = Memory()
                rates, summary = job(copies[:size], flags, look=memory.look)
                name = f"{kind}, {summary['scored']:,} images"
                figures = (rates["scan"].per_second, memory.driver / _MB, memory.worker / _MB)
                found.setdefault(name, []).append(figures)
                print(f"  {name}: {figures[0]:.1f} images/s, {figures[1]:.0f} and {figures[2]:.0f} MB", flush=True)
    print()
    heads = ("scan", "images/s", "driver, MB", "largest worker, MB")
    rows = []
    for name, of in found.items():
        rate, driver, worker = zip(*of, strict=True)
        rows.append((name, spread(rate), spread(driver, 0), spread(worker, 0)))
    print_table(heads, rows)
    write_figures(options.out, "growth", found)


def _own_memory(pid: int) -> int:
    """Return a process's own memory in bytes; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kilobytes = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), "0")
    return int(kilobytes) << 10


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
