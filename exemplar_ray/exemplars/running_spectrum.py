"""The magnitude spectra of one shard's images, added up where the network computes."""

from __future__ import annotations

import torch
from torch import Tensor

from exemplar_ray.data.decorrelated import decorrelating
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.exemplars.tallies.spectrum import UNIT, Spectrum

_LEVELS = 255


class RunningSpectrum:
    """Adds up spectra.

    On a CPU an image adds the same bits whatever its batch: it is transformed by itself, and every other operation is
    rounded by itself.
    """

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        nothing = Spectrum.empty(preprocess.crop)
        self._from_levels = (decorrelating(preprocess.channels) / _LEVELS / UNIT).tolist()
        self._sum = torch.tensor(nothing.magnitudes, device=device)
        self._images = 0
        self._memory: list[Tensor] = []

    @torch.inference_mode()
    def update(self, crops: Tensor) -> None:
        """Take in uint8 [images, crop, crop, channels], on the device."""
        for some in crops.split(1 if crops.device.type == "cpu" else len(crops)):
            self._sum += self._magnitudes(some).sum(dim=0, dtype=torch.float64)
        self._images += len(crops)

    def _magnitudes(self, crops: Tensor) -> Tensor:
        """Return |rfft2| of each decorrelated colour, in whole units: float32 [images, 3, crop, crop // 2 + 1]."""
        planes, colours, weighted, magnitudes = self._memory_for(crops)
        planes.copy_(crops.permute(0, 3, 1, 2))
        for number, weights in enumerate(self._from_levels):
            colour = colours[:, number]
            torch.mul(planes[:, 0], weights[0], out=colour)
            for channel, weight in enumerate(weights[1:], 1):
                colour += torch.mul(planes[:, channel], weight, out=weighted)
        squares = torch.view_as_real(torch.fft.rfft2(colours)).square_()
        return torch.add(squares[..., 0], squares[..., 1], out=magnitudes).sqrt_().round_()

    def _memory_for(self, crops: Tensor) -> list[Tensor]:
        """Return the memory that was used before: for the system to give it anew takes a fifth of the time."""
        images, side, _, channels = crops.shape
        if not self._memory or len(self._memory[0]) != images:
            shapes = ((channels, side, side), (3, side, side), (side, side), (3, side, side // 2 + 1))
            self._memory = [torch.empty((images, *shape), device=crops.device) for shape in shapes]
        return self._memory

    def result(self) -> Spectrum:
        """Return what they come to."""
        return Spectrum(self._images, self._sum.cpu().numpy() * UNIT)
