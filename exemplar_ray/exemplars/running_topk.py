"""The running top-K of one shard, kept on the device that computes the activations."""

from __future__ import annotations

import torch
from torch import Tensor

_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_NOTHING = torch.iinfo(torch.int64).min


class RunningTopK:
    """The `keep` strongest images of each channel among the rows seen so far.

    Activation and row are packed into one int64 key whose order is the total order
    (activation descending, row ascending), so `torch.topk`, which is not stable, never
    sees a tie. NaN and infinity are counted and left out.
    """

    def __init__(self, channel_count: int, keep: int, device: torch.device) -> None:
        self._keys = torch.full((channel_count, keep), _NOTHING, dtype=torch.int64, device=device)
        self._not_finite = torch.zeros(channel_count, dtype=torch.int64, device=device)

    def update(self, activations: Tensor, rows: Tensor) -> None:
        """Take in one batch.

        Args:
            activations: float32 [images, channels].
            rows: int64 [images], each below 2**32, on the same device.
        """
        finite = torch.isfinite(activations)
        self._not_finite += (~finite).sum(dim=0)
        keys = torch.where(finite, pack(activations, rows[:, None]), _NOTHING)
        both = torch.cat([self._keys, keys.T], dim=1)
        self._keys = both.topk(self._keys.shape[1], dim=1, sorted=False).values

    @property
    def not_finite(self) -> Tensor:
        """How many NaN and infinities there were: int64 [channels], on the CPU."""
        return self._not_finite.cpu()

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what was kept, on the CPU, strongest first within a channel.

        Returns:
            channel (int64 [n]), activation (float32 [n]), row (int64 [n]) of the kept images.
        """
        keys = self._keys.sort(dim=1, descending=True).values.cpu()
        channel, rank = (keys != _NOTHING).nonzero(as_tuple=True)
        activation, row = unpack(keys[channel, rank])
        return channel, activation, row


def pack(activations: Tensor, rows: Tensor) -> Tensor:
    """Pack finite float32 activations and rows into int64 keys; larger is better.

    The bits of a float32 read as an integer grow with it where it is positive and fall
    where it is negative; flipping the lower 31 bits of the negative ones makes the integer
    monotone over all of them.
    """
    bits = (activations + 0.0).view(torch.int32)  # + 0.0 turns -0 into +0
    monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (monotone.to(torch.int64) << _ROW_BITS) + (_ROW_MASK - rows)


def unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the float32 activations and int64 rows of keys made by `pack`."""
    monotone = (keys >> _ROW_BITS).to(torch.int32)
    bits = torch.where(monotone < 0, monotone ^ 0x7FFFFFFF, monotone)
    return bits.view(torch.float32), _ROW_MASK - (keys & _ROW_MASK)
