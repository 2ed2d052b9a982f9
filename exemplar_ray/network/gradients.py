"""A layer as a function that has gradients: what it is before its ReLU, for pictures of any size.

The network's own arithmetic, but for what decides nothing forwards. A ReLU whose gradient somebody bent, as
torch-lucent's class does, is a plain one. A ReLU that overwrites its input does not. Response normalisation is a faster
form. And channels lie last in memory, as where the scan runs, which takes a fifth less time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from exemplar_ray.data.preprocess import BGR, GREY, LUMA, Preprocess
from exemplar_ray.network.hooks import forward, hooked
from exemplar_ray.network.inputs import Input
from exemplar_ray.network.layers import Layer
from exemplar_ray.network.layouts import Reading, read
from exemplar_ray.network.pre_relu import Origins, split_name
from exemplar_ray.network.response_norm import FastResponseNorm

_RELUS = {nn.functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
_CATS = {torch.cat, torch.concat, torch.concatenate}
# Of modules whose gradient is not that of what they compute.
_REDIRECTED = ("lucent.modelzoo.inceptionv1.helper_layers", "RedirectedReluLayer")


class DifferentiableLayer:
    """A network up to one layer.

    Args:
        module: the network, in eval mode; a copy of it is moved to the device.
        layer: which layer; of one that is named `..._pre_relu` it is the same.
        preprocess: from 0..255 to the network's input.
        channels_last: whether the network runs so, see `spec.NetworkSpec`.
    """

    def __init__(
        self,
        module: nn.Module,
        layer: Layer,
        preprocess: Preprocess,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.device = device
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._module = with_true_gradients(copy.deepcopy(module)).to(device)
        # Not one after the other: a foreign network's `to` may return nothing.
        self._module.to(memory_format=self._memory_format)
        self._module.requires_grad_(False)
        self._layer, self._preprocess = layer, preprocess
        self._name = split_name(layer.name, [name for name, _ in module.named_modules()])[0]

    def __call__(self, pictures: Tensor) -> Reading:
        """Return what the layer is before its ReLU, or what it gives where it does not end in one, of all channels.

        Args:
            pictures: float32 [pictures, 3, height, width], red, green and blue, 0..1.
        """
        found: list[Tensor] = []

        def seen(_name: str, output: Tensor, _before: Tensor | None) -> bool:
            before = relus.before(output)
            found.append(output if before is None else before)
            return True

        relus = _ReluInputs()
        with hooked(self._module, [self._name], seen), FastResponseNorm(), relus:
            x = prepared(pictures, self._preprocess).contiguous(memory_format=self._memory_format)
            forward(self._module, Input(x))
        return read(found[0], self._layer)

    @contextmanager
    def watching(self, before: Layer) -> Iterator[list[Tensor]]:
        """While inside, every call also notes what another layer, which runs before this one, answers on average.

        Returns:
            A list that holds, after a call, [pictures, channels of that layer]: means over their maps, with gradients.
        """
        noted: list[Tensor] = []

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            noted[:] = [read(output, before).maps.float().mean(dim=(2, 3))]

        handle = self._module.get_submodule(before.name).register_forward_hook(note)
        try:
            yield noted
        finally:
            handle.remove()


def prepared(pictures: Tensor, preprocess: Preprocess) -> Tensor:
    """Return a network's input: what `trunk.to_input` makes of the same pictures in 8 bits.

    Args:
        pictures: float32 [pictures, 3, height, width], 0..1.
    """
    mean, std = (torch.tensor(v, device=pictures.device).view(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    x = greyed(pictures) if preprocess.order == GREY else pictures
    x = x.mul(preprocess.scale).sub(mean).div(std)
    return x.flip(1) if preprocess.order == BGR else x


def greyed(pictures: Tensor) -> Tensor:
    """Return pictures as Pillow's mode L has them, but for its rounding: [pictures, 1, height, width]."""
    weights = torch.tensor(LUMA, dtype=pictures.dtype, device=pictures.device).view(3, 1, 1)
    return (pictures * weights).sum(dim=1, keepdim=True)


def with_true_gradients(module: nn.Module) -> nn.Module:
    """Replace, in a network, every ReLU that lets gradients through where it is zero. Other modules are left alone."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (type(child).__module__, type(child).__qualname__) == _REDIRECTED:
                setattr(parent, name, nn.ReLU())
    return module


class _ReluInputs(TorchFunctionMode):
    """While inside, remembers what went into every ReLU, and what concatenations are made of.

    Unlike `pre_relu.ReluInputs` it stands above the recording of gradients, so that what it remembers has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._origins = Origins()
        self.before = self._origins.before
        """See `Origins.before`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and take notes; no ReLU overwrites its input."""
        kwargs = kwargs or {}
        if func in _RELUS:
            before = args[0] if args else kwargs["input"]
            return self._noted(torch.relu(before), before)
        if func in (nn.functional.relu6, nn.functional.hardtanh):
            before, low, high = _bounds(func, args, kwargs)
            after = torch.clamp(before, low, high)
            return self._noted(after, before) if low == 0 else after
        output = func(*args, **kwargs)
        if func in _CATS:
            pieces = args[0] if args else kwargs["tensors"]
            self._origins.cat(output, pieces, args[1] if len(args) > 1 else kwargs.get("dim", 0))
        return output

    def _noted(self, output: Tensor, before: Tensor) -> Tensor:
        self._origins.relu(output, before)
        return output


def _bounds(func: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, float, float]:
    """Return the input of a ReLU6 or a hardtanh, and between what it is kept."""
    given = dict(zip(("input", "min_val", "max_val"), args, strict=False)) | kwargs
    if func is nn.functional.relu6:
        return given["input"], 0.0, 6.0
    return given["input"], given.get("min_val", -1.0), given.get("max_val", 1.0)
