"""What a network does to an image, as a list of steps: what comes before a layer is found in it.

A network's functions are noted down as torch runs them, each with the values that it is given and the values that it
gives. A value is a number: a tensor that is overwritten in place has another number from then on. The same network
gives the same numbers for every image, so that a value can be had for other images, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from exemplar_ray.network.hooks import end_forward, forward, only_tensor
from exemplar_ray.network.inputs import Input


@dataclass(frozen=True)
class Value:
    """A place in the list of values, where a tensor stood."""

    number: int


@dataclass(frozen=True)
class Step:
    """One function of a network, as it was called."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    """As given, with a `Value` for each tensor that depends on the image. Others, such as weights, are as they are."""
    kwargs: dict[str, Any]
    results: tuple[Value | None, ...]
    """What it gave; None for what is no tensor."""
    scope: str
    """The innermost module that was running; empty for the network itself."""

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Return the values that it is given, those that depend on the image."""
        return tuple(leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Value))

    @property
    def name(self) -> str:
        """Return what torch calls the function, without what says that it works in place."""
        return getattr(self.function, "__name__", str(self.function)).strip("_")


class Tape(TorchFunctionMode):
    """What a network does to an image. Made by `record`.

    Attributes:
        image: the value of the network's input.
        shapes: of each value, for the images that it was recorded with.
        outputs: {module: what it gave}, of those that ran once and give one tensor, in the order in which they ended.
        kept: {value: its tensor}, of those that were to be kept.
        writes: a function that wrote into a part of a tensor, which is not followed; None if there was none.
    """

    def __init__(self, image: Tensor, keep: Sequence[Value] = ()) -> None:
        super().__init__()
        self.image = Value(0)
        self.shapes: list[tuple[int, ...]] = []
        self.steps: list[Step] = []
        self.outputs: dict[str, Value] = {}
        self.kept: dict[Value, Tensor] = {}
        self.writes: str | None = None
        self.scopes: list[str] = [""]
        self._keep = set(keep)
        self._made_by: dict[Value, Step] = {}
        self._values = WeakTensorKeyDictionary()
        self._new(image)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and note it down, if it is given what depends on the image."""
        kwargs = kwargs or {}
        noted_args, noted_kwargs = tree_map_only(Tensor, self._noted, (tuple(args), dict(kwargs)))
        result = func(*args, **kwargs)
        if func is Tensor.__setitem__ or "out" in kwargs:
            self.writes = func.__name__
        depends = any(isinstance(leaf, Value) for leaf in tree_leaves((noted_args, noted_kwargs)))
        leaves = tree_leaves(result)
        if depends and any(isinstance(leaf, Tensor) for leaf in leaves):
            results = tuple(self._new(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)
            step = Step(func, noted_args, noted_kwargs, results, self.scopes[-1])
            self.steps.append(step)
            self._made_by.update({value: step for value in results if value is not None})
        return result

    def value_of(self, tensor: Tensor) -> Value | None:
        """Return a tensor's value; None if it does not depend on the image, as far as was seen."""
        return self._values.get(tensor)

    def made_by(self, value: Value) -> Step | None:
        """Return the step that gave a value; None of the image."""
        return self._made_by.get(value)

    def between(self, before: Value, after: Sequence[Value]) -> list[Step] | None:
        """Return the steps from one value to later ones, in order; None if there is a way around the first one."""
        needed: set[Value] = set()
        waiting = list(after)
        while waiting:
            value = waiting.pop()
            if value == before or value in needed:
                continue
            if value == self.image:
                return None
            needed.add(value)
            waiting += self._made_by[value].inputs
        return [step for step in self.steps if any(result in needed for result in step.results)]

    def _noted(self, tensor: Tensor) -> Any:
        value = self.value_of(tensor)
        return tensor if value is None else value

    def _new(self, tensor: Tensor) -> Value:
        value = Value(len(self.shapes))
        self.shapes.append(tuple(tensor.shape))
        self._values[tensor] = value
        if value in self._keep:
            # A later function may overwrite it.
            self.kept[value] = tensor.clone()
        return value


def record(module: nn.Module, images: Tensor, keep: Sequence[Value] = ()) -> Tape:
    """Run a network on some images and note down what it does.

    Args:
        module: the network, in eval mode.
        images: its input, float32 [images, channels, height, width].
        keep: of an earlier tape of the same network, the values whose tensors are to be kept: as soon as they are
            there the forward pass ends.
    """
    tape = Tape(images, keep)
    runs: dict[str, int] = {}
    outputs: dict[str, Value] = {}

    def begins(name: str) -> Callable[..., None]:
        return lambda _module, _inputs: tape.scopes.append(name)

    def ends(name: str) -> Callable[..., None]:
        def forward_hook(_module: nn.Module, _inputs: object, returned: object) -> None:
            tape.scopes.pop()
            runs[name] = runs.get(name, 0) + 1
            output = only_tensor(returned)
            value = tape.value_of(output) if isinstance(output, Tensor) else None
            if value is not None:
                outputs[name] = value
            if keep and len(tape.kept) == len(set(keep)):
                end_forward()

        return forward_hook

    children = [(name, child) for name, child in module.named_modules() if name]
    handles = [child.register_forward_pre_hook(begins(name)) for name, child in children]
    handles += [child.register_forward_hook(ends(name)) for name, child in children]
    try:
        with torch.no_grad(), tape:
            forward(module, Input(images))
    finally:
        for handle in handles:
            handle.remove()
    tape.outputs = {name: value for name, value in outputs.items() if runs[name] == 1}
    return tape
