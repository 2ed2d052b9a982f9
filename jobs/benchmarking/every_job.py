"""What each job adds beside its work: starting, asking the network, reducing, writing, from the command to the exit."""

import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarking.limits import MODEL, WEIGHTS
from benchmarking.measuring import allowed_cores, print_table, spread, write_figures

_OF_RUN = ["--channels", "0-7"]
# Of those that take a run: where below it their own is.
JOBS = {
    "run": (None, []),
    "activations": (None, ["--layer", "mixed4a"]),
    "visualize": ("visualizations", [*_OF_RUN, "--steps", "128"]),
    "circuits": ("circuits", [*_OF_RUN, "--exemplars", "5"]),
}


def every_job(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Run each job over the shards, or for some channels of that run, `--repeats` times; write every_job.json."""
    seconds: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        run = work / f"run-{number}"
        for job, (below, flags) in JOBS.items():
            folder = work / f"{job}-{number}" if below is None else run / below
            given = [str(run)]
            if below is None:
                given = ["--model", MODEL, "--weights", WEIGHTS, "--data", *shards, "--out", str(folder)]
            began = time.perf_counter()
            command = [sys.executable, "-m", "exemplar_ray", job, *given, *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            whole = time.perf_counter() - began
            records = [json.loads(path.read_text()) for path in (folder / "parts").glob("*.json")]
            seconds.setdefault(job, []).append((whole, sum(one["seconds"] for one in records) / len(allowed_cores())))
    print()
    rows = []
    for job, measured in seconds.items():
        all_of_it, of_tasks = ([one[i] for one in measured] for i in range(2))
        beside = [a - b for a, b in measured]
        rows.append((job, spread(all_of_it), spread(of_tasks), spread(beside)))
    print_table(("seconds", "whole", "its tasks, on all cores", "beside them"), rows)
    write_figures(options.out, "every_job", seconds)
