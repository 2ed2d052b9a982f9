"""What a worker does for the check: build the network and see what it gives; look at images of a shard.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from exemplar_ray.check.counts import Count
from exemplar_ray.check.images import Chosen
from exemplar_ray.check.logits import NoLogitsError, are_probabilities, logits_of, probabilities, ranks_of
from exemplar_ray.check.looking import FIRST_GUESSES, AskedNetwork, Introduced, Looked, LookSettings, SeenGuesses
from exemplar_ray.data.batches import Batch, batches
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shards import ShardReader
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.network.loading import device, network_of
from exemplar_ray.network.models import find_architecture
from exemplar_ray.network.resolve import resolve_network
from exemplar_ray.network.response_norm import FastResponseNorm
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.trunk import reference_precision, to_input

# Broken EXIF, palettes with transparency, large images: images like any other, no news.
warnings.filterwarnings("ignore", module=r"PIL\.")

# With one image, what is of the batch and what is of the image cannot be told apart.
_INTRODUCED_WITH = 2


def introduce(asked: AskedNetwork | NetworkSpec) -> Introduced:
    """Build a network and see what it gives for an image.

    Raises:
        UsageError: the network cannot be built, or fails.
    """
    if isinstance(asked, AskedNetwork):
        spec = resolve_network(asked.model, asked.weights, (), "all", asked.preprocess)
    else:
        spec = asked
    architecture = find_architecture(spec.model)
    if architecture.source_sha256 != spec.model_source_sha256:
        raise UsageError(
            f"the file of '{spec.model}' is not the run's any more; give --model and --data instead of the run folder"
        )
    module = network_of(spec).module
    crop = spec.preprocess.crop
    noise = torch.randint(0, 256, (_INTRODUCED_WITH, crop, crop, 3), generator=torch.manual_seed(0)).byte()
    # The questions that are put to every network (the same image twice, alone or in a batch) belong here, where the
    # network is at hand; their `lines()` are `answers`, and are printed before all else.
    answers: tuple[str, ...] = ()
    try:
        logits = _logits(module, noise, spec.preprocess)
    except NoLogitsError as error:
        return Introduced(spec, architecture.preprocess, None, str(error), answers=answers)
    except Exception as error:  # a user's network may raise anything
        reason = " ".join(str(error).split()) or "no reason given"
        raise UsageError(f"the model fails on {crop} x {crop} images: {type(error).__name__}: {reason}") from error
    channels_last = _takes_channels_last(module, noise, spec.preprocess, logits)
    return Introduced(spec, architecture.preprocess, logits.shape[1], None, channels_last, answers)


def _takes_channels_last(module: nn.Module, crops: Tensor, preprocess: Preprocess, logits: Tensor) -> bool:
    """Whether a network gives the same for images whose channels are last in memory. Some fail: `view` needs others."""
    try:
        same = _logits(module.to(memory_format=torch.channels_last), crops, preprocess, torch.channels_last)
    except Exception:  # a user's network may raise anything
        return False
    largest = float(logits.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(same, logits, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)


def look(settings: LookSettings, chosen: Chosen) -> Looked:
    """Show a shard's chosen images to the network, prepared in all wanted ways, and count when it is right.

    Raises:
        ShardError: the file is not the listed one.
        UsageError: the weights here are not those that were asked for.
    """
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    at = device(settings.use_gpu)
    module = _module(settings.network, at, _format(settings.channels_last))
    looked = Looked(counts=np.zeros((len(settings.readings), len(settings.preprocessings), len(Count._fields)), int))
    with ShardReader(chosen.shard) as reader:
        images = reader.select(chosen.rows)
        for batch in batches(
            images, settings.network.preprocess, settings.batch_size, settings.threads, torch.device(at)
        ):
            looked = looked.plus(_look_at(module, settings, chosen, batch))
    return looked


@lru_cache(maxsize=1)
def _module(spec: NetworkSpec, at: str, memory_format: torch.memory_format) -> nn.Module:
    return network_of(spec).module.to(at).to(memory_format=memory_format)


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _logits(
    module: nn.Module,
    crops: Tensor,
    preprocess: Preprocess,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Return a batch's logits, float32 [images, outputs], computed as the reference."""
    with torch.inference_mode(), reference_precision(), FastResponseNorm():
        pixels = to_input(crops, preprocess).contiguous(memory_format=memory_format)
        return logits_of(module(pixels), len(crops)).float()


def _look_at(module: nn.Module, settings: LookSettings, chosen: Chosen, batch: Batch) -> Looked:
    here = len(batch.images)
    labels = [row.label if row.label is not None and row.label >= 0 else None for row in batch.images]
    wanted = [_outputs_of(reading.outputs, labels) for reading in settings.readings]
    counts = np.zeros((len(wanted), len(settings.preprocessings), len(Count._fields)), np.int64)
    rights: list[np.ndarray] = []
    first = torch.zeros(0)
    # Where no label is known there is nothing to compare.
    ways = settings.preprocessings if any((outputs >= 0).any() for outputs in wanted) else settings.preprocessings[:1]
    for place, preprocess in enumerate(ways if here else ()):
        logits = _logits(module, batch.crops, preprocess, _format(settings.channels_last))[:here].cpu()
        if place == 0:
            first = logits
        for number, outputs in enumerate(wanted):
            known = (outputs >= 0).numpy()
            ranks = ranks_of(logits, outputs.clamp(min=0)).numpy()
            right = (ranks == 0) & known
            if place == 0:
                rights.append(right)
            counts[number, place] = Count(
                images=known.sum(),
                top1=right.sum(),
                top5=((ranks < FIRST_GUESSES) & known).sum(),
                gained=(right & ~rights[number]).sum(),
                lost=(~right & rights[number]).sum(),
            )
    foreign = [label for label in labels if label is not None and wanted and not _is_known(settings, label)]
    return Looked(
        images=here,
        undecodable=len(batch.undecodable),
        unlabelled=labels.count(None),
        foreign=len(foreign),
        foreign_label=max(foreign, default=None),
        not_finite=int((~torch.isfinite(first).all(1)).sum()) if here else 0,
        probabilities=sum(are_probabilities(one) for one in first.split(1)) if here else 0,
        counts=counts,
        guesses=_guesses(chosen, batch, first) if here else (),
    )


def _is_known(settings: LookSettings, label: int) -> bool:
    return any(label in reading.outputs for reading in settings.readings)


def _outputs_of(outputs: dict[int, int], labels: Sequence[int | None]) -> Tensor:
    """Return the output of each image's class, int64 [images]; -1 where there is none."""
    return torch.tensor([-1 if label is None else outputs.get(label, -1) for label in labels], dtype=torch.int64)


def _guesses(chosen: Chosen, batch: Batch, logits: Tensor) -> tuple[SeenGuesses, ...]:
    """Return the first guesses for those images of a batch that are to be shown."""
    found = []
    for place, row in enumerate(batch.images):
        if row.row not in chosen.shown:
            continue
        likeliest = probabilities(logits[place : place + 1])[0].topk(min(FIRST_GUESSES, logits.shape[1]))
        found.append(
            SeenGuesses(
                shard=chosen.shard.name,
                row=row.row,
                path=row.path,
                label=row.label if row.label is not None and row.label >= 0 else None,
                outputs=tuple(likeliest.indices.tolist()),
                probabilities=tuple(likeliest.values.tolist()),
                crop=batch.crops[place].cpu().numpy().copy(),
            )
        )
    return tuple(found)
