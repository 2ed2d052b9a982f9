"""The passes that question a network: two images go through it in a few ways, and what that shows is noted.

    alone       one image, to the end: which layers run, once each, and what they give
    watched     the same image, every operation followed: the same again? which axes, which receptive fields?
    smaller     a smaller one: is it taken? which axes shrink with it?
    relabelled  the same image with the other one's label, if the network is given labels: which layers answer to that?
    together    another image and the first in a batch, as a scan runs them: the same again?

Where that leaves a layer's layout open, one more pass asks with other content in the image's corners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_ray.data.first_images import TwoImages
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network import evidence
from exemplar_ray.network.evidence import Grid
from exemplar_ray.network.inputs import Input
from exemplar_ray.network.layers import ReceptiveField
from exemplar_ray.network.looks import FailsError, Look, channels_last_in_memory, failure, look
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

    def __init__(self, module: nn.Module, names: Sequence[str], preprocess: Preprocess, images: TwoImages) -> None:
        self.module = module
        self.names = names
        self._preprocess = preprocess
        self._crops, self._labels = images.crops, images.labels
        self.found: dict[str, Found] = {}
        self._again: dict[str, Tensor] = {}
        self.repeated_difference = 0.0
        self.batch_difference = 0.0
        self.same_for_both: tuple[str, ...] = ()
        self.same_for_both_labels: tuple[str, ...] = ()

    def look_alone(self) -> None:
        """Look at the first image, alone, to the end of the network."""
        try:
            outputs = look(self.module, self.names, self.first(), copy, to_the_end=True)
        except FailsError as error:
            raise UsageError(self.failure(error)) from error
        for name in self.names:
            output = only_output(name, outputs[name], 1)
            self.found[name] = Found(tuple(output.shape), output)

    def look_watching(self) -> None:
        """Look again, and follow every operation."""
        given = self.first()
        watched = WatchedOperations(given.x)

        def take(_name: str, output: Tensor) -> tuple[Tensor, Any]:
            return output.detach().clone(), watched.followed(output)

        try:
            outputs = look(self.module, self.names, given, take, watching=watched)
        except FailsError:
            # It cannot be followed; it runs all the same.
            outputs = self._again_unwatched()
        for name in self.names:
            [(output, followed)] = outputs[name]
            self._again[name] = output
            self.note_followed(name, followed)

    def _again_unwatched(self) -> Look:
        try:
            return look(self.module, self.names, self.first(), lambda name, output: (copy(name, output), None))
        except FailsError as error:
            raise UsageError(f"the model fails on an image that it took before: {error}") from error

    def look_at_a_smaller_one(self) -> str | None:
        """Look at an image of less height, and still less width; return why the network refuses it, None if it does
        not."""
        height, width = smaller(self._preprocess.crop)
        given = self.first()
        small = nn.functional.interpolate(given.x, (height, width), mode="bilinear")
        shapes: dict[str, tuple[int, ...]] = {}

        def take(name: str, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        refusal = None
        try:
            look(self.module, self.names, given._replace(x=small), take)
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
        fast = self._together_fast()
        try:
            outputs = fast or look(self.module, self.names, self._input_of([1, 0]), copy)
        except FailsError as error:
            raise UsageError(f"the model fails on a batch of two images, each of which it takes: {error}") from error
        batch = {name: only_output(name, outputs[name], 2) for name in self.names}
        self._judge_repetition(batch)
        differences = self._batch_differences(batch)
        if fast and max(differences.values(), default=0) > 0:
            # Something in it goes by how its input lies in memory.
            plain = look(self.module, self.names, self._input_of([1, 0]), copy)
            of_plain = self._batch_differences({name: only_output(name, plain[name], 2) for name in self.names})
            if max(of_plain.values()) == 0:
                fast, differences = None, of_plain
        for name, apart in differences.items():
            refuse_dependence_on_batch(name, apart)
        self.batch_difference = max(differences.values(), default=0.0)
        return fast is not None

    def _together_fast(self) -> Look | None:
        both = self._input_of([1, 0])
        try:
            with channels_last_in_memory(self.module) as memory_format, FastResponseNorm():
                given = both._replace(x=both.x.contiguous(memory_format=memory_format))
                return look(self.module, self.names, given, copy)
        except FailsError:
            return None

    def look_with_the_other_label(self) -> None:
        """Look at the first image once more, with the second one's label, to see which layers answer to that."""
        if self._labels is None or self._labels[0] == self._labels[1]:
            return
        try:
            outputs = look(self.module, self.names, self._input_of([1], self._crops[:1]), copy)
        except FailsError as error:
            raise UsageError(f"the model fails on an image that it takes with another label: {error}") from error
        self.same_for_both_labels = tuple(
            name for name, found in self.found.items() if torch.equal(outputs[name][0], found.output)
        )

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
        image = self._crops[0]
        together = torch.cat([image[None], evidence.with_other_corners(image, size)])

        def take(_name: str, output: Any) -> evidence.Responses | None:
            if not isinstance(output, Tensor) or output.dim() not in (3, 4) or len(output) != len(together):
                return None
            return evidence.responses(output[:1], output[1:]) if output.is_floating_point() else None

        try:
            looked = look(self.module, names, self._input_of([0] * len(together), together), take, to_the_end)
        except FailsError:
            return {}
        return {name: seen[0] for name, seen in looked.items() if seen and seen[0] is not None}

    def failure(self, error: FailsError) -> str:
        """Say that the network takes no such image."""
        return failure(self.module, self._preprocess, self._labels is not None, str(error))

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

    def first(self) -> Input:
        """Return the network's input for the first image alone: anew each time, as a network may work in place."""
        return self._input_of([0])

    def _input_of(self, which: list[int], crops: Tensor | None = None) -> Input:
        """Return the network's input for some of the two images.

        Args:
            crops: what stands in their place, with their labels.
        """
        pixels = self._crops[which] if crops is None else crops
        return Input(to_input(pixels, self._preprocess), None if self._labels is None else self._labels[which])


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
