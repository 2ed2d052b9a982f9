"""What a network's layers give: found out by one forward pass over a grey image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.network.hooks import forward, hooked
from exemplar_ray.network.layers import Layer, ReceptiveField, parse_channels
from exemplar_ray.network.pre_relu import SUFFIX, split_name
from exemplar_ray.network.receptive_field import UntraceableError, receptive_fields
from exemplar_ray.network.trunk import to_input


def describe_layers(
    module: nn.Module, names: Sequence[str], channels: str, preprocess: Preprocess
) -> tuple[Layer, ...]:
    """Find out what the wanted layers give, by a forward pass over one grey image.

    Args:
        module: a network in eval mode on the CPU.
        names: module names, as `module.named_modules()` spells them.
        channels: the wanted channels, as `layers.parse_channels` reads them.

    Raises:
        UsageError: a layer does not exist, does not run exactly once in a forward pass, or
            its output has no channels; or a channel is out of range.
    """
    modules = [name for name, _ in module.named_modules() if name]
    for name in names:
        if split_name(name, modules)[0] not in modules:
            raise UsageError(f"unknown layer '{name}'; {near_matches(name, modules)}")
    shapes: dict[str, list[torch.Size | str]] = {name: [] for name in names}

    def look(name: str, output: object, _before: object) -> bool:
        shapes[name].append(output.shape if isinstance(output, Tensor) else type(output).__name__)
        return False

    grey = torch.full((1, preprocess.crop, preprocess.crop, 3), 128, dtype=torch.uint8)
    with hooked(module, names, look), torch.inference_mode():
        try:
            forward(module, to_input(grey, preprocess))
        except (RuntimeError, ValueError, TypeError) as error:
            raise UsageError(
                f"the model fails on a {preprocess.crop} x {preprocess.crop} image: {str(error).splitlines()[0]}"
            ) from error
    layers = tuple(_describe(name, shapes[name], channels) for name in names)
    fields = _fields_of_maps(module, layers, to_input(grey, preprocess))
    return tuple(replace(layer, field=fields.get(layer.name)) for layer in layers)


def _fields_of_maps(module: nn.Module, layers: Sequence[Layer], image: Tensor) -> dict[str, ReceptiveField]:
    """Find the receptive fields of those layers that have maps; {} if the network cannot be traced."""
    names = [layer.name for layer in layers if layer.map_size]

    def outputs(x: Tensor) -> dict[str, Tensor]:
        seen_outputs: dict[str, Tensor] = {}

        def seen(name: str, output: Tensor, _before: Tensor | None) -> bool:
            seen_outputs[name] = output
            return len(seen_outputs) == len(names)

        with hooked(module, names, seen):
            forward(module, x)
        return seen_outputs

    try:
        with torch.no_grad():
            return receptive_fields(outputs, image) if names else {}
    except UntraceableError:
        return {}


def _describe(name: str, shapes: list[torch.Size | str], channels: str) -> Layer:
    if shapes == ["NoneType"] and name.endswith(SUFFIX):
        layer = name.removesuffix(SUFFIX)
        raise UsageError(f"layer '{layer}' does not end in a ReLU, so there is no '{name}'; name '{layer}', or another")
    if len(shapes) != 1:
        raise UsageError(f"layer '{name}' runs {len(shapes)} times in a forward pass; name one that runs once")
    shape = shapes[0]
    if isinstance(shape, str):
        raise UsageError(f"layer '{name}' gives a {shape}, not a tensor; name a layer inside it")
    if len(shape) not in (2, 4):
        raise UsageError(
            f"layer '{name}' gives a tensor of shape {list(shape)}; a layer's output is "
            "[images, channels, height, width] or [images, channels]"
        )
    try:
        wanted = parse_channels(channels, shape[1])
    except UsageError as error:
        raise UsageError(f"layer '{name}': {error}") from None
    return Layer(name, shape[1], (shape[2], shape[3]) if len(shape) == 4 else None, wanted)
