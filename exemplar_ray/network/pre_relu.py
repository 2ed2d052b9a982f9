"""What a layer's output was before its ReLU: `mixed4a_pre_relu`, in Lucid's way of naming it.

After a ReLU the weakest images of a channel are all ties at zero; before it they are what the channel
says no to, and some come nearer to exciting it than others. The values are caught in the network's own
forward pass, so nothing has to be known of how the network is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from exemplar_ray.network.dispatch_mode import DispatchMode

SUFFIX = "_pre_relu"

_aten = torch.ops.aten
_RELUS = (_aten.relu, _aten.relu_, _aten.relu6, _aten.relu6_)
# The module ReLU6 is a hardtanh from 0 to 6; Lucent's ReLU with its own gradient is a clamp from 0.
_CLAMPS = (_aten.clamp, _aten.clamp_, _aten.clamp_min, _aten.clamp_min_, _aten.hardtanh, _aten.hardtanh_)
_SAME_VALUES = (_aten.alias, _aten.detach)


def split_name(layer: str, modules: Sequence[str]) -> tuple[str, bool]:
    """Return the module that a layer's name means, and whether its values before the ReLU are meant.

    >>> split_name("mixed4a_pre_relu", ["mixed4a"]), split_name("mixed4a", ["mixed4a"])
    (('mixed4a', True), ('mixed4a', False))
    """
    module = layer.removesuffix(SUFFIX)
    return (module, True) if layer not in modules and module != layer else (layer, False)


class Origins:
    """Where tensors come from, as far as that tells what they were before their ReLU."""

    def __init__(self) -> None:
        # id of a tensor -> the tensor, kept alive so that the id stays its own; and where it comes from. Plain data:
        # what refers back to this object would keep all these tensors until Python looks for cycles.
        self._known: dict[int, tuple[Tensor, tuple]] = {}

    def relu(self, output: Tensor, before: Tensor) -> None:
        """Note what went into a ReLU."""
        self._known[id(output)] = output, ("relu", before)

    def cat(self, output: Tensor, pieces: Sequence[Tensor], dim: int) -> None:
        """Note what a concatenation is made of."""
        self._known[id(output)] = output, ("cat", list(pieces), dim)

    def same(self, output: Tensor, other: Tensor) -> None:
        """Note that a tensor has another's values."""
        self._known[id(output)] = output, ("same", other)

    def before(self, output: Tensor) -> Tensor | None:
        """Return what a ReLU's output was before it, or a concatenation of such; None of other tensors."""
        _, source = self._known.get(id(output), (None, ("unknown",)))
        if source[0] == "relu":
            return source[1]
        if source[0] == "same":
            return self.before(source[1])
        if source[0] != "cat":
            return None
        pieces = [before for piece in source[1] if (before := self.before(piece)) is not None]
        return torch.cat(pieces, source[2]) if len(pieces) == len(source[1]) else None


class ReluInputs(DispatchMode):
    """While inside, remembers what went into every ReLU, and what concatenations are made of."""

    def __init__(self) -> None:
        super().__init__()
        self._origins = Origins()
        self.before = self._origins.before
        """See `Origins.before`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and take notes."""
        kwargs = kwargs or {}
        operation = func.overloadpacket
        is_relu = operation in _RELUS or (operation in _CLAMPS and _lower_bound(args, kwargs) == 0)
        in_place = is_relu and func.__name__.split(".")[0].endswith("_")
        before = args[0].clone() if in_place else args[0] if is_relu else None
        output = func(*args, **kwargs)
        if before is not None:
            self._origins.relu(output, before)
        elif operation is _aten.cat:
            self._origins.cat(output, args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0))
        elif operation in _SAME_VALUES:
            self._origins.same(output, args[0])
        return output


def _lower_bound(args: tuple, kwargs: dict[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("min", kwargs.get("min_val"))
