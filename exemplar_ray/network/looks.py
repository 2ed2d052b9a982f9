"""Looks at a network at work: a forward pass over a few images, and what its layers gave."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from exemplar_ray.data.first_images import noise
from exemplar_ray.data.preprocess import GREY, Preprocess
from exemplar_ray.network.hooks import forward, hooked
from exemplar_ray.network.inputs import Input
from exemplar_ray.network.questions import NOISE
from exemplar_ray.network.reference_precision import reference_precision
from exemplar_ray.network.trunk import to_input

Look = dict[str, list[Any]]
"""{layer: what was taken from its output each time that it ran}"""

Take = Callable[[str, Any], Any]
"""From a layer's name and its output to what is taken from it: a copy, as the network may go on in place."""


class FailsError(Exception):
    """The network cannot do a forward pass; the message is its own, in one line."""


def look(
    module: nn.Module,
    names: Sequence[str],
    given: Input,
    take: Take,
    to_the_end: bool = False,
    watching: AbstractContextManager | None = None,
) -> Look:
    """Run a forward pass, and take something from each output of some layers.

    Args:
        given: the network's input, float32.
        to_the_end: whether to go on after every layer has run.
        watching: entered for the time of the forward pass.

    Raises:
        FailsError: the network raised something.
    """
    taken: Look = {name: [] for name in names}
    waiting = set(names)

    def seen(name: str, output: Any, _before: object) -> bool:
        taken[name].append(take(name, output))
        waiting.discard(name)
        return not waiting and not to_the_end

    with torch.no_grad(), reference_precision(), watching or nullcontext(), hooked(module, names, seen):
        forward_or_fail(module, given)
    return taken


def forward_or_fail(module: nn.Module, given: Input) -> None:
    """Run a forward pass.

    Raises:
        FailsError: the network raised something.
    """
    try:
        forward(module, given)
    except Exception as error:  # a user's network may raise anything
        raise FailsError(in_one_line(error)) from error


def failure(module: nn.Module, preprocess: Preprocess, labelled: bool, reason: str) -> str:
    """Say in one line that a network takes no images as they are prepared, and what to do if it takes other channels.

    Args:
        labelled: whether it is given labels, too.
        reason: what it says itself.
    """
    other = preprocess.with_other_channels()
    images = noise(other, NOISE, labelled)
    try:
        with torch.no_grad():
            forward_or_fail(module, Input(to_input(images.crops, other), images.labels))
    except FailsError:
        side = preprocess.crop
        return f"the model fails on a {side} x {side} image: {reason}"
    takes, gives = ("one channel", "three") if other.order == GREY else ("three channels", "one")
    return (
        f"the model takes {takes}, and the preprocessing gives {gives}; give another, for example "
        f"--preprocess {shlex.quote(other.as_flag())}"
    )


def in_one_line(error: BaseException) -> str:
    """Return what an exception says, with its kind where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def channels_last_in_memory(module: nn.Module) -> Iterator[torch.memory_format]:
    """While inside, the network's weights lie with the channels last in memory, as where it is run for speed.

    Raises:
        FailsError: some of its weights cannot.
    """
    try:
        module.to(memory_format=torch.channels_last)
    except Exception as error:  # a user's module may overwrite `to`
        module.to(memory_format=torch.contiguous_format)
        raise FailsError(in_one_line(error)) from error
    try:
        yield torch.channels_last
    finally:
        module.to(memory_format=torch.contiguous_format)
