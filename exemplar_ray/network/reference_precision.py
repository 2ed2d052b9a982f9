"""Full float32, whatever a program or a network's file has allowed torch to put in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def reference_precision() -> Iterator[None]:
    """Compute in full float32: no TensorFloat-32 or bfloat16 behind it, algorithms not chosen by timing.

    torch has two sets of names for this, and refuses to read the older one where somebody has set the newer (since
    2.9). Here both say the same, so that whoever reads either, as torch's compiler does, is answered.
    """
    cudnn = torch.backends.cudnn
    kinds = _kinds()
    flags = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    precisions = [kind.fp32_precision for kind in kinds]
    older_names = _older_names()
    _set_older_names("highest", False)
    for kind in kinds:
        kind.fp32_precision = "ieee"
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
    try:
        yield
    finally:
        if older_names is not None:
            _set_older_names(*older_names)
        for kind, precision in zip(kinds, precisions, strict=True):
            kind.fp32_precision = precision
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic = flags


def _kinds() -> list[Any]:
    """Return everything that has a precision of its own."""
    backends: Any = torch.backends
    of_gpu = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    return [*of_gpu, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]


def _older_names() -> tuple[str, bool] | None:
    """Return what the older names say; None where torch does not read them any more."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_older_names(matmul: str, cudnn_allows_tf32: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn_allows_tf32
