"""How the speed of the scan depends on how many images, channels and layers there are, and what Ray costs."""

import os
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from benchmarking.data import copies_of, shards_of_rows
from benchmarking.limits import BATCH, scanning_trunk, spec_of
from benchmarking.measuring import (
    Rate,
    allowed_cores,
    in_own_process,
    only_on,
    print_table,
    ratios,
    reference_machine,
    spread,
    write_figures,
)
from benchmarking.own_job import EXACT, SCREENED, first_runs, job
from exemplar_ray.data.shards import Shard, discover, inspect
from exemplar_ray.executor import item_task
from exemplar_ray.executor.item_task import ItemTask
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.exemplars.parts import to_files
from exemplar_ray.exemplars.samples import sample_rate
from exemplar_ray.exemplars.scan import scan_shard
from exemplar_ray.exemplars.scan_job import TASKS
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.runs.records import CompletionRecord

# What is scanned by turns, and how it differs from a run as usual.
WANTED: dict[str, dict[str, Any]] = {
    "508 channels": {},
    "10 channels": {"channels": "0-9"},
    "three layers": {"layer": ("mixed3a", "mixed3b", "mixed4a")},
}


def scaling(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Measure every scan `--repeats` times, print the ratios, write scaling.json."""
    machine = reference_machine(allowed_cores())
    print_table(("reference machine", ""), list(machine.items()))
    sizes = sorted({1, options.copies, 4 * options.copies})
    copies = copies_of(shards, work / "copies", sizes[-1])
    large_shards = shards_of_rows(shards, work / "large", options.shard_rows, options.large_shards)
    kinds = {"exact": EXACT, "screened": SCREENED}
    first_runs(shards, kinds)
    rates: dict[str, list[Rate]] = {}

    def add(name: str, rate: Rate) -> None:
        rates.setdefault(name, []).append(rate)
        print(f"  {name}: {rate.per_second:.1f} images/s", flush=True)

    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for size in sizes:
            for kind, flags in kinds.items():
                for part, rate in job(copies[:size], flags)[0].items():
                    add(f"{kind}, {part}, {size} x the images", rate)
        with only_on(allowed_cores()[:1]):
            for name, rate in in_own_process(by_turns, shards):
                add(name, rate)
        add("large shards, Ray", job(large_shards, EXACT)[0]["scan"])
        add("large shards, plain processes", plain_processes(large_shards))
        add("the same, memory given back", plain_processes(large_shards, keep_memory=False))
    print()
    compared = [
        (f"{kind}, scan, {size} x the images", f"{kind}, scan, 1 x the images") for kind in kinds for size in sizes[1:]
    ]
    compared += [(name, "508 channels") for name in list(WANTED)[1:]]
    compared += [("large shards, Ray", "large shards, plain processes")]
    compared += [("large shards, plain processes", "the same, memory given back")]
    per_second = {name: [rate.per_second for rate in found] for name, found in rates.items()}
    print_table(("", "images/s"), [(name, spread(figures)) for name, figures in per_second.items()])
    found = {f"{name} / {base}": ratios(per_second[name], per_second[base]) for name, base in compared}
    print_table(("images/s compared", "ratio"), [(name, spread(figures, 3)) for name, figures in found.items()])
    contents = {"machine": machine, "options": vars(options), "images_per_second": per_second, "ratios": found}
    write_figures(options.out, "scaling", contents)


def by_turns(shards: Sequence[str]) -> list[tuple[str, Rate]]:
    """Scan every shard for one after another of what is `WANTED`, without Ray: the differences are small, and what
    the machine does in one minute it does not do in the next."""
    keep_freed_memory()
    torch.set_num_threads(1)
    specs = {name: spec_of("float32", **wanted) for name, wanted in WANTED.items()}
    trunks = {name: scanning_trunk(spec) for name, spec in specs.items()}
    rates = []

    def scan_one(name: str, shard: Shard, most_rows: int | None = None) -> int:
        settings = ScanSettings(specs[name], BATCH, threads=1, most_rows=most_rows)
        scanned = scan_shard(trunks[name], settings, shard, 0)
        to_files(scanned.part, specs[name])
        return scanned.read.scored

    several = discover(shards)
    # The first batch prepares what the others find ready.
    for name in WANTED:
        scan_one(name, several[0], BATCH)
    for shard in several:
        for name in WANTED:
            started = time.perf_counter()
            rates.append((name, Rate(scan_one(name, shard), time.perf_counter() - started)))
    return rates


def plain_processes(shards: Sequence[str], keep_memory: bool = True) -> Rate:
    """Scan and store shard after shard with what Ray's workers call, in a plain process a core; loading the network
    counts, as it does in the job.

    Args:
        keep_memory: whether freed memory is kept for the next batch, as it is in workers.
    """
    spec, (several, _) = spec_of("float32"), inspect(discover(shards))
    cores, spawned = len(allowed_cores()), get_context("spawn")
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(cores, spawned, initializer=_prepare, initargs=(keep_memory,)) as pool,
    ):
        settings = ScanSettings(
            spec,
            BATCH,
            threads=1,
            compile="always",
            sample_rate=sample_rate(sum(shard.images for shard in several), spec.top_k),
        )
        # One each: all of them are there before the clock starts.
        list(pool.map(time.sleep, [2] * cores))
        os.sync()
        started = time.perf_counter()
        task = ItemTask(f"{TASKS}:scan", folder, "without Ray")
        done = pool.map(item_task.do_item, repeat(task), repeat(settings), enumerate(several))
        # The task leaves nothing for others, so that there is a record alone.
        records = cast("Iterator[CompletionRecord]", done)
        return Rate(sum(record.facts["scored"] for record in records), time.perf_counter() - started)


def _prepare(keep_memory: bool) -> None:
    if not keep_memory:
        item_task.keep_freed_memory = lru_cache(lambda: None)
