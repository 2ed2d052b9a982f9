"""Random numbers by name: every picture and every step of it has its own, whatever else is computed beside it.

There is no global state. A number is a function of the picture's key (layer, channel, objective, seed) and of what it
is for, through BLAKE2b, which is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def whole_numbers(key: str, purpose: str) -> Iterator[int]:
    """Yield whole numbers of 64 bits, uniformly distributed, without end."""
    block = 0
    while True:
        digest = hashlib.blake2b(f"{key}\n{purpose}\n{block}".encode()).digest()
        yield from (int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
        block += 1


def normal(key: str, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Return float32 numbers of the standard normal distribution, on the CPU."""
    generator = torch.Generator().manual_seed(next(whole_numbers(key, purpose)) >> 1)
    return torch.randn(shape, generator=generator)
