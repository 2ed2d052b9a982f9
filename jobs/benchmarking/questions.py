"""What the questions that are put to a network cost, as a share of starting a run: a first start against the next."""

import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarking.limits import MODEL, WEIGHTS
from benchmarking.measuring import print_table, spread, write_figures

NETWORKS = {
    MODEL: ["--model", MODEL, "--weights", WEIGHTS],
    "torchvision:vit_b_16": [
        *("--model", "torchvision:vit_b_16", "--weights", WEIGHTS),
        *("--layer", "encoder.layers.encoder_layer_6.mlp.0"),
    ],
}


def questions(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Start runs twice each, `--repeats` times: the second time their networks are known; write questions.json."""
    shares: dict[str, list[float]] = {}
    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for name, flags in NETWORKS.items():
            out = work / "run"
            shutil.rmtree(out, ignore_errors=True)
            # Else what was kept of an earlier repetition would be known.
            os.environ["EXEMPLAR_RAY_CACHE"] = f"{work}/cache-{number}"
            asked, known = (_seconds_to_start([*flags, "--data", *shards, "--out", str(out)]) for _ in range(2))
            shares.setdefault(name, []).append(asked / known)
            print(f"  {name}: {asked:.1f} s to the first shard, {known:.1f} s where the network is known", flush=True)
    print()
    print_table(("network", "start, questioned / known"), [(name, spread(s, 2)) for name, s in shares.items()])
    write_figures(options.out, "questions", shares)


def _seconds_to_start(arguments: Sequence[str]) -> float:
    """Return how long a run takes from its command to the line with which its scan begins, and end it there."""
    started = time.perf_counter()
    command = [sys.executable, "-u", "-m", "exemplar_ray", "run", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if "tasks at once" in line:
                seconds = time.perf_counter() - started
                process.send_signal(signal.SIGTERM)
                process.communicate()
                return seconds
    raise RuntimeError(f"the run did not start; it ended with status {process.returncode}")
