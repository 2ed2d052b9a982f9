"""A piece of a network as an affine map: every function that is not linear replaced by one that is.

Which one, is said by gates. Of a function of each number by itself, such as a ReLU, a gate is a slope and an offset:
f(x) -> slope * x + offset. Of a pooling by the largest it is the places of the largest; of a division by the
neighbours, as in response normalisation, or a product with one number a channel, the factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from exemplar_ray.network.response_norm import divisor
from exemplar_ray.network.tape import Step, Tape, Value


class NotAffineError(ValueError):
    """A piece of a network has something in it that no linear map stands for."""


class Gate(NamedTuple):
    """What stands for one function that is not linear."""

    slope: Tensor
    """float, broadcast against the function's input; or, of a pooling, int64: which number of a map is the largest."""
    offset: Tensor | None = None


class Gates(Protocol):
    """Where gates come from."""

    def of(self, step: Step, kind: str, given: Sequence[Any]) -> Gate | None:
        """Return the gate of a step; None for the nearest linear function.

        Args:
            kind: `each`, `pool`, `norm`, `factor`: how the gate is used.
            given: what the step is given.
        """


class Open:
    """The nearest linear functions: the identity for a ReLU, the mean for the largest."""

    def of(self, step: Step, kind: str, given: Sequence[Any]) -> Gate | None:
        """Return None."""
        return None


class Recorded:
    """The tangent at what the piece is given: all gates are what they are there, and are kept."""

    def __init__(self) -> None:
        self.gates: dict[int, Gate] = {}

    def of(self, step: Step, kind: str, given: Sequence[Any]) -> Gate | None:
        """Find a step's gate, and keep it."""
        self.gates[id(step)] = gate = _GATES[kind](step, given)
        return gate


class Given:
    """Gates that are known: those of another input, or means over many.

    Args:
        gates: {id of the step: its gate}; None of a step stands for the nearest linear function.
    """

    def __init__(self, gates: Mapping[int, Gate | None]) -> None:
        self._gates = gates

    def of(self, step: Step, kind: str, given: Sequence[Any]) -> Gate | None:
        """Return a step's gate."""
        return self._gates.get(id(step))


# Functions of each number by itself.
_EACH = {
    *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "leaky_relu", "elu", "celu", "selu", "silu", "gelu"),
    *("hardswish", "mish", "softplus", "prelu", "rrelu", "threshold"),
}
# No linear map is near them: they are left where they only make a factor, one number a channel.
_SQUASHING = {"sigmoid", "hardsigmoid", "tanh"}
_LINEAR = {
    *("conv2d", "linear", "batch_norm", "cat", "concat", "concatenate", "add", "iadd", "radd", "sub", "isub", "neg"),
    *("avg_pool2d", "adaptive_avg_pool2d", "mean", "flatten", "view", "reshape", "permute", "transpose", "contiguous"),
    *("dropout", "dropout2d", "pad", "getitem", "chunk", "split", "squeeze", "unsqueeze", "identity", "to", "clone"),
    *("float", "detach", "channel_shuffle", "alpha_dropout", "feature_alpha_dropout"),
}
# These are given all sizes in numbers, of which the first is that of the images which the tape was recorded with.
_SHAPED = {"view", "reshape"}
# What works in place would overwrite a value that is wanted later.
_FUNCTIONAL: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "iadd": torch.add,
    "isub": torch.sub,
    "mul": torch.mul,
    "imul": torch.mul,
    "div": torch.div,
    "truediv": torch.div,
    "itruediv": torch.div,
    "dropout": lambda x, *_, **__: x,
}
_PRODUCTS = {"mul", "imul", "rmul", "multiply"}
_QUOTIENTS = {"div", "truediv", "itruediv", "divide"}


class Piece:
    """What a network does between one value and later ones, as an affine map.

    Args:
        tape: what the network does.
        before: where the piece begins.
        after: where it ends: values that stand one behind the other along the channels.

    Raises:
        NotAffineError: there is a way around its beginning, or it has a step that no linear map stands for.
    """

    def __init__(self, tape: Tape, before: Value, after: Sequence[Value]) -> None:
        steps = tape.between(before, after)
        if steps is None:
            raise NotAffineError("some of what it is given does not come from there")
        if tape.writes is not None:
            raise NotAffineError(f"the network writes into a part of a tensor ({tape.writes})")
        self.steps, self.before, self.after = steps, before, tuple(after)
        self.shape = tape.shapes[before.number][1:]
        self.channels_after = [tape.shapes[value.number][1] for value in after]
        for step in steps:
            _refuse(step)
            if step.name in _SQUASHING and not _is_factor(step, tape, steps):
                raise NotAffineError(f"there is '{step.name}', which no linear map stands for")
            if step.name in _SHAPED and step.results[0] and tape.shapes[step.results[0].number][0] != tape.shapes[0][0]:
                raise NotAffineError(f"there is '{step.name}', which takes images apart or together")

    def __call__(self, x: Tensor, gates: Gates) -> Tensor:
        """Run it: [images, ...] of its beginning -> [images, channels of its end, ...]."""
        values: dict[Value, Any] = {self.before: x}
        for step in self.steps:
            args, kwargs = tree_map_only(Value, values.__getitem__, (step.args, step.kwargs))
            results = tree_leaves(_run(step, args, kwargs, gates))
            values.update(zip((one for one in step.results if one is not None), results, strict=False))
        return torch.cat([values[value] for value in self.after], dim=1)


def is_dense(step: Step) -> bool:
    """Whether a step makes each channel of several others, by weights."""
    if step.name == "conv2d":
        weight = _argument(step, 1, "weight")
        return isinstance(weight, Tensor) and weight.shape[1] > 1
    return step.name == "linear"


def is_each_channel_by_itself(step: Step) -> bool:
    """Whether a step leaves channels what they were: a ReLU, a pooling, a normalisation."""
    by_constants = step.name in _PRODUCTS | _QUOTIENTS | {"add", "sub"} and len(step.inputs) == 1
    pools = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "local_response_norm", "batch_norm"}
    other = {"dropout", "dropout2d", "pad", "identity", "contiguous"}
    return by_constants or step.name in _EACH | pools | other or _is_mean_of_maps(step)


def is_no_layer(step: Step) -> bool:
    """Whether a step makes channels that are only those of what it is given: a pooling, a dropout."""
    pools = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "local_response_norm", "pad"}
    return step.name in pools | {"dropout", "dropout2d", "identity"} or _is_mean_of_maps(step)


def _is_mean_of_maps(step: Step) -> bool:
    dims = _argument(step, 1, "dim")
    return step.name == "mean" and isinstance(dims, (tuple, list)) and sorted(dim % 4 for dim in dims) == [2, 3]


def before_relu(tape: Tape, value: Value) -> tuple[Value, ...]:
    """Return what a value is before its ReLU, or itself; of a concatenation along the channels those of its pieces."""
    step = tape.made_by(value)
    if step is None:
        return (value,)
    if _is_relu(step):
        return (step.inputs[0],)
    if step.name in ("cat", "concat", "concatenate") and _argument(step, 1, "dim", 0) in (1, -3):
        return tuple(before for one in step.inputs for before in before_relu(tape, one))
    return (value,)


def _is_relu(step: Step) -> bool:
    if step.name in ("relu", "relu6"):
        return True
    if step.name in ("hardtanh", "clamp", "clamp_min"):
        names = ("min_val", "min")
        low = step.args[1] if len(step.args) > 1 else next((step.kwargs[n] for n in names if n in step.kwargs), -1)
        return isinstance(low, (int, float)) and low == 0
    return False


def _argument(step: Step, place: int, name: str, default: Any = None) -> Any:
    return step.args[place] if len(step.args) > place else step.kwargs.get(name, default)


def _refuse(step: Step) -> None:
    name = step.name
    known = name in _EACH | _LINEAR or name in ("max_pool2d", "local_response_norm") or name in _SQUASHING
    if name in _PRODUCTS:
        known = len(step.inputs) == 1 or len(step.inputs) == 2
    if name in _QUOTIENTS:
        known = len(step.inputs) == 1 and isinstance(step.args[0], Value)
    if name == "linear" and isinstance(_argument(step, 1, "weight"), Value):
        known = False
    if not known:
        raise NotAffineError(f"there is '{name}', which no linear map stands for")


def _is_factor(step: Step, tape: Tape, steps: Sequence[Step]) -> bool:
    """Whether what a step gives is one number a channel that multiplies a map, and nothing else."""
    [value] = step.results
    users = [one for one in steps if value in one.inputs]
    is_number = value is not None and all(side == 1 for side in tape.shapes[value.number][2:])
    return bool(users) and is_number and all(one.name in _PRODUCTS and len(one.inputs) == 2 for one in users)


def _run(step: Step, args: Sequence[Any], kwargs: Mapping[str, Any], gates: Gates) -> Any:
    name = step.name
    if name in _EACH:
        return _each(args[0] if args else kwargs["input"], gates.of(step, "each", [args, kwargs]))
    if name == "max_pool2d":
        return _pooled(args, kwargs, gates.of(step, "pool", [args, kwargs]))
    if name == "local_response_norm":
        x = args[0] if args else kwargs["input"]
        gate = gates.of(step, "norm", [args, kwargs])
        return x * (gate.slope if gate else _argument(step, 4, "k", 1.0) ** -_argument(step, 3, "beta", 0.75))
    if name in _PRODUCTS and len(step.inputs) == 2:
        signal, _ = _signal_and_factor(args)
        gate = gates.of(step, "factor", [args, kwargs])
        return signal * gate.slope if gate else signal
    if name in _SHAPED:
        return args[0].reshape(len(args[0]), *_sizes(args)[1:])
    return _FUNCTIONAL.get(name, step.function)(*args, **kwargs)


def _sizes(args: Sequence[Any]) -> Sequence[int]:
    return args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:]


def _each(x: Tensor, gate: Gate | None) -> Tensor:
    if gate is None:
        return x
    return x * gate.slope if gate.offset is None else x * gate.slope + gate.offset


def _pool_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return {**dict(zip(names, args, strict=False)), **{name: kwargs[name] for name in names if name in kwargs}}


def _pooled(args: Sequence[Any], kwargs: Mapping[str, Any], gate: Gate | None) -> Tensor:
    given = _pool_arguments(args, kwargs)
    x = given.pop("input")
    if gate is None:
        if given.pop("dilation", 1) not in (1, (1, 1), [1, 1]):
            raise NotAffineError("there is a dilated 'max_pool2d', which no mean stands for")
        return nn.functional.avg_pool2d(x, **given)
    return x.flatten(2).gather(2, gate.slope.flatten(2)).view(gate.slope.shape)


def _signal_and_factor(args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Tell a map from what multiplies each of its channels as a whole.

    Raises:
        NotAffineError: neither of the two is one number a channel.
    """
    left, right = args[:2]
    for signal, factor in ((left, right), (right, left)):
        if factor.dim() == 4 and factor.shape[2:].numel() == 1 < signal.shape[2:].numel():
            return signal, factor
    raise NotAffineError("there is a product of two maps, which no linear map stands for")


def _tangent(step: Step, given: Sequence[Any]) -> Gate:
    args, kwargs = given
    kwargs = {name: value for name, value in kwargs.items() if name != "inplace"}
    x = (args[0] if args else kwargs.pop("input")).detach()
    with torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        # A function that works in place must not do so on a leaf.
        y = step.function(leaf.clone(), *args[1:], **kwargs)
        (slope,) = torch.autograd.grad(y.sum(), leaf)
    return Gate(slope, y.detach() - slope * x)


def _largest(step: Step, given: Sequence[Any]) -> Gate:
    arguments = _pool_arguments(*given)
    return Gate(nn.functional.max_pool2d(**arguments, return_indices=True)[1])


def _divisor(step: Step, given: Sequence[Any]) -> Gate:
    args, kwargs = given
    with torch.no_grad():
        return Gate(1 / divisor(*args, **kwargs))


def _factor(step: Step, given: Sequence[Any]) -> Gate:
    return Gate(_signal_and_factor(given[0])[1].detach())


_GATES: dict[str, Callable[[Step, Sequence[Any]], Gate]] = {
    "each": _tangent,
    "pool": _largest,
    "norm": _divisor,
    "factor": _factor,
}
