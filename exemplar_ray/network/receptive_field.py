"""Receptive fields: which input pixels a unit of a layer's map can see.

The network's primitive operations are watched as they work on one image, and each operation's
arithmetic (kernel, stride, padding, dilation) is applied to the field of its inputs. This
sees padding and pooling that a forward pass does on its own, outside any module.

For kernels k_l and strides s_l along a path, a unit sees 1 + sum_l (k_l - 1) * prod_{i<l} s_i
pixels, and neighbouring units are prod_l s_l pixels apart (Araujo, Norris and Sim,
"Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, equations 2, 3).
Where paths join, the field is the union.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exemplar_ray.network.layers import Axis, ReceptiveField

_WHOLE = ReceptiveField(None, None)


class UntraceableError(Exception):
    """What the network does to an image cannot be followed."""


def receptive_fields(outputs: Callable[[Tensor], Mapping[str, Tensor]], image: Tensor) -> dict[str, ReceptiveField]:
    """Find the receptive fields of layers.

    Args:
        outputs: a function from the network's input (float32 [1, 3, height, width]) to the
            layers' outputs by name.
        image: an input to watch it work on.

    Returns:
        {layer: field}, without the layers that do not seem to depend on the image: something
        in the network has escaped the watching.

    Raises:
        UntraceableError: the network decides by an activation's value what to do next, or does what cannot be watched.
    """
    watched = _WatchedOperations(image)
    try:
        with watched:
            layers = outputs(image)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UntraceableError(str(error)) from error
    fields = {name: watched.field_of(output) for name, output in layers.items()}
    return {name: field for name, field in fields.items() if field is not None}


class _WatchedOperations(TorchDispatchMode):
    """While inside, finds the field of every tensor that depends on the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        unit = Axis(0, 1, 1)
        # The tensors are kept: another one must not get the identity of one that is gone.
        self._fields: dict[int, tuple[Tensor, ReceptiveField]] = {id(image): (image, ReceptiveField(unit, unit))}

    def field_of(self, tensor: Tensor) -> ReceptiveField | None:
        """Return a tensor's field; None if it does not depend on the image, as weights and constants do not."""
        return self._fields[id(tensor)][1] if id(tensor) in self._fields else None

    def __torch_dispatch__(
        self, operation: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and give its results their field."""
        inputs = [
            tensor
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor) and id(tensor) in self._fields
        ]
        if not inputs:
            return operation(*args, **(kwargs or {}))
        if _name_of(operation) == "_local_scalar_dense":
            raise UntraceableError("the network looks at the value of an activation")
        before = [tuple(tensor.shape[-2:]) for tensor in inputs]
        result = operation(*args, **(kwargs or {}))
        field = _field_after(operation, args, _join([self._fields[id(tensor)][1] for tensor in inputs]), before, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._fields[id(tensor)] = tensor, field
        return result


def _name_of(operation: OpOverload) -> str:
    return operation._schema.name.removeprefix("aten::")


def _field_after(
    operation: OpOverload, args: tuple[Any, ...], field: ReceptiveField, before: list[tuple[int, ...]], result: Any
) -> ReceptiveField:
    """Apply one operation's arithmetic.

    Args:
        field: of its inputs, together.
        before: the sizes of their last two axes.
    """
    name = _name_of(operation)
    if name in _WINDOWS:
        return _apply(field, _WINDOWS[name](args))
    if name == "constant_pad_nd":
        padding: Sequence[int] = args[1]
        left, _, top, _, *_ = (*padding, 0, 0, 0, 0)
        return ReceptiveField(_shifted(field.y, top), _shifted(field.x, left))
    if name in _POINTWISE:
        return field
    # Anything else keeps the field if it leaves the map's two axes as they are, and may mix
    # the whole map if it does not.
    if name in _RESHAPING and isinstance(result, Tensor) and all(tuple(result.shape[-2:]) == size for size in before):
        return field
    return _WHOLE


def _windows_of_convolution(args: tuple[Any, ...]) -> tuple[Sequence[int], ...] | None:
    _, weight, _, stride, padding, dilation, transposed, *_ = args
    if transposed:
        return None
    return tuple(weight.shape[2:]), stride, padding, dilation


def _windows_of_max_pooling(args: tuple[Any, ...]) -> tuple[Sequence[int], ...]:
    arguments = dict(zip(("input", "kernel", "stride", "padding", "dilation"), args, strict=False))
    kernel = arguments["kernel"]
    return kernel, arguments.get("stride") or kernel, arguments.get("padding", 0), arguments.get("dilation", 1)


def _windows_of_average_pooling(args: tuple[Any, ...]) -> tuple[Sequence[int], ...]:
    # Their fifth argument is ceil_mode.
    return _windows_of_max_pooling(args[:4])


_WINDOWS: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...] | None]] = {
    "convolution": _windows_of_convolution,
    "max_pool2d_with_indices": _windows_of_max_pooling,
    "max_pool2d": _windows_of_max_pooling,
    "mkldnn_max_pool2d": _windows_of_max_pooling,
    "avg_pool2d": _windows_of_average_pooling,
    "avg_pool3d": _windows_of_average_pooling,
}

# fmt: off
_POINTWISE = {
    "relu", "relu_", "clamp", "clamp_", "clamp_min", "clamp_min_", "hardtanh", "hardtanh_", "leaky_relu", "gelu",
    "silu", "silu_", "sigmoid", "tanh", "hardswish", "hardswish_", "hardsigmoid", "elu", "exp", "sqrt", "rsqrt",
    "abs", "neg", "pow", "square", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "where", "maximum",
    "minimum", "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "clone", "detach",
    "alias", "dropout", "_to_copy",
}
_RESHAPING = {
    "cat", "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "select", "slice", "expand", "index_select",
}
# fmt: on


def _apply(field: ReceptiveField, windows: tuple[Any, ...] | None) -> ReceptiveField:
    if windows is None:
        return _WHOLE
    # The last two entries are the map's; a pooling over 3 axes has the channels' before them.
    y, x = ([values[axis] for values in map(_spread, windows)] for axis in (-2, -1))
    return ReceptiveField(_windowed(field.y, *y), _windowed(field.x, *x))


def _windowed(axis: Axis | None, kernel: int, stride: int, padding: int, dilation: int) -> Axis | None:
    """The field after a convolution or pooling."""
    if axis is None:
        return None
    return Axis(
        first=axis.first - padding * axis.stride,
        size=axis.size + (kernel - 1) * dilation * axis.stride,
        stride=axis.stride * stride,
    )


def _shifted(axis: Axis | None, units: int) -> Axis | None:
    """The field after `units` more units in front."""
    return axis and Axis(axis.first - units * axis.stride, axis.size, axis.stride)


def _spread(value: int | Sequence[int]) -> Sequence[int]:
    """Pooling takes one number, or a list of one, for both axes."""
    if isinstance(value, int):
        return (value, value)
    return (value[0], value[0]) if len(value) == 1 else value


def _join(fields: Sequence[ReceptiveField]) -> ReceptiveField:
    joined = fields[0]
    for field in fields[1:]:
        joined = ReceptiveField(_union(joined.y, field.y), _union(joined.x, field.x))
    return joined


def _union(one: Axis | None, other: Axis | None) -> Axis | None:
    """The smallest field that holds both: the whole image if their units are not equally far apart."""
    if one is None or other is None or one.stride != other.stride:
        return None
    first = min(one.first, other.first)
    return Axis(first, max(one.first + one.size, other.first + other.size) - first, one.stride)
