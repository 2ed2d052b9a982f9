"""What a worker process does for one task. Knows nothing of Ray; the network is kept between tasks."""

from __future__ import annotations

import os
import socket
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa
import torch

from exemplar_ray import parts
from exemplar_ray.activations import Trunk
from exemplar_ray.compiled import CannotCompileError, CompiledTrunk, compiled_trunk
from exemplar_ray.errors import UsageError
from exemplar_ray.gather import REFERENCE_THREADS, gather_shard
from exemplar_ray.images import UndecodableImageError, decode_and_crop
from exemplar_ray.memory import keep_freed_memory
from exemplar_ray.models import load_network
from exemplar_ray.run_folder import RunFolder
from exemplar_ray.scan import scan_shard
from exemplar_ray.shards import Shard, ShardReader
from exemplar_ray.spec import ResolvedSpec
from exemplar_ray.topk import Scores

# Broken EXIF, palettes with transparency, large images: images like any other, no news.
warnings.filterwarnings("ignore", module=r"PIL\.")


_DECODED_TO_MEASURE = 50


@dataclass(frozen=True)
class ScanSettings:
    """How a scan task works; none of it changes the result.

    `compile` is `always` (or fail), `never`, or `auto`: if that can be done.
    """

    run_folder: str
    fingerprint: str
    batch_size: int
    threads: int
    use_gpu: bool
    compile: str
    max_skipped: int
    sample_rate: float


def scan_and_commit(spec: ResolvedSpec, shard: Shard, position: int, settings: ScanSettings) -> dict[str, Any]:
    """Scan one shard, store its part and completion record, and return the record."""
    started = time.perf_counter()
    folder = RunFolder(settings.run_folder)
    # The attempt before this one may have been lost after it had stored everything; so may another driver's.
    if (record := folder.committed(position, shard, settings.fingerprint)) is not None:
        return record
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    loaded = _scanning_trunk(spec, _device(settings.use_gpu), settings.batch_size, settings.threads, settings.compile)
    trunk = loaded.trunk
    scanned = scan_shard(
        trunk,
        spec,
        shard,
        position,
        batch_size=settings.batch_size,
        decode_threads=settings.threads,
        max_skipped=settings.max_skipped,
        sample_rate=settings.sample_rate,
    )
    record = {
        "fingerprint": settings.fingerprint,
        "shard": shard.to_json(),
        "rows": scanned.rows,
        "scored": scanned.scored,
        "skipped": len(scanned.skipped_images),
        "skipped_images": scanned.skipped_images,
        "not_finite": scanned.not_finite,
        "seconds": round(time.perf_counter() - started, 3),
        "host": socket.gethostname(),
        "device": str(trunk.device),
        "compiled": isinstance(trunk, CompiledTrunk),
        **({"not_compiled": loaded.not_compiled} if loaded.not_compiled else {}),
        # What this worker process has done so far: a network is loaded once, however many shards it scans.
        "worker": {"process": os.getpid(), **_counts},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return folder.commit(position, parts.to_files(scanned.part, spec), record)


def probe(spec: ResolvedSpec, shard: Shard, settings: ScanSettings, rows: int) -> dict[str, Any]:
    """Scan a shard's first rows, keep nothing, and return what it took: images, seconds, seconds to load,
    and seconds to decode one image."""
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    started = time.perf_counter()
    loaded = _scanning_trunk(spec, _device(settings.use_gpu), settings.batch_size, settings.threads, settings.compile)

    def scan(rows: int) -> int:
        scanned = scan_shard(
            loaded.trunk,
            spec,
            shard,
            0,
            batch_size=settings.batch_size,
            decode_threads=settings.threads,
            max_skipped=rows,
            sample_rate=settings.sample_rate,
            most_rows=rows,
        )
        return scanned.rows

    # The first batch prepares what the others find ready.
    scan(1)
    loading = time.perf_counter() - started
    started = time.perf_counter()
    images = scan(rows)
    seconds = time.perf_counter() - started
    return {
        "images": images,
        "seconds": seconds,
        "loading_seconds": loading,
        "decoding_seconds": _decoding_seconds(spec, shard),
    }


def _decoding_seconds(spec: ResolvedSpec, shard: Shard) -> float:
    """Return how long reading, decoding and cropping one image takes a CPU."""
    with ShardReader(shard) as reader:
        started = time.perf_counter()
        images = list(islice(reader.images(), _DECODED_TO_MEASURE))
        for image in images:
            with suppress(UndecodableImageError):
                decode_and_crop(image.data, spec.preprocess, spec.decode)
        return (time.perf_counter() - started) / len(images)


def gather(spec: ResolvedSpec, shard: Shard, candidates: Scores) -> tuple[pa.Table, Scores, pa.Table]:
    """Return the images, exact scores and places of one shard's candidates, see `GatheredShard`."""
    keep_freed_memory()
    torch.set_num_threads(REFERENCE_THREADS)
    gathered = gather_shard(_trunk(spec, "cpu", "float32"), spec, shard, candidates)
    # Not the object: the driver would need torch to unpickle it.
    return gathered.images, gathered.exact, gathered.places


def _device(use_gpu: bool) -> str:
    if use_gpu and not torch.cuda.is_available():
        raise UsageError(
            f"the task was given a GPU on {socket.gethostname()}, but torch {torch.__version__} sees none there; "
            "check the driver, or run with --gpus-per-task 0"
        )
    return "cuda" if use_gpu else "cpu"


@dataclass(frozen=True)
class _Loaded:
    """A trunk to scan with, and why it is not compiled, if it should have been."""

    trunk: Trunk | CompiledTrunk
    not_compiled: str | None = None


_counts = {"trunks_loaded": 0, "trunks_compiled": 0}


@lru_cache(maxsize=2)
def _scanning_trunk(spec: ResolvedSpec, device: str, batch_size: int, threads: int, compile_it: str) -> _Loaded:
    _counts["trunks_loaded"] += 1
    if compile_it == "never" or device != "cpu":
        return _Loaded(_trunk(spec, device, spec.precision))
    try:
        trunk, new = compiled_trunk(spec, batch_size, threads, lambda: _trunk(spec, device, spec.precision))
    except CannotCompileError as error:
        if compile_it == "always":
            raise UsageError(
                f"'{spec.model}' cannot be compiled on {socket.gethostname()} ({error}); run with --compile never"
            ) from error
        return _Loaded(_trunk(spec, device, spec.precision), str(error))
    _counts["trunks_compiled"] += new
    return _Loaded(trunk)


@lru_cache(maxsize=2)
def _trunk(spec: ResolvedSpec, device: str, precision: str) -> Trunk:
    network = load_network(spec.model, spec.weights, check_factory=False)
    if network.weights_sha256 != spec.weights_sha256:
        raise UsageError(
            f"the weights of '{spec.model}' on {socket.gethostname()} are not the run's: "
            f"{network.weights_sha256[:12]} there, {spec.weights_sha256[:12]} in the run"
        )
    return Trunk.of_run(spec, network.module, torch.device(device), precision)
