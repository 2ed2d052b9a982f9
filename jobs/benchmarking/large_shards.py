"""How long workers are idle at the end of a scan of few large shards: with their pieces shared, and without.

Who works when is what matters, not at what: the images are small, and the network waits instead of computing, so that
it takes the same time whatever else the machine does.
"""

import io
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarking.data import first_images
from benchmarking.measuring import print_table, spread, write_figures

WORKERS = 2
SECONDS_AN_IMAGE = 0.008
NETWORK = f"""
import time, torch

class Waiting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x):
        time.sleep({SECONDS_AN_IMAGE} * len(x))
        return self.conv(x)

def make():
    torch.manual_seed(0)
    return Waiting()
"""
FLAGS = ["--layer", "conv", "--preprocess", "{resize: 36, crop: 32, mean: [117, 117, 117]}", "--compile", "never"]
_GROUP = 100
# Pieces are the driver's affair, as is whether there are any.
COMMAND = "import sys; from exemplar_ray.cli import main; sys.exit(main(sys.argv[1:]))"
ALONE = f"from exemplar_ray.exemplars.scan_job import ScanJob; ScanJob.pieces = lambda *_: 1; {COMMAND}"
HOW = {"each shard one worker's": ALONE, "pieces shared": COMMAND}
KILLED_AT = 0.8
_EVERY_SECONDS = 0.1


class Idle(NamedTuple):
    """What the workers of a scan did."""

    scan: float
    """Seconds from the first task's beginning to the last one's end."""
    idle: float
    """Seconds in which a worker had no task meanwhile, of all workers together."""


def large_shards(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Scan 3 large shards on 2 workers, and 2 of which a worker is killed at 80 % of the scan, `--repeats` times; write
    large_shards.json."""
    data = _write(shards, work, options.rows_of_large)
    found: dict[str, list[Idle]] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for how, program in HOW.items():
            undisturbed = _scan(program, data[:2], work / f"whole-{number}-{how[0]}")
            found.setdefault(f"2 shards, {how}", []).append(undisturbed)
            killed = _scan(program, data[:2], work / f"killed-{number}-{how[0]}", KILLED_AT * undisturbed.scan)
            found.setdefault(f"2 shards, a worker killed at 80 %, {how}", []).append(killed)
            found.setdefault(f"3 shards, {how}", []).append(_scan(program, data, work / f"three-{number}-{how[0]}"))
    print()
    print_table(
        (f"{options.rows_of_large} images a shard, {WORKERS} workers", "seconds of the scan", "idle", "share"),
        [
            (name, spread([o.scan for o in of]), spread([o.idle for o in of]), spread([_share(o) for o in of], 2))
            for name, of in found.items()
        ],
    )
    write_figures(options.out, "large_shards", found)


def _write(shards: Sequence[str], work: Path, rows: int) -> list[str]:
    """Write three shards of small images, over and over, and the network; return the shards."""
    small = []
    for content in first_images(shards, _GROUP):
        file = io.BytesIO()
        Image.open(io.BytesIO(content)).convert("RGB").resize((40, 40)).save(file, "PNG")
        small.append({"bytes": file.getvalue(), "path": None})
    images = [small[row % len(small)] for row in range(rows)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    files = [str(work / f"train-{number:05}-of-00003.parquet") for number in range(3)]
    for file_name in files:
        pq.write_table(pa.table({"image": pa.array(images, kind)}), file_name, row_group_size=_GROUP)
    (work / "waiting.py").write_text(NETWORK)
    return files


def _share(one: Idle) -> float:
    return one.idle / (WORKERS * one.scan)


def _scan(program: str, data: Sequence[str], out: Path, kill_after: float | None = None) -> Idle:
    """Run a scan in a process of its own, and look at its workers; Ray names them after their tasks.

    Args:
        kill_after: seconds after the first task's beginning at which to kill a worker.
    """
    network = f"{out.parent / 'waiting.py'}:make"
    command = [sys.executable, "-c", program, "run", "--model", network, *FLAGS, "--data", *data, "--out", str(out)]
    began = ended = before = None
    idle = since_end = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(_EVERY_SECONDS)
            now, busy = time.perf_counter(), _scanning(process.pid)
            if busy:
                began = began or now
                # What was idle between two tasks counts, and not what follows the last one.
                idle, since_end, ended = idle + since_end, 0.0, now
            if before is not None and began is not None:
                since_end += (WORKERS - min(len(busy), WORKERS)) * (now - before)
            if kill_after is not None and began is not None and now - began > kill_after and busy:
                busy[0].kill()
                kill_after = None
            before = now
    if process.returncode or began is None or ended is None:
        raise RuntimeError(f"the scan ended with exit status {process.returncode}")
    return Idle(ended - began, idle)


def _scanning(driver: int) -> list[psutil.Process]:
    """Return the workers that have a task of the scan."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::scan "):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found
