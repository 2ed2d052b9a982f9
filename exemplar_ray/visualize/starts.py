"""Pictures that begin as an image: what is optimised in place of pixels, for the picture that is to be there.

A parameterisation that has no function here begins from noise whatever is wanted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from exemplar_ray.visualize.parameterizations import COLOURS, FOURIER_DIVISOR, fourier_scale

# A sigmoid gives neither black nor white; nearer to them it hardly has a gradient.
_DARKEST, _BRIGHTEST = 0.02, 0.98


def as_start(image: np.ndarray, size: int) -> np.ndarray:
    """Return an image as a picture can be: uint8 [size, size, 3].

    Args:
        image: uint8 [side, side, colours].
    """
    coloured = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    if len(coloured) == size:
        return coloured
    return np.asarray(Image.fromarray(coloured).resize((size, size), Image.Resampling.BICUBIC))


def _decorrelated(images: Tensor) -> Tensor:
    """Undo `parameterizations.recorrelated` and the sigmoid: [images, 3, height, width]."""
    before = torch.logit(images.clamp(_DARKEST, _BRIGHTEST))
    matrix = torch.tensor(np.linalg.inv(COLOURS), dtype=images.dtype)
    return torch.einsum("rc,pchw->prhw", matrix, before)


def _fourier(images: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(_decorrelated(images) * FOURIER_DIVISOR)
    return torch.view_as_real(spectrum / torch.tensor(fourier_scale(images.shape[-1]), dtype=images.dtype))


STARTS: dict[str, Callable[[Tensor], Tensor]] = {"fourier": _fourier, "pixels": _decorrelated}
"""{parameterisation: from float32 [images, 3, size, size], 0..1, to the parameters whose pictures these are}"""


def started(parameters: Tensor, starts: list[np.ndarray | None], parameterization: str) -> Tensor:
    """Return parameters of which those of some pictures are such that these begin as images.

    Args:
        parameters: as the parameterisation begins: [pictures, ...], with gradients.
        starts: of each picture uint8 [size, size, 3], or None to begin as it does.
    """
    invert = STARTS.get(parameterization)
    if invert is None or all(start is None for start in starts):
        return parameters
    begun = parameters.detach().clone()
    for number, start in enumerate(starts):
        if start is not None:
            image = torch.tensor(start).permute(2, 0, 1)[None].float() / 255
            begun[number] = invert(image)[0].to(begun.device)
    return begun.requires_grad_(True)
