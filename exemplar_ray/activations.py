"""Activations: run a network up to the deepest wanted layer, pool each channel's map.

A statistic pools a layer's output to one number a channel; a new one is one function in
`STATISTICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from exemplar_ray.errors import UsageError, near_matches
from exemplar_ray.parts import before_relu
from exemplar_ray.pre_relu import SUFFIX, ReluInputs, split_name
from exemplar_ray.receptive_field import UntraceableError, receptive_fields
from exemplar_ray.response_norm import FastResponseNorm
from exemplar_ray.spec import Layer, Preprocess, ReceptiveField, ResolvedSpec, parse_channels

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda maps: maps.mean(dim=(2, 3)),
    "max": lambda maps: maps.amax(dim=(2, 3)),
    # The unit that feature visualisation of a neuron optimises, as in Lucid and Lucent.
    "center": lambda maps: maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2],
}
"""name -> function from a float32 [images, channels, height, width] to [images, channels]."""

_BEFORE_RELU = {"mean": STATISTICS["max"], "max": STATISTICS["max"], "center": STATISTICS["center"]}
"""statistic -> what is above 0 before a ReLU exactly where the statistic is after it, if there is such a thing."""


class Trunk:
    """The part of a network that the wanted layers need, and its pooled activations.

    The forward pass is the network's own and ends as soon as every wanted layer has run.

    Args:
        precision: what it computes in, `spec.PRECISIONS`; activations are pooled in float32 in any case.
        plain: run it just as torch does by default, as the reference that the faster form is compared
            with: that one has channels last in memory and normalises responses with `response_norm`.
        before_relus: a call also says how near an image comes to exciting a channel that it leaves at 0.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[Layer],
        statistics: Sequence[str],
        preprocess: Preprocess,
        device: torch.device,
        precision: str = "float32",
        plain: bool = False,
        before_relus: bool = False,
    ) -> None:
        self.device = device
        self._plain = plain
        self._layout = torch.contiguous_format if plain else torch.channels_last
        self._type = getattr(torch, precision)
        self._module = module.to(device, self._type, memory_format=self._layout).eval()
        self._layers = {layer.name: layer for layer in layers}
        self._statistics = statistics
        self._preprocess = preprocess
        self._before_relus = before_relus

    @classmethod
    def of_run(cls, spec: ResolvedSpec, module: nn.Module, device: torch.device, precision: str) -> Trunk:
        """Make the trunk that a run's scan wants, in some precision."""
        known = (spec.layers, spec.statistics, spec.preprocess)
        return cls(module, *known, device, precision, before_relus=spec.screened)

    def __call__(self, crops: Tensor) -> dict[tuple[str, str], Tensor]:
        """Score one batch.

        Args:
            crops: uint8 [images, crop, crop, 3], as `images.crop` makes them.

        Returns:
            {(layer, statistic): float32 [images, wanted channels]} on the trunk's device; with `before_relus`
            also {(layer, `before_relu(statistic)`): as many}, NaN for layers that do not end in a ReLU.
        """
        return self._forward(crops, self._before_relus)

    def with_maps(
        self, crops: Tensor, before_relus: bool = False
    ) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
        """Score one batch and keep the layers' outputs.

        Returns:
            What a call returns, by this `before_relus`, and {layer: the wanted channels of its output}, float32
            [images, wanted channels, height, width] or, for logits, [images, wanted channels].
        """
        outputs: dict[str, Tensor] = {}
        return self._forward(crops, before_relus, outputs), outputs

    def _forward(
        self, crops: Tensor, before_relus: bool, outputs: dict[str, Tensor] | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """Run the network until each layer's wanted channels have been pooled, and put into `outputs` if that is given.

        What is returned and put there are copies: what follows in the network may work in place.
        """
        pooled: dict[tuple[str, str], Tensor] = {}
        waiting = set(self._layers)

        def seen(name: str, output: Tensor, before: Tensor | None) -> bool:
            wanted = self._layers[name]
            if len(wanted.channels) < wanted.channel_count:
                index = torch.tensor(wanted.channels, device=output.device)
                output = output.index_select(1, index)
                before = None if before is None else before.index_select(1, index)
            # A channel's sum is then the same, to the last bit, whatever other channels are wanted.
            output = output.contiguous().float()
            for statistic in self._statistics:
                pooled[name, statistic] = values = _pooled(STATISTICS[statistic], output)
                if before_relus:
                    pool = _BEFORE_RELU.get(statistic)
                    known = before is not None and pool is not None
                    nearest = _pooled(pool, before.float()) if known else torch.full_like(values, torch.nan)
                    pooled[name, before_relu(statistic)] = nearest
            if outputs is not None:
                outputs[name] = output.clone()
            waiting.remove(name)
            return not waiting

        norm = nullcontext() if self._plain else FastResponseNorm()
        hooked = _hooked(self._module, list(self._layers), seen, before_relus)
        with hooked, torch.inference_mode(), reference_precision(), norm:
            pixels = to_input(crops.to(self.device), self._preprocess).to(self._type)
            _run(self._module, pixels.contiguous(memory_format=self._layout))
        return pooled


def _pooled(pool: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    """Return a copy of a layer's pooled output; logits are pooled already."""
    return (pool(output) if output.dim() == 4 else output).clone()


def to_input(crops: Tensor, preprocess: Preprocess) -> Tensor:
    """Turn uint8 [images, height, width, 3] crops into float32 [images, 3, height, width] input.

    With scale 1 this is torchvision's `ToTensor` and `Normalize`, bit for bit.
    """
    x = crops.permute(0, 3, 1, 2).contiguous().float()
    if preprocess.scale != 255.0:
        x = x.div(255.0).mul(preprocess.scale)
    mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return x.sub(mean).div(std)


@contextmanager
def reference_precision() -> Iterator[None]:
    """Compute in full float32: TensorFloat-32 off, algorithms not chosen by timing."""
    cudnn = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before


def check_statistics(statistics: Sequence[str]) -> None:
    """Refuse a statistic that is not in `STATISTICS`.

    Raises:
        UsageError: with near matches.
    """
    for name in statistics:
        if name not in STATISTICS:
            raise UsageError(f"unknown statistic '{name}'; {near_matches(name, STATISTICS)}")


def describe_layers(
    module: nn.Module, names: Sequence[str], channels: str, preprocess: Preprocess
) -> tuple[Layer, ...]:
    """Find out what the wanted layers give, by a forward pass over one grey image.

    Args:
        module: a network in eval mode on the CPU.
        names: module names, as `module.named_modules()` spells them.
        channels: the wanted channels, as `spec.parse_channels` reads them.

    Raises:
        UsageError: a layer does not exist, does not run exactly once in a forward pass, or
            its output has no channels; or a channel is out of range.
    """
    known = [name for name, _ in module.named_modules() if name]
    for name in names:
        if split_name(name, known)[0] not in known:
            raise UsageError(f"unknown layer '{name}'; {near_matches(name, known)}")
    shapes: dict[str, list[torch.Size | str]] = {name: [] for name in names}

    def look(name: str, output: object, _before: object) -> bool:
        shapes[name].append(output.shape if isinstance(output, Tensor) else type(output).__name__)
        return False

    grey = torch.full((1, preprocess.crop, preprocess.crop, 3), 128, dtype=torch.uint8)
    with _hooked(module, names, look), torch.inference_mode():
        try:
            _run(module, to_input(grey, preprocess))
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
        found: dict[str, Tensor] = {}

        def seen(name: str, output: Tensor, _before: Tensor | None) -> bool:
            found[name] = output
            return len(found) == len(names)

        with _hooked(module, names, seen):
            _run(module, x)
        return found

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
    return Layer(name, shape[1], tuple(shape[2:]) or None, wanted)


class _EnoughError(Exception):
    """Raised inside a forward pass to end it: every wanted layer has run."""


def _run(module: nn.Module, x: Tensor) -> None:
    with suppress(_EnoughError):
        module(x)


@contextmanager
def _hooked(
    module: nn.Module, names: Sequence[str], seen: Callable[[str, Any, Any], bool], before_relus: bool = False
) -> Iterator[None]:
    """While inside, call `seen(name, output, before)` for each named layer; true ends the forward pass.

    `before` is what the output was before its ReLU: None where it has none, and without `before_relus`.
    """
    modules = [name for name, _ in module.named_modules()]
    wanted = {name: split_name(name, modules) for name in names}
    needs_inputs = before_relus or any(before for _, before in wanted.values())
    with ReluInputs() if needs_inputs else nullcontext() as relu_inputs:

        def hook(name: str, before: bool) -> Callable[..., None]:
            def forward_hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                input_ = relu_inputs.before(output) if before or before_relus else None
                if seen(name, input_, None) if before else seen(name, output, input_):
                    raise _EnoughError

            return forward_hook

        handles = [
            module.get_submodule(submodule).register_forward_hook(hook(name, before))
            for name, (submodule, before) in wanted.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
