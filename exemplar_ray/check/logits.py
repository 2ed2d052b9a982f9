"""A network's logits: found in whatever its forward pass returns, and turned into probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Float32 sums of a thousand probabilities come so near to 1.
_SUMS_TO_ONE = 1e-3


class NoLogitsError(Exception):
    """The network gives no logits; the message says what it gives."""


def logits_of(output: Any, images: int) -> Tensor:
    """Find the logits in what a network returns, where there is one way to read it.

    Args:
        output: a tensor; or a tuple or mapping of which just one tensor can be logits, or which calls it `logits`.
        images: how many were given.

    Returns:
        [images, outputs], at least two outputs.

    Raises:
        NoLogitsError: there are none, or several.
    """
    if isinstance(output, Tensor):
        logits = _as_logits(output, images)
        if logits is None:
            raise NoLogitsError(f"it gives a tensor of shape {list(output.shape)} for {images} images")
        return logits
    named = _named(output)
    if named is None:
        raise NoLogitsError(f"it gives a {type(output).__name__}")
    found = {name: _as_logits(value, images) for name, value in named.items() if isinstance(value, Tensor)}
    possible = {name: logits for name, logits in found.items() if logits is not None}
    if "logits" in possible:
        return possible["logits"]
    if len(possible) == 1:
        return next(iter(possible.values()))
    which = f"{len(possible)} could be logits ({', '.join(possible)})" if possible else "none is logits"
    raise NoLogitsError(f"it gives a {type(output).__name__} in which {which}")


def _named(output: Any) -> Mapping[str, Any] | None:
    """Return {name: what it is} of what a network returns, None if that has no parts."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if hasattr(output, "_asdict"):
        return output._asdict()
    if isinstance(output, Sequence) and not isinstance(output, str):
        return {f"number {number}": value for number, value in enumerate(output)}
    logits = getattr(output, "logits", None)
    return {"logits": logits} if logits is not None else None


def _as_logits(output: Tensor, images: int) -> Tensor | None:
    """Return a tensor of logits as [images, outputs], None if it is none."""
    if output.ndim < 2 or len(output) != images or output.shape[1] < 2 or not output.is_floating_point():
        return None
    return output.flatten(1) if output[0, 0].numel() == 1 else None


def are_images(output: Any, crops: Tensor) -> bool:
    """Whether what a network returns are images such as it was given.

    Args:
        crops: [images, height, width, channels].
    """
    if not isinstance(output, Tensor) or output.ndim != 4 or not output.is_floating_point():
        return False
    return output.shape[:2] == (len(crops), crops.shape[3]) and output[0, 0].numel() > 1


def are_probabilities(logits: Tensor) -> bool:
    """Whether the network's own softmax made them."""
    return bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < _SUMS_TO_ONE).all())


def probabilities(logits: Tensor) -> Tensor:
    """Return their softmax, or themselves if they are probabilities already; [images, outputs]."""
    return logits if are_probabilities(logits) else torch.softmax(logits, 1)


def ranks_of(logits: Tensor, outputs: Tensor) -> Tensor:
    """Return how many outputs come before that of each image's class: 0 for a right first guess.

    Equal outputs come before it, too: a network that gives the same for all classes is never right. So is one that
    gives no number.

    Args:
        logits: [images, outputs].
        outputs: int64 [images], which output is the class's.

    Returns:
        int64 [images].
    """
    of_class = logits.gather(1, outputs[:, None])
    before = (logits >= of_class).sum(1) - 1
    return torch.where(torch.isfinite(logits).all(1), before, logits.shape[1])
