"""What is optimised in place of pixels, and how pictures come of it.

A parameterisation is one function in `PARAMETERIZATIONS`. Pictures are periodic, as a Fourier series is: whatever is
cut out of one has a picture all around it, and no border that a network could answer to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from exemplar_ray.data.decorrelated import COLOURS
from exemplar_ray.visualize.draws import normal

# Lucid's (optvis/param/spatial.py: fft_image): a spectrum's deviation, and its decay with frequency.
_DEVIATION, _DECAY_POWER, FOURIER_DIVISOR = 0.01, 1.0, 4.0


# MACO's: what keeps a deviation of 0 from being divided by.
_LEAST_DEVIATION = 1e-4
# Of phases; MACO's is 1. Phases that are alike add up in the picture's corner, to a bright frame: e^(-d^2/2) of
# all magnitudes, 0.61 of them for 1 and 0.14 for 2. MACO looks at the middle of a large canvas, where none is seen.
_PHASES_DEVIATION = 2.0


@dataclass(frozen=True)
class Canvas:
    """What a parameterisation is told."""

    keys: Sequence[str]
    """Of the pictures."""
    size: int
    device: torch.device
    spectrum: np.ndarray | None = None
    """Of natural images, float [3, side, side // 2 + 1], of any side, see `spectrum.parquet`; only where needed."""


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


def fourier(canvas: Canvas) -> Parameterized:
    """Lucid's: the spectrum of each decorrelated colour, scaled by frequency; Adam with a rate of 0.05."""
    size = canvas.size
    start = _start(canvas, "spectrum", (3, size, size // 2 + 1, 2)) * _DEVIATION
    scale = torch.tensor(fourier_scale(size), dtype=torch.float32, device=canvas.device)

    def pictures(parameters: Tensor) -> Tensor:
        spectrum = torch.view_as_complex(parameters) * scale
        return torch.sigmoid(recorrelated(torch.fft.irfft2(spectrum, s=(size, size)) / FOURIER_DIVISOR))

    return Parameterized(start.requires_grad_(True), pictures, _adam)


def pixels(canvas: Canvas) -> Parameterized:
    """Each pixel by itself, in decorrelated colours; Adam with a rate of 0.05."""
    start = _start(canvas, "pixels", (3, canvas.size, canvas.size)) * _DEVIATION
    return Parameterized(start.requires_grad_(True), lambda x: torch.sigmoid(recorrelated(x)), _adam)


def maco(canvas: Canvas) -> Parameterized:
    """MACO: phases only, of magnitudes that are those of natural images; NAdam with a rate of 1.

    Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization" (2023), as
    in its authors' code (serre-lab/Horama, horama/maco_fv.py: maco_preconditioner): phases and pictures are
    standardised, all colours of a picture together. But phases are spread more widely.

    Raises:
        ValueError: there is no spectrum.
    """
    if canvas.spectrum is None:
        raise ValueError("MACO needs the spectrum of natural images")
    size = canvas.size
    start = _start(canvas, "phases", (3, size, size // 2 + 1))
    magnitudes = torch.tensor(resampled(canvas.spectrum, size), dtype=torch.float32, device=canvas.device)

    def colours(phases: Tensor) -> Tensor:
        spectrum = torch.polar(magnitudes, _PHASES_DEVIATION * standardised(phases))
        return standardised(torch.fft.irfft2(spectrum, s=(size, size)))

    def pictures(parameters: Tensor) -> Tensor:
        # One after another: sums over all of a picture are rounded otherwise where others stand beside it.
        return torch.sigmoid(recorrelated(torch.stack([colours(phases) for phases in parameters])))

    return Parameterized(start.requires_grad_(True), pictures, partial(torch.optim.NAdam, lr=1.0))


def standardised(values: Tensor) -> Tensor:
    """Give all there is of one picture a mean of 0 and a deviation of 1."""
    values = values - values.mean()
    return values / (values.std() + _LEAST_DEVIATION)


def resampled(spectrum: np.ndarray, size: int) -> np.ndarray:
    """Return the mean magnitude spectrum that pictures of another size have, up to a factor.

    A frequency, in cycles a pixel, has the magnitude that it has; in between, magnitude times frequency, which hardly
    varies in natural images, is interpolated. The magnitude of frequency 0 is in proportion to the number of pixels,
    others are to its root.

    Args:
        spectrum: float [colours, side, side // 2 + 1].

    Returns:
        float64 [colours, size, size // 2 + 1].
    """
    side = spectrum.shape[1]
    values = spectrum.astype(np.float64)
    if side == size:
        return values
    flat = values * np.maximum(frequencies(side), 1 / side)
    flat[:, 0, 0] = (flat[:, 0, 1] + flat[:, 1, 0] + flat[:, -1, 0]) / 3
    down = _interpolating(np.fft.fftfreq(side), np.fft.fftfreq(size), period=1.0)
    right = _interpolating(np.fft.rfftfreq(side), np.fft.rfftfreq(size))
    resized = np.einsum("ai,cij,bj->cab", down, flat, right) / np.maximum(frequencies(size), 1 / size)
    resized[:, 0, 0] = values[:, 0, 0] * size / side
    return resized


def _interpolating(of: np.ndarray, to: np.ndarray, period: float | None = None) -> np.ndarray:
    """Return the matrix that interpolates linearly: float64 [to, of]."""
    return np.stack([np.interp(to, of, one, period=period) for one in np.eye(len(of))], axis=1)


def _start(canvas: Canvas, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers for each picture: float32 [pictures, *shape]."""
    return torch.stack([normal(key, purpose, shape) for key in canvas.keys]).to(canvas.device)


def _adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


PARAMETERIZATIONS: dict[str, Callable[[Canvas], Parameterized]] = {
    "fourier": fourier,
    "maco": maco,
    "pixels": pixels,
}
