"""How the speed of the scan depends on how many images, channels and layers there are, and what Ray costs."""

import json
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarking.data import copies_of, shards_of_rows
from benchmarking.limits import BATCH, spec_of, trunk_of
from benchmarking.measuring import (
    Rate,
    allowed_cores,
    in_own_process,
    only_on,
    print_table,
    ratios,
    reference_machine,
    spread,
)
from benchmarking.own_job import EXACT, first_runs, job
from exemplar_ray.scan import scan_shard
from exemplar_ray.shards import discover

THREE_LAYERS = [*EXACT, "--layer", "mixed3a", "mixed3b", "mixed4a"]
TEN_CHANNELS = [*EXACT, "--channels", "0-9"]


def scaling(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Measure every scan `--repeats` times, print the ratios, write scaling.json."""
    machine = reference_machine(allowed_cores())
    print_table(("reference machine", ""), list(machine.items()))
    sizes = sorted({1, options.copies, 4 * options.copies})
    copies = copies_of(shards, work / "copies", sizes[-1])
    large_shards = shards_of_rows(shards, work / "large", options.shard_rows, options.large_shards)
    first_runs(shards, {"exact": EXACT, "10 channels": TEN_CHANNELS, "three layers": THREE_LAYERS})
    usual = f"{options.copies} x the images"
    rates: dict[str, list[Rate]] = {}

    def add(name: str, rate: Rate) -> None:
        rates.setdefault(name, []).append(rate)
        print(f"  {name}: {rate.per_second:.1f} images/s", flush=True)

    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for size in sizes:
            add(f"{size} x the images", scan(copies[:size], EXACT))
        add("10 channels", scan(copies[: options.copies], TEN_CHANNELS))
        add("three layers", scan(copies[: options.copies], THREE_LAYERS))
        with only_on(allowed_cores()[:1]):
            add("one core, Ray", scan(large_shards, EXACT))
            add("one core, a plain loop", in_own_process(plain_loop, large_shards))
    print()
    compared = [(f"{size} x the images", "1 x the images") for size in sizes[1:]]
    compared += [("10 channels", usual), ("three layers", usual), ("one core, Ray", "one core, a plain loop")]
    per_second = {name: [rate.per_second for rate in found] for name, found in rates.items()}
    print_table(("scan", "images/s"), [(name, spread(figures)) for name, figures in per_second.items()])
    found = {f"{name} / {base}": ratios(per_second[name], per_second[base]) for name, base in compared}
    print_table(("images/s compared", "ratio"), [(name, spread(figures, 3)) for name, figures in found.items()])
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        contents = {"machine": machine, "options": vars(options), "images_per_second": per_second, "ratios": found}
        (out / "scaling.json").write_text(json.dumps(contents, indent=2) + "\n")


def scan(data: Sequence[str], flags: Sequence[str]) -> Rate:
    """Run the job; return the rate of its scan."""
    rates, _ = job(data, flags)
    return rates["scan"]


def plain_loop(shards: Sequence[str]) -> Rate:
    """Scan shard after shard in this process, without Ray; loading the network counts, as it does in the job."""
    torch.set_num_threads(1)
    spec = spec_of("float32")
    started, count = time.perf_counter(), 0
    trunk = trunk_of("float32")
    for position, shard in enumerate(discover(shards)):
        scanned = scan_shard(trunk, spec, shard, position, batch_size=BATCH, decode_threads=1, max_skipped=0)
        count += scanned.scored
    return Rate(count, time.perf_counter() - started)
