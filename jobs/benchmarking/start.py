"""Where a small run's seconds go, from its command to its exit, beside a notebook's loop and what Ray itself takes."""

import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarking.limits import MODEL, WEIGHTS
from benchmarking.measuring import in_own_process, print_table, spread, write_figures
from benchmarking.rivals import notebook

SIZES = (30, 800)
RAY = "Ray alone"


def start(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Run few images from the command to the exit, `--repeats` times; write start.json."""
    seconds: dict[str, list[list[float]]] = {}
    loop: list[float] = []
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        loop.append(in_own_process(notebook, shards, options.notebook_images).per_second)
        seconds.setdefault(RAY, []).append(in_own_process(_ray_alone))
        for images in SIZES:
            flags = ["--model", MODEL, "--weights", WEIGHTS, "--images", str(images), "--data", *shards]
            out = work / f"run-{images}-{number}"
            seconds.setdefault(f"{images} images", []).append(_seconds_of([*flags, "--out", str(out)]))
    print()
    heads = ("seconds until", "the scan begins", "the result", "the exit")
    print_table(heads, [(name, *(spread(column) for column in zip(*of, strict=True))) for name, of in seconds.items()])
    print(f"notebook's loop: {spread(loop)} images/s", flush=True)
    figures = {"seconds": seconds, "notebook's images/s": loop}
    write_figures(options.out, "start", figures)


def _ray_alone() -> list[float]:
    """Return the seconds until a Ray is there, until its first task is done, and until it has ended."""
    from exemplar_ray.executor.cluster import Cluster
    from exemplar_ray.executor.resources import Resources

    began = time.perf_counter()
    with Cluster(Resources()) as cluster:
        there = time.perf_counter() - began
        cluster.call("os:fspath", "a task", "a task fails")
        done = time.perf_counter() - began
    return [there, done, time.perf_counter() - began]


def _seconds_of(arguments: Sequence[str]) -> list[float]:
    """Return the seconds from a run's command until its scan begins, its result is said, and it has ended."""
    began = time.perf_counter()
    said: dict[str, float] = {}
    command = [sys.executable, "-u", "-m", "exemplar_ray", "run", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            for sign in ("tasks at once", "result: "):
                if sign in line:
                    said.setdefault(sign, time.perf_counter() - began)
    if process.returncode:
        raise RuntimeError(f"the run ended with status {process.returncode}")
    return [*said.values(), time.perf_counter() - began]
