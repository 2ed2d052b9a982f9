"""What is optimised in place of pixels, and how pictures come of it.

A parameterisation is one function in `PARAMETERIZATIONS`. Pictures are periodic, as a Fourier series is: whatever is
cut out of one has a picture all around it, and no border that a network could answer to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.visualize.draws import normal

# How colours vary together in ImageNet's images: a square root of their covariance, as Lucid has it
# (tensorflow/lucid, optvis/param/color.py: color_correlation_svd_sqrt), scaled so that its longest column is 1.
_COLOUR_CORRELATION = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = _COLOUR_CORRELATION / np.linalg.norm(_COLOUR_CORRELATION, axis=0).max()
"""From decorrelated colours to red, green and blue: float64 [3, 3], rows are red, green and blue."""

# Lucid's (optvis/param/spatial.py: fft_image): a spectrum's deviation, and its decay with frequency.
_DEVIATION, _DECAY_POWER, FOURIER_DIVISOR = 0.01, 1.0, 4.0


@dataclass
class Parameterized:
    """Pictures as something that can be optimised."""

    parameters: Tensor
    """float32 [pictures, ...], with gradients."""
    pictures: Callable[[Tensor], Tensor]
    """From parameters to float32 [pictures, colours, size, size], 0..1."""
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]


def recorrelated(decorrelated: Tensor) -> Tensor:
    """Turn [pictures, 3, height, width] of decorrelated colours into red, green and blue before the sigmoid."""
    matrix = torch.tensor(COLOURS, dtype=decorrelated.dtype, device=decorrelated.device)
    return torch.einsum("rc,pchw->prhw", matrix, decorrelated)


def frequencies(size: int) -> np.ndarray:
    """Return the frequency of each entry of a picture's spectrum, in cycles a pixel: float64 [size, size // 2 + 1]."""
    return np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])


def fourier_scale(size: int) -> np.ndarray:
    """Return what a spectrum is multiplied with, so that all frequencies of a natural picture are learnt alike.

    size / max(f, 1 / size), see `fft_image` in Lucid: float64 [size, size // 2 + 1].
    """
    return size / np.maximum(frequencies(size), 1.0 / size) ** _DECAY_POWER


def fourier(keys: Sequence[str], size: int, device: torch.device) -> Parameterized:
    """Lucid's: the spectrum of each decorrelated colour, scaled by frequency; Adam with a rate of 0.05."""
    shape = (3, size, size // 2 + 1, 2)
    start = torch.stack([normal(key, "spectrum", shape) for key in keys]) * _DEVIATION
    scale = torch.tensor(fourier_scale(size), dtype=torch.float32, device=device)

    def pictures(parameters: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(parameters) * scale
        return torch.sigmoid(recorrelated(torch.fft.irfft2(spectrum, s=(size, size)) / FOURIER_DIVISOR))

    return Parameterized(_with_gradients(start, device), pictures, _adam)


def pixels(keys: Sequence[str], size: int, device: torch.device) -> Parameterized:
    """Each pixel by itself, in decorrelated colours; Adam with a rate of 0.05."""
    start = torch.stack([normal(key, "pixels", (3, size, size)) for key in keys]) * _DEVIATION
    return Parameterized(_with_gradients(start, device), lambda x: torch.sigmoid(recorrelated(x)), _adam)


def _with_gradients(start: Tensor, device: torch.device) -> Tensor:
    return start.to(device).requires_grad_(True)


def _adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


PARAMETERIZATIONS: dict[str, Callable[[Sequence[str], int, torch.device], Parameterized]] = {
    "fourier": fourier,
    "pixels": pixels,
}
