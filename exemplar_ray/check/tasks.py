"""What a worker does for the check: build the network and see what it gives; look at images of a shard.

Named by the driver as `module:function`; see `executor.cluster`. The network is kept between tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exemplar_ray.check.counts import Count
from exemplar_ray.check.images import Chosen
from exemplar_ray.check.logits import (
    NoLogitsError,
    are_images,
    are_probabilities,
    logits_of,
    probabilities,
    ranks_of,
)
from exemplar_ray.check.looking import (
    FIRST_GUESSES,
    AskedNetwork,
    Introduced,
    Looked,
    LookSettings,
    SeenGuesses,
    ToIntroduce,
)
from exemplar_ray.data.batches import Batch, batches
from exemplar_ray.data.first_images import two_images
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.executor.machine import cpus
from exemplar_ray.executor.malloc import keep_freed_memory
from exemplar_ray.network.describe import question_network
from exemplar_ray.network.inputs import Input, labels_for
from exemplar_ray.network.layers import NCHW
from exemplar_ray.network.layouts import AUTO
from exemplar_ray.network.loading import device, network_of
from exemplar_ray.network.loading import import_library as import_library
from exemplar_ray.network.looks import failure, in_one_line
from exemplar_ray.network.models import Network, find_architecture
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.network.resolve import NetworkRequest, build_network
from exemplar_ray.network.response_norm import FastResponseNorm
from exemplar_ray.network.spec import NetworkSpec
from exemplar_ray.network.trunk import to_input

# Broken EXIF, palettes with transparency, large images: images like any other, no news.
warnings.filterwarnings("ignore", module=r"PIL\.")

OUTPUTS = "outputs"


class Logits(nn.Module):
    """A network of which only the logits are left, wherever in its output they are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return float [images, outputs].

        Raises:
            NoLogitsError: the network gives none.
        """
        return logits_of(Input(x, labels).given_to(self.network), len(x))


class _Whole(nn.Module):
    """A network as the only layer, `OUTPUTS`, of another one: what it gives may be made of several layers' outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.add_module(OUTPUTS, network)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        return Input(x, labels).given_to(self.get_submodule(OUTPUTS))


def introduce(given: ToIntroduce) -> Introduced:
    """Build a network, see what it gives for an image, and put the questions to what it says of classes.

    Raises:
        UsageError: the network cannot be built, fails, or is no function of the image.
    """
    # Nothing else of the check computes meanwhile.
    torch.set_num_threads(cpus())
    asked = given.asked
    if isinstance(asked, AskedNetwork):
        network, spec = build_network(NetworkRequest(asked.model, asked.weights, (), "all", asked.preprocess))
    else:
        network, spec = _network_of_run(asked), asked
    own, images = network.architecture.preprocess, two_images(given.shards, spec.preprocess, spec.takes_labels)
    try:
        output = _output(network.module, images.crops, images.labels, spec.preprocess)
    except Exception as error:  # a user's network may raise anything
        reason = in_one_line(error)
        raise UsageError(failure(network.module, spec.preprocess, spec.takes_labels, reason)) from error
    outputs, no_logits = None, None
    try:
        outputs = logits_of(output, len(images.crops)).shape[1]
    except NoLogitsError as error:
        no_logits = str(error)
        if not are_images(output, images.crops):
            return Introduced(spec, own, None, no_logits)
        no_logits = f"it gives images of {spec.preprocess.channels} x {output.shape[2]} x {output.shape[3]}"
    whole = _Whole(network.module if no_logits else Logits(network.module))
    answers = question_network(whole, (OUTPUTS,), "all", spec.preprocess, images, NCHW if no_logits else AUTO).answers
    spec = replace(spec, channels_last=answers.channels_last)
    return Introduced(spec, own, outputs, no_logits, tuple(answers.lines()), gives_images=no_logits is not None)


def _network_of_run(spec: NetworkSpec) -> Network:
    if find_architecture(spec.model).source_sha256 != spec.model_source_sha256:
        raise UsageError(
            f"the file or configuration of '{spec.model}' is not the run's any more; give --model and --data instead "
            "of the run folder"
        )
    return network_of(spec)


def look(settings: LookSettings, chosen: Chosen) -> Looked:
    """Show a shard's chosen images to the network, prepared in all wanted ways, and count when it is right.

    Raises:
        ShardError: the file is not the listed one.
        UsageError: the weights here are not those that were asked for.
    """
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    at = device(settings.use_gpu)
    module = _module(settings.network, at)
    looked = Looked(counts=np.zeros((len(settings.readings), len(settings.preprocessings), len(Count._fields)), int))
    with open_shard(chosen.shard) as reader:
        images = reader.select(chosen.rows)
        for batch in batches(
            images, settings.network.preprocess, settings.batch_size, settings.threads, torch.device(at)
        ):
            looked = looked.plus(_look_at(module, settings, chosen, batch))
    return looked


@lru_cache(maxsize=1)
def _module(spec: NetworkSpec, at: str) -> nn.Module:
    module = Logits(network_of(spec).module.to(at))
    return module.to(memory_format=torch.channels_last) if spec.channels_last else module


def _output(
    module: nn.Module, crops: Tensor, labels: Tensor | None, preprocess: Preprocess, channels_last: bool = False
) -> Any:
    """Return what a network gives for a batch, computed as the reference."""
    with torch.inference_mode(), reference_precision(), FastResponseNorm():
        pixels = to_input(crops, preprocess)
        if channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return Input(pixels, labels).given_to(module)


def _look_at(module: nn.Module, settings: LookSettings, chosen: Chosen, batch: Batch) -> Looked:
    here = len(batch.images)
    labels = [row.label for row in batch.images]
    wanted = [_outputs_of(reading.outputs, labels) for reading in settings.readings]
    counts = np.zeros((len(wanted), len(settings.preprocessings), len(Count._fields)), np.int64)
    rights: list[np.ndarray] = []
    first = torch.zeros(0)
    # Where no label is known there is nothing to compare.
    ways = settings.preprocessings if any((outputs >= 0).any() for outputs in wanted) else settings.preprocessings[:1]
    given = labels_for(settings.network, chosen.shard.name, batch.images, len(batch.crops))
    for place, preprocess in enumerate(ways if here else ()):
        at_hand = None if given is None else given.to(batch.crops.device)
        output = _output(module, batch.crops, at_hand, preprocess, settings.network.channels_last)
        logits = output.float()[:here].cpu()
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
                label=row.label,
                outputs=tuple(likeliest.indices.tolist()),
                probabilities=tuple(likeliest.values.tolist()),
                crop=batch.crops[place].cpu().numpy().copy(),
            )
        )
    return tuple(found)
