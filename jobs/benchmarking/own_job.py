"""This project's job, run as a user runs it, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.measuring import Rate

# As a user asks for them: where a first run has compiled the network, the others take what is there.
EXACT: list[str] = []
SCREENED = ["--precision", "bfloat16", "--decode", "fast"]
KINDS = {"exact": EXACT, "screened": SCREENED}
# Tallies and classes are part of every run.
EVERY_ANSWER = ["--statistic", "mean", "max", "center"]
EVERY_ANSWER += ["--sample", "bottom", "random", "q99", "q95", "q90", "q50", "--distinct", "--class-top-k", "1"]


INCEPTIONV1 = ["--weights", "random:0"]
_SECONDS_BETWEEN_LOOKS = 1.0


def job(
    data: Sequence[str],
    flags: Sequence[str],
    network: Sequence[str] = INCEPTIONV1,
    look: Callable[[int], None] | None = None,
) -> tuple[dict[str, Rate], dict[str, Any]]:
    """Run the job, over InceptionV1's mixed4a if nothing else is said.

    Args:
        network: flags that say which.
        look: called every second with the process's id.

    Returns:
        The rates: "start to end": everything, from starting Python and Ray to the written result; "scan": what
        the job itself says of its scan, which includes loading the network in every worker. And the summary.
    """
    with tempfile.TemporaryDirectory(prefix="exemplar_ray-benchmark-") as folder:
        command = [sys.executable, "-m", "exemplar_ray", "run", *network, *flags]
        command += ["--out", folder, "--data", *data]
        # What was written before must not be written back on this one's time.
        os.sync()
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while look is not None and process.poll() is None:
                look(process.pid)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        seconds = time.perf_counter() - started
        summary = json.loads((Path(folder) / "summary.json").read_text())
    scan = summary["this_invocation"]
    rates = {
        "start to end": Rate(summary["scored"], seconds),
        "scan": Rate(scan["images_scanned"], scan["scan_seconds"]),
    }
    return rates, summary


def first_runs(
    shards: Sequence[str], kinds: Mapping[str, Sequence[str]], network: Sequence[str] = INCEPTIONV1
) -> dict[str, float]:
    """Run each kind over one shard, so that its network is compiled; return how many seconds each took."""
    seconds = {}
    for name, flags in kinds.items():
        rate = job(shards[:1], [*flags, "--compile", "always"], network)[0]["start to end"]
        seconds[name] = rate.seconds
        print(f"first run of {name}, compiling, {rate.images} images: {rate.seconds:.0f} s", flush=True)
    print(flush=True)
    return seconds
