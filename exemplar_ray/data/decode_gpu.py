"""JPEGs decoded, resized and cropped on a GPU, for scans that the CPUs cannot feed.

nvJPEG decodes, through torchvision; its pixels may differ from the reference's by more than a level, so this is
for screening only. What is no ordinary JPEG goes the reference's way on the CPU, so that the same images are skipped.
"""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_jpeg

from exemplar_ray.data import decode as images
from exemplar_ray.data.decode import UndecodableImageError
from exemplar_ray.data.framing import Framing
from exemplar_ray.data.preprocess import GREY, Preprocess

_END_OF_JPEG = b"\xff\xd9"
# What libraries write of memory: CUDA's allocator, the C++ library, nvJPEG (its status 5).
_OUT_OF_MEMORY = re.compile(r"out of memory|bad_alloc|ALLOCATOR_FAILURE|Failed [a-z ]+: 5\b", re.IGNORECASE)
# And of the device rather than of the image.
_OF_DEVICE = re.compile(r"CUDA error|CUDA driver|cudaError|device-side assert|not compiled with", re.IGNORECASE)
# What torch interpolates with, antialiased.
_ON_GPU = ("bilinear", "bicubic")
# Larger ones would not fit many at a time.
_LARGEST_PIXELS = 1 << 25


def decode_and_crop(
    data: Sequence[bytes | None], preprocess: Preprocess, device: torch.device
) -> list[Tensor | UndecodableImageError]:
    """Do what `images.decode_and_crop` does, for several images on a device.

    Args:
        device: a GPU; on the CPU torchvision's own decoder does nvJPEG's part.

    Returns:
        For each image uint8 [crop, crop, channels] on the device, or the reference's reason why there is none.

    Raises:
        MemoryError: the device has too little memory now, also for one image at a time.
        RuntimeError: the device cannot decode at all. Doing that on the CPU instead would be another run.
    """
    ordinary = {
        i: content for i, content in enumerate(data) if content is not None and _is_ordinary(content, preprocess)
    }
    pixels = dict(zip(ordinary, _decode(list(ordinary.values()), device), strict=True))
    decoded_images: list[Tensor | UndecodableImageError] = []
    for i, content in enumerate(data):
        decoded = pixels.get(i)
        if decoded is not None:
            decoded_images.append(_crop(_grey(decoded) if preprocess.order == GREY else decoded, preprocess))
            continue
        try:
            decoded_images.append(torch.from_numpy(np.array(images.decode_and_crop(content, preprocess))).to(device))
        except UndecodableImageError as error:
            decoded_images.append(error)
    return decoded_images


def _is_ordinary(data: bytes | None, preprocess: Preprocess) -> bool:
    """Whether these bytes are a JPEG that goes to the GPU: of plain colours, with an end, neither huge nor a strip
    that resizing would make huge."""
    size = images.size_of_plain_jpeg(data)
    if data is None or size is None or not data.endswith(_END_OF_JPEG) or preprocess.interpolation not in _ON_GPU:
        return False
    resized = Framing.of(*size, preprocess).resized
    return max(size[0] * size[1], resized[0] * resized[1]) <= _LARGEST_PIXELS


def _decode(data: Sequence[bytes], device: torch.device) -> list[Tensor | None]:
    """Decode JPEGs: uint8 [3, height, width] each, or None for one that the decoder finds fault with."""
    if not data:
        return []
    # torch warns of memory that it must not write to; decoders only read.
    encoded = [torch.from_numpy(np.frombuffer(bytearray(one), np.uint8)) for one in data]
    try:
        return list(decode_jpeg(encoded, ImageReadMode.RGB, device))
    except RuntimeError as error:
        # One faulty image fails the call for all; and one needs less memory than many.
        if len(data) > 1:
            return [_decode([one], device)[0] for one in data]
        _refuse_trouble_of_device(error, device)
        return [None]


def _refuse_trouble_of_device(error: RuntimeError, device: torch.device) -> None:
    """Tell a device that cannot decode from an image that cannot be decoded.

    Raises:
        MemoryError, RuntimeError: see `decode_and_crop`.
    """
    reason = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(reason):
        raise MemoryError(f"no memory to decode on {device}: {reason}; a smaller --batch-size takes less") from error
    try:
        if not _OF_DEVICE.search(reason):
            decode_jpeg([_sound_jpeg()], ImageReadMode.RGB, device)
            return
    except RuntimeError as of_sound_one:
        reason = " ".join(str(of_sound_one).split())
    raise RuntimeError(
        f"{device} on {socket.gethostname()} cannot decode JPEGs: {reason}; mend it, or give --decode fast, which "
        "decodes on the CPUs"
    ) from error


@cache
def _sound_jpeg() -> Tensor:
    """Return a JPEG that any decoder decodes: uint8 [bytes]."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return torch.from_numpy(np.frombuffer(bytearray(file.getvalue()), np.uint8))


def _grey(pixels: Tensor) -> Tensor:
    """Make an image grey, uint8 [1, height, width], as Pillow does for its mode L (`L24` in its Convert.c)."""
    red, green, blue = pixels.to(torch.int32)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).to(torch.uint8)[None]


def _crop(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Resize the shorter side and cut out the centre, as `images.crop` does up to a level of 255, if bilinearly.

    Bicubically, what overshoots is clipped at the end only, not between columns and rows, too.
    """
    framing = Framing.of(pixels.shape[2], pixels.shape[1], preprocess)
    width, height = framing.resized
    resized = nn.functional.interpolate(
        pixels[None].float(), (height, width), mode=preprocess.interpolation, antialias=True, align_corners=False
    )
    cut = resized[0, :, framing.top : framing.top + framing.crop, framing.left : framing.left + framing.crop]
    return cut.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
