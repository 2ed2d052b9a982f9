"""What the cores could do at best: decoding alone, the network's trunk alone, one process a core.

Both share the cores, so nothing that decodes and scores every image is faster than
1 / (1 / decoding + 1 / trunk).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from itertools import cycle
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from benchmarking.data import first_images
from benchmarking.measuring import Rate, allowed_cores
from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.executor.resources import Demand, Resources, batch_size_of
from exemplar_ray.exemplars.resolve import resolve
from exemplar_ray.exemplars.spec import ExemplarsSpec, RunSpec
from exemplar_ray.exemplars.to_resolve import ToResolve
from exemplar_ray.network.compiled_trunk import CompiledForm, CompiledTrunk, compiled_trunk
from exemplar_ray.network.loading import trunk_of
from exemplar_ray.network.models import find_architecture

MODEL, WEIGHTS = "inceptionv1", "random:0"
# As a worker of one core scans them.
BATCH = batch_size_of(Resources(), Demand())
# How many different images a decoding process goes through.
_IMAGES = 200

# name of a run -> (precision of its trunk, how it decodes)
KINDS = {"exact": ("float32", "reference"), "screened": ("bfloat16", "fast")}


@lru_cache
def spec_of(precision: str, decode: str = "reference", **wanted: Any) -> ExemplarsSpec:
    """Return what a run computes; the network is built once a process to find out.

    Args:
        wanted: what else is not as usual, as `RunSpec` has it.
    """
    asked = RunSpec(model=MODEL, weights=WEIGHTS, precision=precision, decode=decode, **wanted)
    return resolve(ToResolve(asked)).spec


def preprocess_of_model() -> Preprocess:
    """Return how the model's images are prepared."""
    preprocess = find_architecture(MODEL).preprocess
    assert preprocess is not None, f"{MODEL} says how its images are prepared"
    return preprocess


def crop_of(data: bytes, decode: str) -> np.ndarray:
    """Turn bytes into pixels as `--decode` does."""
    return decoder_of(decode)(data, preprocess_of_model())


def scanning_trunk(spec: ExemplarsSpec) -> CompiledTrunk:
    """Load the trunk that a worker runs: compiled, for as many threads as torch uses here."""
    form = CompiledForm(spec.scan_trunk, BATCH, torch.get_num_threads())
    return compiled_trunk(form, partial(trunk_of, device="cpu"))[0]


def decoding_alone(shards: Sequence[str], decode: str, seconds: float) -> Rate:
    """Decode and crop on every core, from memory."""
    return _on_every_core(partial(_decoder, first_images(shards, _IMAGES), decode), seconds)


def trunk_alone(precision: str, seconds: float) -> Rate:
    """Run the trunk on every core, over one batch of noise."""
    return _on_every_core(partial(_scorer, precision), seconds)


def bound(decoding: float, trunk: float) -> float:
    """Return the images/s that cores reach at most which do both, from what they reach with each alone."""
    return 1 / (1 / decoding + 1 / trunk)


def _decoder(data: list[bytes], decode: str) -> Callable[[], int]:
    following = cycle(data)

    def step() -> int:
        crop_of(next(following), decode)
        return 1

    return step


def _scorer(precision: str) -> Callable[[], int]:
    trunk = scanning_trunk(spec_of(precision))
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), np.uint8)
    crops = torch.from_numpy(noise)

    def step() -> int:
        trunk(crops)
        return BATCH

    return step


def _on_every_core(prepare: Callable[[], Callable[[], int]], seconds: float) -> Rate:
    """Repeat a step in one process a core, all at the same time.

    Args:
        prepare: makes the step, in the process that repeats it; a step returns its count of images.
    """
    cores, context = len(allowed_cores()), get_context("spawn")
    barrier = context.Barrier(cores)
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_meet_at, initargs=(barrier,)) as pool:
        # Each call waits for the others, so no process takes two of them.
        rates = list(pool.map(_repeat, [prepare] * cores, [seconds] * cores))
    per_second = sum(rate.per_second for rate in rates)
    images_in_all = sum(rate.images for rate in rates)
    return Rate(images_in_all, images_in_all / per_second)


_barrier: Any = None


def _meet_at(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _repeat(prepare: Callable[[], Callable[[], int]], seconds: float) -> Rate:
    keep_freed_memory()
    torch.set_num_threads(1)
    step = prepare()
    # Memory is allocated, and what compiles compiles, before the clock starts.
    for _ in range(2):
        step()
    _barrier.wait()
    started, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < seconds:
        count += step()
    return Rate(count, taken)
