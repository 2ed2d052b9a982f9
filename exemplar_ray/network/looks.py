"""Looks at a network at work: a forward pass over a few images, and what its layers gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_ray.network.hooks import forward, hooked
from exemplar_ray.network.reference_precision import reference_precision

Look = dict[str, list[Any]]
"""{layer: what was taken from its output each time that it ran}"""

Take = Callable[[str, Any], Any]
"""From a layer's name and its output to what is taken from it: a copy, as the network may go on in place."""


class FailsError(Exception):
    """The network cannot do a forward pass; the message is its own, in one line."""


def look(
    module: nn.Module,
    names: Sequence[str],
    x: Tensor,
    take: Take,
    to_the_end: bool = False,
    watching: AbstractContextManager | None = None,
) -> Look:
    """Run a forward pass, and take something from each output of some layers.

    Args:
        x: the network's input, float32 [images, 3, height, width].
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
        forward_or_fail(module, x)
    return taken


def forward_or_fail(module: nn.Module, x: Tensor) -> None:
    """Run a forward pass.

    Raises:
        FailsError: the network raised something.
    """
    try:
        forward(module, x)
    except Exception as error:  # a user's network may raise anything
        raise FailsError(in_one_line(error)) from error


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
