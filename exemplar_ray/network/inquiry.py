"""The passes that question a network: two images go through it in a few ways, and what that shows is noted.

    alone       one image, to the end: which layers run, once each, and what they give
    watched     the same image, every operation followed: the same again? which axes, which receptive fields?
    smaller     a smaller one: is it taken? which axes shrink with it?
    together    another image and the first in a batch, as a scan runs them: the same again?

Where that leaves a layer's layout open, a fifth pass asks with other content in the image's corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network import evidence
from exemplar_ray.network.evidence import Grid
from exemplar_ray.network.layers import ReceptiveField
from exemplar_ray.network.looks import FailsError, Look, channels_last_in_memory, look
from exemplar_ray.network.operations import Followed
from exemplar_ray.network.pre_relu import SUFFIX, split_name
from exemplar_ray.network.questions import (
    difference,
    refuse_changing,
    refuse_dependence_on_batch,
    refuse_other_first_axis,
)
from exemplar_ray.network.receptive_field import WatchedOperations
from exemplar_ray.network.response_norm import FastResponseNorm
from exemplar_ray.network.trunk import to_input

# What tells a layout.
OPERATIONS, SIZE, CONTENT = "the operations that made it", "an image of another size", "other content in its corners"


@dataclass
class Found:
    """What is known of one layer."""

    shape: tuple[int, ...]
    output: Tensor
    votes: dict[str, str] = field(default_factory=dict)
    """{what told: the layout that it speaks for}"""
    receptive_field: ReceptiveField | None = None
    grid: Grid | None = None


class Inquiry:
    """The passes over the images, and what they show."""

    def __init__(self, module: nn.Module, names: Sequence[str], preprocess: Preprocess, images: Tensor) -> None:
        self.module = module
        self.names = names
        self._preprocess = preprocess
        self.images = images
        self.found: dict[str, Found] = {}
        self._again: dict[str, Tensor] = {}
        self.repeated_difference = 0.0
        self.batch_difference = 0.0
        self.same_for_both: tuple[str, ...] = ()

    def look_alone(self) -> None:
        """Look at the first image, alone, to the end of the network."""
        try:
            outputs = look(self.module, self.names, self.input_of(self.images[:1]), copy, to_the_end=True)
        except FailsError as error:
            raise UsageError(self.failure(error)) from error
        for name in self.names:
            output = only_output(name, outputs[name], 1)
            self.found[name] = Found(tuple(output.shape), output)

    def look_watching(self) -> None:
        """Look again, and follow every operation."""
        x = self.input_of(self.images[:1])
        watched = WatchedOperations(x)

        def take(_name: str, output: Tensor) -> tuple[Tensor, Any]:
            return output.detach().clone(), watched.followed(output)

        try:
            outputs = look(self.module, self.names, x, take, watching=watched)
        except FailsError:
            # It cannot be followed; it runs all the same.
            outputs = self._again_unwatched(x)
        for name in self.names:
            [(output, followed)] = outputs[name]
            self._again[name] = output
            self.note_followed(name, followed)

    def _again_unwatched(self, x: Tensor) -> Look:
        try:
            return look(self.module, self.names, x, lambda name, output: (copy(name, output), None))
        except FailsError as error:
            raise UsageError(f"the model fails on an image that it took before: {error}") from error

    def look_at_a_smaller_one(self) -> str | None:
        """Look at an image of less height, and still less width; return why the network refuses it, None if it does
        not."""
        height, width = smaller(self._preprocess.crop)
        small = nn.functional.interpolate(self.input_of(self.images[:1]), (height, width), mode="bilinear")
        shapes: dict[str, tuple[int, ...]] = {}

        def take(name: str, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        refusal = None
        try:
            look(self.module, self.names, small, take)
        except FailsError as error:
            refusal = str(error)
        for name, shape in shapes.items():
            if name in self.found and len(self.found[name].shape) > 2:
                self.vote(name, SIZE, evidence.from_sizes(self.found[name].shape, shape))
        return refusal

    def look_together(self) -> bool:
        """Look at both images in a batch, as a scan runs them; return whether that goes with the channels last in
        memory.

        Raises:
            UsageError: the network is no function of the image.
        """
        x = self.input_of(self.images[[1, 0]])
        fast = self._together_fast(x)
        try:
            outputs = fast or look(self.module, self.names, x, copy)
        except FailsError as error:
            raise UsageError(f"the model fails on a batch of two images, each of which it takes: {error}") from error
        batch = {name: only_output(name, outputs[name], 2) for name in self.names}
        self._judge_repetition(batch)
        differences = self._batch_differences(batch)
        if fast and max(differences.values(), default=0) > 0:
            # Something in it goes by how its input lies in memory.
            plain = look(self.module, self.names, x, copy)
            of_plain = self._batch_differences({name: only_output(name, plain[name], 2) for name in self.names})
            if max(of_plain.values()) == 0:
                fast, differences = None, of_plain
        for name, apart in differences.items():
            refuse_dependence_on_batch(name, apart)
        self.batch_difference = max(differences.values(), default=0.0)
        return fast is not None

    def _together_fast(self, x: Tensor) -> Look | None:
        try:
            with channels_last_in_memory(self.module) as memory_format, FastResponseNorm():
                return look(self.module, self.names, x.contiguous(memory_format=memory_format), copy)
        except FailsError:
            return None

    def _judge_repetition(self, batch: Mapping[str, Tensor]) -> None:
        """Hold the two looks at the same image against each other.

        Args:
            batch: outputs for both images, the other one first.
        """
        for name, found in self.found.items():
            apart = difference(found.output, self._again[name], batch[name][:1])
            refuse_changing(name, apart)
            self.repeated_difference = max(self.repeated_difference, apart)
            if torch.equal(batch[name][0], batch[name][1]):
                self.same_for_both = (*self.same_for_both, name)

    def _batch_differences(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            name: difference(found.output, batch[name][1:], batch[name][:1])
            if batch[name][1:].shape == found.output.shape
            else float("inf")
            for name, found in self.found.items()
        }

    def responses(self, name: str) -> evidence.Responses | None:
        """Return how a layer responds to other content in the image's corners; None if that cannot be told."""
        if "responses_of_all" in vars(self):
            return self.responses_of_all.get(name)
        return self._responses([name]).get(name)

    @cached_property
    def responses_of_all(self) -> dict[str, evidence.Responses]:
        """Return the same of every module that can be asked."""
        return self._responses([name for name, _ in self.module.named_modules() if name], to_the_end=True)

    def _responses(self, names: Sequence[str], to_the_end: bool = False) -> dict[str, evidence.Responses]:
        side = self._preprocess.crop
        tokens = [found.shape[1] for name, found in self.found.items() if len(found.shape) == 3]
        # A token's own part of the image, where there are tokens; else enough for a small map's corner.
        size = max(1, side // max(4, int(max(tokens, default=16) ** 0.5)))
        image = self.images[0]
        together = torch.cat([image[None], evidence.with_other_corners(image, size)])

        def take(_name: str, output: Any) -> evidence.Responses | None:
            if not isinstance(output, Tensor) or output.dim() not in (3, 4) or len(output) != len(together):
                return None
            return evidence.responses(output[:1], output[1:]) if output.is_floating_point() else None

        try:
            looked = look(self.module, names, self.input_of(together), take, to_the_end)
        except FailsError:
            return {}
        return {name: seen[0] for name, seen in looked.items() if seen and seen[0] is not None}

    def failure(self, error: FailsError) -> str:
        """Say that the network takes no such image."""
        side = self._preprocess.crop
        return f"the model fails on a {side} x {side} image: {error}"

    def module_of(self, name: str) -> nn.Module:
        """Return the module that a layer's name means."""
        modules = [known for known, _ in self.module.named_modules()]
        return self.module.get_submodule(split_name(name, modules)[0])

    def note_followed(self, name: str, followed: Followed | None) -> None:
        """Note what a layer's operations tell; nothing where they could not be followed."""
        if followed is not None:
            found = self.found[name]
            found.receptive_field = followed.field_of_map(len(found.shape))
            self.vote(name, OPERATIONS, evidence.from_operations(followed.axes.map_places))

    def vote(self, name: str, what: str, vote: str | None) -> None:
        """Note what speaks for a layout of a layer."""
        if vote is not None:
            self.found[name].votes[what] = vote

    def input_of(self, images: Tensor) -> Tensor:
        """Return the network's input for some images."""
        return to_input(images, self._preprocess)


def copy(_name: str, output: Any) -> Any:
    """Take a copy of a tensor, and of anything else the name of its kind."""
    return output.detach().clone() if isinstance(output, Tensor) else type(output).__name__


def only_output(name: str, outputs: list[Any], images: int) -> Tensor:
    """Return what a layer gave for so many images.

    Args:
        outputs: what `copy` took each time that it ran.

    Raises:
        UsageError: it did not run just once, or gave no numbers that can be read.
    """
    if outputs == ["NoneType"] and name.endswith(SUFFIX):
        layer = name.removesuffix(SUFFIX)
        raise UsageError(f"layer '{layer}' does not end in a ReLU, so there is no '{name}'; name '{layer}', or another")
    if len(outputs) != 1:
        raise UsageError(f"layer '{name}' runs {len(outputs)} times in a forward pass; name one that runs once")
    [output] = outputs
    if not isinstance(output, Tensor):
        raise UsageError(f"layer '{name}' gives a {output}, not a tensor; name a layer inside it")
    if not output.is_floating_point():
        raise UsageError(f"layer '{name}' gives numbers of type {output.dtype}, not activations; name another")
    refuse_other_first_axis(name, tuple(output.shape), images)
    if output.dim() not in (2, 3, 4):
        raise UsageError(
            f"layer '{name}' gives a tensor of shape {list(output.shape)}; a layer's output is "
            "[images, channels, height, width], [images, height, width, channels], [images, tokens, channels] or "
            "[images, channels]"
        )
    return output


def smaller(crop: int) -> tuple[int, int]:
    """Return a height and a lesser width below a crop's, in steps that most networks take."""
    step = 32 if crop >= 128 else 4 if crop >= 16 else 1
    return max(step, crop * 6 // 7 // step * step), max(step, crop * 5 // 7 // step * step)
