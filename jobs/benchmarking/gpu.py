"""What one GPU does, end to end from parquet bytes, and what it could do at best. Needs no Ray.

The worker's own code, in one to four processes that share the GPU and the cores, as Ray's tasks with a share of a GPU
do. Beside it what decoding alone and the network's trunk alone reach, and whether the answer is the CPU's.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarking.data import copies_of, first_images
from benchmarking.limits import bound, decoding_alone, spec_of
from benchmarking.measuring import Rate, allowed_cores, in_own_process, print_table, reference_machine, spread
from exemplar_ray.data import decode_gpu as gpu_decoding
from exemplar_ray.data.preprocess import GPU_DECODER
from exemplar_ray.data.shards import Shard, discover, inspect
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.gathered import GatheredShard
from exemplar_ray.exemplars.merge import fold
from exemplar_ray.exemplars.reference import REFERENCE_THREADS
from exemplar_ray.exemplars.rerank.selection import Selection, rerank
from exemplar_ray.exemplars.scan import scan_shard
from exemplar_ray.exemplars.settings import ScanSettings
from exemplar_ray.exemplars.topk import Scores
from exemplar_ray.network.loading import trunk_of

KINDS = [("float32", "reference"), ("bfloat16", "fast"), ("float16", "fast"), ("bfloat16", GPU_DECODER)]
PROCESSES = (1, 2, 4)
# Images a forward pass, as the job has it.
BATCH = {"cuda": 128, "cpu": 8}
# Seconds after which a process that has not come is taken for lost.
_LONGEST_START = 300


def gpu(shards: Sequence[str], work: Path, options: Namespace) -> None:
    """Measure the limits and every kind of scan `--repeats` times; compare answers; write gpu.json."""
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU: the CPU in its place"
    machine = {**reference_machine(allowed_cores()), "GPU": name}
    print_table(("reference machine", ""), list(machine.items()))
    data = copies_of(shards, work / "copies", max(options.copies, *PROCESSES))
    rates: dict[str, list[float]] = {}

    def add(what: str, rate: Rate) -> None:
        rates.setdefault(what, []).append(rate.per_second)
        print(f"  {what}: {rate.per_second:.0f} images/s", flush=True)

    for number in range(options.repeats):
        print(f"repetition {number + 1} of {options.repeats}", flush=True)
        for decode in dict.fromkeys(decode for _, decode in KINDS):
            if decode == GPU_DECODER:
                rate = in_own_process(decoding_on, device, first_images(shards, BATCH[device]), options.limit_seconds)
            else:
                rate = decoding_alone(shards, decode, options.limit_seconds)
            add(f"decoding alone, {decode}", rate)
        for precision in dict.fromkeys(precision for precision, _ in KINDS):
            add(f"trunk alone, {precision}", in_own_process(trunk_on, device, precision, options.limit_seconds))
        for precision, decode in KINDS:
            for processes in PROCESSES:
                what = f"scan, {precision}, decoding {decode}, {processes} processes"
                add(what, scan_together(data, precision, decode, device, processes))
    print()
    print_table(("one GPU", "images/s"), [(what, spread(figures, 0)) for what, figures in rates.items()])
    shares = {what: _share(what, rates) for what in rates if what.startswith("scan")}
    print_table(("scan / what decoding and trunk allow", ""), [(what, spread(s, 2)) for what, s in shares.items()])
    answers = {}
    exact = in_own_process(exemplars, shards, "float32", "reference", "cpu")[0]
    for precision, decode in KINDS:
        found, unsettled = in_own_process(exemplars, shards, precision, decode, device)
        same = len(exact & found)
        answers[f"{precision}, decoding {decode}"] = f"{same} of {len(exact)} rows, {unsettled} channels not settled"
    print_table(("the CPU's exact top 10", "found"), list(answers.items()))
    if options.out:
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        contents = {"machine": machine, "options": vars(options), "images_per_second": rates, "of the limit": shares}
        (out / "gpu.json").write_text(json.dumps({**contents, "answers": answers}, indent=2) + "\n")


def decoding_on(device: str, data: Sequence[bytes], seconds: float) -> Rate:
    """Decode and crop batches on the device, from memory."""
    preprocess = spec_of("float32").network.preprocess

    def step() -> int:
        return len(gpu_decoding.decode_and_crop(data, preprocess, torch.device(device)))

    return _repeat(step, device, seconds)


def trunk_on(device: str, precision: str, seconds: float) -> Rate:
    """Score one batch of noise over and over, which lies on the device already."""
    trunk = trunk_of(spec_of(precision).scan_trunk, device)
    noise = np.random.default_rng(0).integers(0, 256, (BATCH[device], 224, 224, 3), np.uint8)
    crops = torch.from_numpy(noise).to(device)

    def step() -> int:
        trunk(crops)
        return BATCH[device]

    return _repeat(step, device, seconds)


def scan_together(data: Sequence[str], precision: str, decode: str, device: str, processes: int) -> Rate:
    """Scan all shards in processes that share the device; from when all are ready to when all are done."""
    context = get_context("spawn")
    threads = max(1, len(allowed_cores()) // processes)
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, initializer=_meet_at, initargs=(barrier,)) as pool:
        scan = partial(_scan_some, precision=precision, decode=decode, device=device, threads=threads)
        # Each call waits for the others, so no process takes two of them.
        found = list(pool.map(scan, [data[first::processes] for first in range(processes)]))
    return Rate(
        sum(count for count, _, _ in found), max(end for *_, end in found) - min(start for _, start, _ in found)
    )


_barrier: Any = None


def _meet_at(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _scan_some(data: Sequence[str], precision: str, decode: str, device: str, threads: int) -> tuple[int, float, float]:
    """Scan shards once everybody is ready; return images, start and end in seconds of the machine's clock."""
    torch.set_num_threads(threads)
    spec = spec_of(precision, decode)
    trunk = trunk_of(spec.scan_trunk, device)
    shards = inspect(discover(data))[0]
    scan = partial(scan_shard, trunk, ScanSettings(spec, BATCH[device], threads))
    scan(shards[0], 0)
    _barrier.wait(_LONGEST_START)
    started = time.monotonic()
    count = sum(scan(shard, position).read.scored for position, shard in enumerate(shards))
    return count, started, time.monotonic()


def exemplars(data: Sequence[str], precision: str, decode: str, device: str) -> tuple[set[tuple], int]:
    """Find the top 10 as a run does: scan, merge, gather until nothing more is wanted, without a second scan.

    Returns:
        {(channel, rank, shard, row)}, and how many channels are not settled.
    """
    torch.set_num_threads(max(1, len(allowed_cores()) // 2))
    spec = spec_of(precision, decode)
    shards: list[Shard] = inspect(discover(data))[0]
    trunk = trunk_of(spec.scan_trunk, device)
    settings = ScanSettings(spec, BATCH[device], threads=4)
    scanned = [scan_shard(trunk, settings, shard, position) for position, shard in enumerate(shards)]
    merged = fold(((p, one.part) for p, one in enumerate(scanned)), spec)
    selection = Selection(spec, merged, sum(one.read.scored for one in scanned))
    reference = trunk_of(spec.reference_trunk, "cpu")
    torch.set_num_threads(REFERENCE_THREADS)

    def gather(wanted: dict[int, Scores]) -> tuple[dict[int, GatheredShard], dict[str, str]]:
        gathered = {p: gather_shard(reference, spec, shards[p], candidates) for p, candidates in wanted.items()}
        return {p: replace(one, images=one.images.drop_columns(["bytes"])) for p, one in gathered.items()}, {}

    rerank(selection, gather)
    found = selection.result()
    scores = found.scores
    rows = zip(*(v.tolist() for v in (scores.channel, found.ranks, scores.shard, scores.row)), strict=True)
    return set(rows), len(selection.unsettled())


def _repeat(step: Callable[[], int], device: str, seconds: float) -> Rate:
    """Repeat a step and wait for what it has queued on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(2):
        step()
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        # Several, so that waiting for the device does not count.
        count += sum(step() for _ in range(4))
        wait()
    return Rate(count, time.perf_counter() - started)


def _share(what: str, rates: dict[str, list[float]]) -> list[float]:
    """Return a scan's share of what its limits allow: the slower of two where they run side by side, on CPU and
    GPU; what both together allow where the GPU does both."""
    _, precision, decode, _ = (part.removeprefix("decoding ") for part in what.split(", "))
    limits = zip(rates[f"decoding alone, {decode}"], rates[f"trunk alone, {precision}"], strict=True)
    allowed = [bound(*both) if decode == GPU_DECODER else min(both) for both in limits]
    return [rate / limit for rate, limit in zip(rates[what], allowed, strict=True)]
