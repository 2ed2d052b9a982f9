"""Receptive fields: which input pixels a unit of a layer's map can see.

The network is traced to its primitive operations on one image, and each operation's
arithmetic (kernel, stride, padding, dilation) is applied to the field of its inputs. This
sees padding and pooling that a forward pass does on its own, outside any module.

For kernels k_l and strides s_l along a path, a unit sees 1 + sum_l (k_l - 1) * prod_{i<l} s_i
pixels, and neighbouring units are prod_l s_l pixels apart (Araujo, Norris and Sim,
"Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, equations 2, 3).
Where paths join, the field is the union.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from exemplar_ray.spec import Axis, ReceptiveField

_WHOLE = ReceptiveField(None, None)


class UntraceableError(Exception):
    """The network's operations on an image cannot be recorded."""


def receptive_fields(outputs: Callable[[Tensor], Mapping[str, Tensor]], image: Tensor) -> dict[str, ReceptiveField]:
    """Find the receptive fields of layers.

    Args:
        outputs: a function from the network's input (float32 [1, 3, height, width]) to the
            layers' outputs by name.
        image: an input to trace with.

    Returns:
        {layer: field}, without the layers that do not seem to depend on the image: something
        in the network has escaped the recording.

    Raises:
        UntraceableError: the network's operations cannot be recorded.
    """
    names: list[str] = []

    def traced(x: Tensor) -> list[Tensor]:
        found = outputs(x)
        names[:] = found
        return list(found.values())

    try:
        graph = make_fx(traced, tracing_mode="real")(image).graph
    except (RuntimeError, TypeError, ValueError) as error:
        raise UntraceableError(str(error)) from error
    fields: dict[fx.Node, ReceptiveField | None] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            unit = Axis(0, 1, 1)
            fields[node] = ReceptiveField(unit, unit)
        elif node.op == "call_function":
            fields[node] = _field_of(node, fields)
        elif node.op == "output":
            found = {name: fields[out] for name, out in zip(names, node.args[0], strict=True)}
            return {name: field for name, field in found.items() if field is not None}
        else:
            fields[node] = None  # weights and constants see nothing
    raise AssertionError("a traced graph ends with its output")


def _field_of(node: fx.Node, fields: Mapping[fx.Node, ReceptiveField | None]) -> ReceptiveField | None:
    """Apply one operation's arithmetic; None where the result does not depend on the image."""
    inputs = [arg for arg in node.all_input_nodes if fields[arg] is not None]
    if not inputs:
        return None
    joined = _join([fields[arg] for arg in inputs])
    schema = getattr(node.target, "_schema", None)
    name = schema.name.removeprefix("aten::") if schema else node.target
    if name in _WINDOWS:
        return _apply(joined, _WINDOWS[name](node))
    if name == "constant_pad_nd":
        left, _, top, _, *_ = (*node.args[1], 0, 0, 0, 0)
        return ReceptiveField(_shifted(joined.y, top), _shifted(joined.x, left))
    if name is operator.getitem or name in _POINTWISE:
        return joined
    # Anything else keeps the field if it leaves the map's two axes as they are, and may mix
    # the whole map if it does not.
    before = [tuple(arg.meta["val"].shape[-2:]) for arg in inputs if isinstance(arg.meta.get("val"), Tensor)]
    after = node.meta.get("val")
    if name in _RESHAPING and isinstance(after, Tensor) and all(tuple(after.shape[-2:]) == size for size in before):
        return joined
    return _WHOLE


def _windows_of_convolution(node: fx.Node) -> tuple[Sequence[int], ...] | None:
    _, weight, _, stride, padding, dilation, transposed, *_ = node.args
    if transposed:
        return None
    return tuple(weight.meta["val"].shape[2:]), stride, padding, dilation


def _windows_of_pooling(node: fx.Node) -> tuple[Sequence[int], ...]:
    arguments = dict(zip(("input", "kernel", "stride", "padding", "dilation"), node.args, strict=False))
    if "avg" in node.target._schema.name:
        arguments["dilation"] = 1  # their fifth argument is ceil_mode
    kernel = arguments["kernel"]
    return kernel, arguments.get("stride") or kernel, arguments.get("padding", 0), arguments.get("dilation", 1)


_WINDOWS: dict[str, Callable[[fx.Node], tuple[Any, ...] | None]] = {
    "convolution": _windows_of_convolution,
    "max_pool2d_with_indices": _windows_of_pooling,
    "max_pool2d": _windows_of_pooling,
    "mkldnn_max_pool2d": _windows_of_pooling,
    "avg_pool2d": _windows_of_pooling,
    "avg_pool3d": _windows_of_pooling,
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
