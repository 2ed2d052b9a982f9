"""What a worker does for the exemplars job: scan a shard, or a piece of one, probe one, gather candidates, resolve a
spec.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from exemplar_ray.arrow_without_pandas import leave_pandas_out
from exemplar_ray.data.decode import UndecodableImageError, decode_and_crop
from exemplar_ray.data.decode_fast import decoder_of
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.shard import Shard
from exemplar_ray.executor.job import Made
from exemplar_ray.executor.machine import cpus
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.exemplars import parts
from exemplar_ray.exemplars.gather import gather_shard
from exemplar_ray.exemplars.gathered import GatheredShard, NotAsScanned, ToGather
from exemplar_ray.exemplars.mix_up import NotAsScannedError
from exemplar_ray.exemplars.near_duplicates import perceptual_hash
from exemplar_ray.exemplars.reference import REFERENCE_THREADS, Answer, Key, Reference
from exemplar_ray.exemplars.resolve import resolve as resolve_asked
from exemplar_ray.exemplars.scan import ScannedPiece, ScanResult, join, scan_piece, scan_shard
from exemplar_ray.exemplars.settings import Probed, ScanSettings
from exemplar_ray.exemplars.spec import ExemplarsSpec
from exemplar_ray.exemplars.to_resolve import Resolved, ToResolve
from exemplar_ray.network.compiled_trunk import CompiledForm, CompiledTrunk
from exemplar_ray.network.inputs import labels_for
from exemplar_ray.network.loading import LoadedTrunk, counts, device, import_library, scanning_trunk, trunk_of

__all__ = ["gather", "get_ready", "join_pieces", "probe", "resolve", "scan", "scan_a_piece"]

leave_pandas_out()
# Broken EXIF, palettes with transparency, large images: images like any other, no news.
warnings.filterwarnings("ignore", module=r"PIL\.")

_DECODED_TO_MEASURE = 50
_RECOMPUTED_TO_MEASURE = 5


def get_ready(named: tuple[str, str]) -> None:
    """Have libraries import what they import when they are first used, before a scan waits for it.

    Args:
        named: the model and its weights, see `models.load_network`.
    """
    import_library(named)
    perceptual_hash(np.zeros((1, 1, 3), np.uint8))


def resolve(given: ToResolve) -> Resolved:
    """Settle everything that decides the numbers.

    Raises:
        UsageError: see `resolve.resolve`.
    """
    # Nothing else of the run computes meanwhile.
    torch.set_num_threads(cpus())
    return resolve_asked(given)


def scan(settings: ScanSettings, given: tuple[int, Shard]) -> Made:
    """Scan one shard: its part, and what the completion record says of it.

    Args:
        given: the shard's position in the sorted shard list, and the shard.

    Raises:
        ShardError: see `scan.scan_shard`.
        UsageError: see `loading.scanning_trunk`.
    """
    position, shard = given
    loaded = _prepare(settings)
    return _made(scan_shard(loaded.trunk, settings, shard, position), settings, _facts(loaded))


def scan_a_piece(settings: ScanSettings, given: tuple[int, Shard], piece: int) -> tuple[ScannedPiece, dict[str, Any]]:
    """Scan one piece of a shard: what came of it, and what the completion record says of who did it.

    Raises:
        ShardError: see `scan.scan_piece`.
        UsageError: see `loading.scanning_trunk`.
    """
    position, shard = given
    loaded = _prepare(settings)
    return scan_piece(loaded.trunk, settings, shard, position, piece), _facts(loaded)


def join_pieces(
    settings: ScanSettings, given: tuple[int, Shard], pieces: Iterator[tuple[ScannedPiece, dict[str, Any]]]
) -> Made:
    """Put the pieces of a shard together: what `scan` makes of it.

    Raises:
        ShardError: see `scan.scan_shard`.
    """
    facts: dict[str, Any] = {}

    def scanned() -> Iterator[ScannedPiece]:
        for piece, of_worker in pieces:
            facts.update(of_worker)
            yield piece

    joined = join(scanned(), settings, given[1])
    return _made(joined, settings, facts)


def _made(scanned: ScanResult, settings: ScanSettings, of_worker: dict[str, Any]) -> Made:
    facts = {**scanned.read.facts(), "not_finite": scanned.not_finite, **of_worker}
    if settings.by_reference:
        facts["by_reference"] = True
    return Made(parts.to_files(scanned.part, settings.spec), facts, scanned.answers)


def _facts(loaded: LoadedTrunk) -> dict[str, Any]:
    """Return what a completion record says of the worker that scanned; of several, the last one's."""
    return {
        "device": str(loaded.trunk.device),
        "compiled": isinstance(loaded.trunk, CompiledTrunk),
        **({"not_compiled": loaded.not_compiled} if loaded.not_compiled else {}),
        # What this worker process has done so far.
        "worker": {"process": os.getpid(), **counts},
    }


def _prepare(settings: ScanSettings) -> LoadedTrunk:
    """Get this process ready to scan."""
    if settings.by_reference:
        torch.set_num_threads(REFERENCE_THREADS)
        return LoadedTrunk(trunk_of(settings.spec.reference_trunk, "cpu"))
    torch.set_num_threads(settings.threads)
    form = CompiledForm(settings.spec.scan_trunk, settings.batch_size, settings.threads)
    return scanning_trunk(form, device(settings.use_gpu), settings.compile)


def probe(settings: ScanSettings, shard: Shard) -> Probed:
    """Scan a shard's first `most_rows` rows, keep nothing, and return what it took."""
    keep_freed_memory()
    started = time.perf_counter()
    loaded = _prepare(settings)
    # The first batch prepares what the others find ready.
    scan_shard(loaded.trunk, replace(settings, most_rows=1), shard, 0)
    loading = time.perf_counter() - started
    started = time.perf_counter()
    images = scan_shard(loaded.trunk, settings, shard, 0).read.rows
    seconds = time.perf_counter() - started
    decoding, gathering = _decoding_seconds(settings.spec, shard), _gathering_seconds(settings.spec, shard)
    with open_shard(shard) as reader:
        return Probed(images, seconds, loading, decoding, gathering, reader.cost())


def _decoding_seconds(spec: ExemplarsSpec, shard: Shard) -> float:
    """Return how long reading, decoding and cropping one image takes a CPU."""
    with open_shard(shard) as reader:
        started = time.perf_counter()
        images = list(islice(reader.images(), _DECODED_TO_MEASURE))
        for image in images:
            with suppress(UndecodableImageError):
                decoder_of(spec.decode)(image.data, spec.network.preprocess)
        return (time.perf_counter() - started) / len(images)


def _gathering_seconds(spec: ExemplarsSpec, shard: Shard) -> float:
    """Return how long decoding and recomputing one image takes a CPU."""
    trunk, seconds = trunk_of(spec.reference_trunk, "cpu"), []
    torch.set_num_threads(REFERENCE_THREADS)
    with open_shard(shard) as reader:
        for image in islice(reader.images(), _RECOMPUTED_TO_MEASURE):
            started = time.perf_counter()
            with suppress(UndecodableImageError):
                pixels = decode_and_crop(image.data, spec.network.preprocess)
                trunk.with_maps(torch.tensor(pixels[None]), labels_for(spec.network, shard.name, [image], 1))
                seconds.append(time.perf_counter() - started)
    # The first makes things ready.
    return statistics.median(seconds) if seconds else 0.0


def gather(
    spec: ExemplarsSpec, given: ToGather, answers: Iterable[Mapping[Key, Answer] | None] = ()
) -> tuple[list[GatheredShard | NotAsScanned], Mapping[Key, Answer] | None]:
    """Return of several shards the images, exact scores and maps of their candidates, or why a shard has to be scanned
    again; and what the network said of images of which nobody had kept that, if it is to be left.

    Args:
        answers: what other tasks have left: scans, see `Answers.by_content`, and this one.

    Raises:
        ShardError: see `gather.gather_shard`.
    """
    keep_freed_memory()
    torch.set_num_threads(REFERENCE_THREADS)
    trunk = trunk_of(spec.reference_trunk, "cpu")
    reference = Reference(trunk, spec.network, answers)
    gathered: list[GatheredShard | NotAsScanned] = []
    sent: set[bytes] = set()
    for shard, candidates, had in given.shards:
        try:
            found = gather_shard(trunk, spec, shard, candidates, reference)
            gathered.append(found.with_bytes_once(had, sent))
        except NotAsScannedError as error:
            gathered.append(NotAsScanned(str(error)))
    return gathered, reference.remembered if given.leave else None
