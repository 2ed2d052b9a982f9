"""What one operation of a network does to receptive fields and to the axes of maps: a table of torch's operations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload

from exemplar_ray.network.followed_axes import Axes
from exemplar_ray.network.layers import Axis, ReceptiveField

_WHOLE = ReceptiveField(None, None)


class Followed(NamedTuple):
    """What is known of a tensor that depends on the image."""

    field: ReceptiveField
    axes: Axes

    def field_of_map(self, dims: int) -> ReceptiveField:
        """Return the field of a layer's units: along axes of the map that stand alone, or, in tokens
        [images, tokens, channels], one behind the other."""
        if dims == 3:
            return self.field if self.axes.is_row_by_row(1) else _WHOLE
        alone = {self.axes.name_at(place) for place in range(len(self.axes.groups))}
        return ReceptiveField(self.field.y if "y" in alone else None, self.field.x if "x" in alone else None)


def name_of(operation: OpOverload) -> str:
    return operation._schema.name.removeprefix("aten::")


def lost(tensor: Tensor) -> Followed:
    return Followed(_WHOLE, Axes.unknown(tensor.shape))


def settled(followed: Followed, tensor: Tensor) -> Followed:
    """Hold together what is said of a tensor: what has no such axis has no field along it."""
    field, axes = followed
    if axes.shape != tuple(tensor.shape):
        return lost(tensor)
    return Followed(_only_of(field, {name for name in "yx" if axes.has(name)}), axes)


def _only_of(field: ReceptiveField, names: Collection[str]) -> ReceptiveField:
    return ReceptiveField(field.y if "y" in names else None, field.x if "x" in names else None)


def _mixed(followed: Followed, places: Iterable[int]) -> Followed:
    """Return the same after units were mixed along some axes: along these they see everything."""
    return Followed(_only_of(followed.field, {"y", "x"} - followed.axes.names_at(places)), followed.axes)


Known = dict[int, tuple[tuple[int, ...], Followed]]
"""{id of a tensor: (its shape before the operation, what is known of it)}"""


def after_operation(
    operation: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], known: Known, result: Tensor, number: int
) -> Followed:
    """Apply one operation's arithmetic.

    Args:
        result: one of its results; the `number`-th.
    """
    name = name_of(operation)
    first = known.get(id(args[0])) if args and isinstance(args[0], Tensor) else None
    if name in _WINDOWS and first is not None:
        # A convolution mixes what it takes for channels.
        given = _mixed(first[1], (-3,)) if name == "convolution" and len(first[0]) > 2 else first[1]
        return _windowed(given, _WINDOWS[name](args), result)
    if name == "constant_pad_nd" and first is not None:
        return _padded(first[1], args[1], result)
    if name == "slice" and first is not None:
        return _sliced(first[1], args, result)
    if name.removesuffix("_") in _POINTWISE:
        return _pointwise(known, result)
    if name == "copy_":
        source = known.get(id(args[1]))
        return _pointwise({id(args[1]): source}, result) if source else lost(result)
    if name in ("cat", "stack"):
        return _joined(name, args, known, result)
    if name in _MIXES and first is not None and not number:
        return _mixed(first[1], _MIXES[name](args))
    if name in _MOVES and first is not None:
        moved = _MOVES[name](first[1].axes, args, kwargs, result, number)
        return Followed(first[1].field, moved) if moved is not None else lost(result)
    if name in _PRODUCTS:
        factor = known.get(id(args[_PRODUCTS[name]]))
        # Products of two activations mix units, as attention does.
        if factor is not None and len(known) == 1:
            return Followed(factor[1].field, factor[1].axes.with_new_last(result.shape[-1]))
    return lost(result)


def _windowed(followed: Followed, windows: tuple[Any, ...] | None, result: Tensor) -> Followed:
    """Return what a convolution or a pooling gives."""
    field, axes = followed
    if windows is None:
        # A transposed convolution: its units see more than is followed here, along the same axes.
        transposed = axes.resized(result.shape, (-3, -2, -1)) if result.dim() == 4 else None
        return Followed(_WHOLE, transposed) if transposed is not None else lost(result)
    # The last two entries are the map's; a pooling over 3 axes has the channels' before them.
    spread = [_spread(values) for values in windows]
    fields = {"y": field.y, "x": field.x}
    for place in (-2, -1):
        name = axes.name_at(place)
        if name is not None:
            fields[name] = _seen_through(fields[name], *(values[place] for values in spread))
    after = axes.resized(result.shape, places=(-3, -2, -1) if result.dim() > 2 else (-2, -1))
    if after is None:
        after = Axes.unknown(result.shape)
    if result.dim() == 4 and min(spread[0][-2:]) > 1 and not after.names_at(range(4)):
        # What moves over two axes makes a map of them, wherever they come from.
        return Followed(_WHOLE, after.named({2: "y", 3: "x"}))
    return Followed(ReceptiveField(fields["y"], fields["x"]), after)


def _padded(followed: Followed, padding: Sequence[int], result: Tensor) -> Followed:
    field, axes = followed
    fields = {"y": field.y, "x": field.x}
    places = [-1 - i for i in range(len(padding) // 2)]
    for place, in_front in zip(places, padding[::2], strict=True):
        name = axes.name_at(place)
        if name is not None:
            fields[name] = _shifted(fields[name], in_front)
    after = axes.resized(result.shape, places)
    return Followed(ReceptiveField(fields["y"], fields["x"]), after) if after is not None else lost(result)


def _sliced(followed: Followed, args: tuple[Any, ...], result: Tensor) -> Followed:
    """Return what every so many-th unit of an axis is."""
    field, axes = followed
    given: tuple[Any, ...] = (*args[1:], *(0, None, None, 1)[len(args) - 1 :])
    dim, start, step = given[0], given[1] or 0, given[3]
    length, name = axes.shape[dim], axes.name_at(dim)
    start = min(max(start + length if start < 0 else start, 0), length)
    fields = {"y": field.y, "x": field.x}
    if name is not None and (axis := fields[name]) is not None:
        fields[name] = Axis(axis.first + start * axis.stride, axis.size, axis.stride * step)
    after = axes.resized(result.shape, (dim,))
    return Followed(ReceptiveField(fields["y"], fields["x"]), after) if after is not None else lost(result)


def _pointwise(known: Known, result: Tensor) -> Followed:
    """Return what comes of tensors that are combined element by element, smaller ones repeated."""
    shape = tuple(result.shape)
    return _combined([Followed(what.field, what.axes.repeated(shape)) for _, what in known.values()])


def _combined(several: Sequence[Followed]) -> Followed:
    """Return what tensors of one shape are combined to."""
    axes = several[0].axes
    for other in several[1:]:
        axes = axes.agreeing_with(other.axes)
    return Followed(
        _union([_only_of(what.field, {name for name in "yx" if what.axes.has(name)}) for what in several]), axes
    )


def _joined(name: str, args: tuple[Any, ...], known: Known, result: Tensor) -> Followed:
    """Return what a concatenation is: of what is followed and what is not."""
    dim = args[1] if len(args) > 1 else 0
    pieces = [known[id(piece)][1] for piece in args[0] if id(piece) in known]
    if name == "stack":
        pieces = [Followed(piece.field, piece.axes.with_new(dim % result.dim())) for piece in pieces]
    aligned = [axes for piece in pieces if (axes := piece.axes.resized(result.shape, (dim,))) is not None]
    if len(aligned) < len(pieces) or any(axes.is_of_map(dim) for axes in aligned):
        return lost(result)
    return _combined([Followed(piece.field, axes) for piece, axes in zip(pieces, aligned, strict=True)])


# Each of the following takes the axes of the first argument, the arguments, and a result of the operation, the
# `number`-th; it returns that result's axes, or None if nothing is known of them.


def _moved(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    return axes.permuted([place % len(axes.shape) for place in args[1]])


def _swapped(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    count = len(axes.shape)
    order = list(range(count))
    one, other = (args[1] % count, args[2] % count) if len(args) > 2 else (0, count - 1)
    order[one], order[other] = order[other], order[one]
    return axes.permuted(order)


def _regrouped(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    return axes.regrouped(tuple(result.shape))


def _repeated(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    return axes.repeated(tuple(result.shape))


def _selected(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    return axes.dropped((args[1] if len(args) > 1 else 0,))


def _split(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    return None if axes.is_of_map(dim) else axes.resized(tuple(result.shape), (dim,))


def _indexed(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    return None if axes.is_of_map(args[1]) else axes.resized(tuple(result.shape), (args[1],))


def _reduced(axes: Axes, args: tuple[Any, ...], kwargs: Any, result: Tensor, number: int) -> Axes | None:
    dims = args[1] if len(args) > 1 and args[1] is not None else range(len(axes.shape))
    dims = [dims] if isinstance(dims, int) else list(dims) or range(len(axes.shape))
    if result.dim() == len(axes.shape):
        return axes.without(*axes.names_at(dims)).resized(tuple(result.shape), dims)
    return axes.dropped(dims)


# What moves axes, groups them anew, or mixes along some; None: nothing is known any more.
_MOVES: dict[str, Callable[[Axes, tuple[Any, ...], Any, Tensor, int], Axes | None]] = {
    "permute": _moved,
    **dict.fromkeys(("transpose", "t"), _swapped),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"), _regrouped),
    "expand": _repeated,
    **dict.fromkeys(("select", "unbind"), _selected),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _split),
    "index_select": _indexed,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduced),
}

# What mixes units along some axes, and leaves them where they are: from the arguments to the axes.
_MIXES: dict[str, Callable[[tuple[Any, ...]], Iterable[int]]] = {
    **dict.fromkeys(("_softmax", "_log_softmax"), lambda args: [args[1]]),
    "native_layer_norm": lambda args: [-1 - i for i in range(len(args[1]))],
    "roll": lambda args: args[2] if len(args) > 2 and args[2] else range(args[0].dim()),
    "flip": lambda args: args[1],
    "native_group_norm": lambda args: range(1, args[0].dim()),
}

# Products with weights, by which argument the activations are: its last axis becomes a new one.
_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "linear": 0, "matmul": 0}


def _windows_of_convolution(args: tuple[Any, ...]) -> tuple[Sequence[int], ...] | None:
    _, weight, _, stride, padding, dilation, transposed, *_ = args
    if transposed or weight.dim() != 4:
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

# Their like in place have a _ behind.
# fmt: off
_POINTWISE = {
    "relu", "relu6", "clamp", "clamp_min", "clamp_max", "hardtanh", "leaky_relu", "_prelu_kernel", "gelu", "silu",
    "mish", "softplus", "threshold", "elu", "celu", "selu", "sigmoid", "log_sigmoid_forward", "tanh", "hardswish",
    "hardsigmoid", "exp", "expm1", "log", "log1p", "log2", "erf", "sin", "cos", "sqrt", "rsqrt", "reciprocal", "abs",
    "neg", "sign", "round", "floor", "ceil", "pow", "square", "add", "sub", "rsub", "mul", "div", "addcmul", "addcdiv",
    "lerp", "where", "masked_fill", "maximum", "minimum", "atan", "eq", "ne", "lt", "le", "gt", "ge", "logical_and",
    "logical_or", "logical_not", "nan_to_num", "native_batch_norm", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "clone", "detach", "alias", "lift_fresh", "contiguous", "dropout", "_to_copy",
}
# fmt: on


def _seen_through(axis: Axis | None, kernel: int, stride: int, padding: int, dilation: int) -> Axis | None:
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


def _union(fields: Sequence[ReceptiveField]) -> ReceptiveField:
    joined = fields[0]
    for field in fields[1:]:
        joined = ReceptiveField(_union_of_axes(joined.y, field.y), _union_of_axes(joined.x, field.x))
    return joined


def _union_of_axes(one: Axis | None, other: Axis | None) -> Axis | None:
    """The smallest field that holds both: the whole image if their units are not equally far apart."""
    if one is None or other is None or one.stride != other.stride:
        return None
    first = min(one.first, other.first)
    return Axis(first, max(one.first + one.size, other.first + other.size) - first, one.stride)
