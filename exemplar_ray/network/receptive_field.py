"""Receptive fields: which input pixels a unit of a layer's map can see.

The network's primitive operations are watched as they work on one image, and each operation's arithmetic (kernel,
stride, padding, dilation) is applied to the field of its inputs. This sees padding and pooling that a forward pass
does on its own, outside any module. Which axes of a tensor are the map's is followed, too (`followed_axes`): layers
that move them, as networks with channels last do, keep their field.

For kernels k_l and strides s_l along a path, a unit sees 1 + sum_l (k_l - 1) * prod_{i<l} s_i
pixels, and neighbouring units are prod_l s_l pixels apart (Araujo, Norris and Sim,
"Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, equations 2, 3).
Where paths join, the field is the union.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from exemplar_ray.network.dispatch_mode import DispatchMode
from exemplar_ray.network.followed_axes import Axes
from exemplar_ray.network.layers import Axis, ReceptiveField
from exemplar_ray.network.operations import Followed, after_operation, lost, name_of, settled

# These take an image's size, type and device, and nothing of what is in it.
_FRESH = {f"{what}_like" for what in ("zeros", "ones", "full", "empty", "rand", "randn")} | {
    *("new_zeros", "new_ones", "new_full", "new_empty")
}

# The network looks at activations, and may go another way with another image.
_DECISIONS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "masked_select"}


class UntraceableError(Exception):
    """What the network does to an image cannot be followed."""


class WatchedOperations(DispatchMode):
    """While inside, follows everything that depends on an image: `followed` tells of a tensor what it is now.

    Args:
        image: the network's input, float32 [1, channels, height, width].
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        unit = Axis(0, 1, 1)
        # The tensors are kept: another one must not get the identity of one that is gone.
        self._followed = {id(image): (image, Followed(ReceptiveField(unit, unit), Axes.of_image(image.shape)))}
        self._written_into: set[int] = set()

    def followed(self, tensor: Tensor) -> Followed | None:
        """Return what is known of a tensor; None if it does not depend on the image, as weights and constants do not,
        or if something in the network has escaped the watching."""
        if id(tensor) in self._followed:
            return self._followed[id(tensor)][1]
        # Somebody wrote what depends on the image into the memory that it is a view of.
        return lost(tensor) if _memory_of(tensor) in self._written_into else None

    def __torch_dispatch__(
        self, operation: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and find out what its results are.

        Raises:
            UntraceableError: the network decides by an activation's value what to do next.
        """
        tensors = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        inputs = [(tensor, what) for tensor in tensors if (what := self.followed(tensor)) is not None]
        if not inputs or name_of(operation) in _FRESH:
            return operation(*args, **(kwargs or {}))
        if name_of(operation) in _DECISIONS:
            raise UntraceableError("the network looks at the value of an activation")
        # In place, an operation changes its input's shape for all who look at it later.
        known = {id(tensor): (tuple(tensor.shape), what) for tensor, what in inputs}
        result = operation(*args, **(kwargs or {}))
        outputs = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        for number, tensor in enumerate(outputs):
            followed = after_operation(operation, args, kwargs or {}, known, tensor, number)
            self._followed[id(tensor)] = tensor, settled(followed, tensor)
        if operation._schema.is_mutable:
            self._note_writing(outputs or tensors[:1])
        return result

    def _note_writing(self, written: Sequence[Tensor]) -> None:
        """Nothing is known any more of other views of memory that has been written into."""
        for tensor in written:
            memory = _memory_of(tensor)
            self._written_into.add(memory)
            for other, _ in list(self._followed.values()):
                if other is not tensor and _memory_of(other) == memory:
                    self._followed[id(other)] = other, lost(other)


def _memory_of(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        # Some of torch's own formats have no such memory.
        return id(tensor)
