"""A network made ready to be looked at: on the CPU, in float32, in eval mode, all its weights there. Or refused."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError
from exemplar_ray.network.inputs import Input, takes_labels
from exemplar_ray.network.weights import one_line

_LAZY = (UninitializedBuffer, UninitializedParameter)


def prepared(module: nn.Module, name: str, preprocess: Preprocess | None) -> nn.Module:
    """Make a network ready, or say in one line why that cannot be.

    Args:
        name: what it is called in messages.
        preprocess: of the images that it will see. A network whose layers find out their sizes by themselves is shown
            one.

    Raises:
        UsageError: its layers cannot be hooked, its weights are not there, or they cannot be kept in float32.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(f"{name} is a TorchScript module, whose layers cannot be looked into; give the network itself")
    for part in module.modules():
        if isinstance(part, nn.DataParallel):
            # It then runs the network itself, and no copies of it on other devices, whose hooks would be lost.
            part.device_ids = []
    module.eval()
    if any(isinstance(weight, _LAZY) for weight in _weights(module)):
        _find_out_sizes(module, name, preprocess)
    for path, weight in chain(module.named_parameters(), module.named_buffers()):
        if weight.is_meta:
            raise UsageError(f"{name} has weights that are not there ('{path}' is on the meta device)")
        if weight.is_complex():
            raise UsageError(f"{name} has complex numbers in '{path}', and is run in real ones; keep two real tensors")
    try:
        module.to("cpu", torch.float32)
    except Exception as error:  # whatever a foreign module raises
        raise UsageError(f"{name} cannot be put into float32 on the CPU: {one_line(error)}") from error
    return module


def _weights(module: nn.Module) -> chain:
    return chain(module.parameters(), module.buffers())


def _find_out_sizes(module: nn.Module, name: str, preprocess: Preprocess | None) -> None:
    """Run lazy layers once, as torch wants it."""
    try:
        if preprocess is None:
            raise ValueError("the size of its images is not known")
        image = torch.zeros(1, preprocess.channels, preprocess.crop, preprocess.crop)
        label = torch.zeros(1, dtype=torch.int64) if takes_labels(module) else None
        with torch.no_grad():
            Input(image, label).given_to(module.to("cpu", torch.float32))
    except Exception as error:  # whatever a foreign network raises
        raise UsageError(
            f"{name} has lazy layers, whose sizes one forward pass finds out, and that fails ({one_line(error)}); "
            "give layers with sizes"
        ) from error
    if any(isinstance(weight, _LAZY) for weight in _weights(module)):
        raise UsageError(
            f"{name} has lazy layers that a forward pass does not reach, so they have no weights; remove them"
        )
