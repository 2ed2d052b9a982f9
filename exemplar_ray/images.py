"""Image bytes to the pixels that a network sees: the reference preprocessing.

Bit for bit torchvision's pipeline on Pillow images: convert to RGB, `Resize`, `CenterCrop`.
EXIF orientation is ignored, as torchvision ignores it.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from exemplar_ray.geometry import Framing
from exemplar_ray.spec import Preprocess

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Pillow's decoders raise these on bytes that are no image or a broken one.
_UNDECODABLE = (
    OSError,  # truncated, unknown format
    SyntaxError,  # broken PNG or TIFF structure
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Resizing a 1 x 4000 image to a shorter side of 256 makes 256 x 1,024,000 pixels. Above this
# many, only the crop is computed; Pillow's rounding may then differ by one level of 255.
_LARGEST_RESIZED = 1 << 26


class UndecodableImageError(Exception):
    """The bytes are not an image, or a broken one; the message is the decoder's reason."""


def decode(data: bytes | None) -> Image.Image:
    """Decode any format that Pillow knows into an RGB image.

    Raises:
        UndecodableImageError: there are no bytes, or Pillow cannot decode them whole.
    """
    if not data:
        raise UndecodableImageError("no image bytes" if data is None else "empty image bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except _UNDECODABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableImageError(reason) from error


def crop(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resize the shorter side and cut out the centre.

    Args:
        image: an RGB image.

    Returns:
        uint8 [crop, crop, 3].
    """
    framing = Framing.of(*image.size, preprocess)
    resampling = _RESAMPLING[preprocess.interpolation]
    if framing.resized[0] * framing.resized[1] > _LARGEST_RESIZED:
        size = (framing.crop, framing.crop)
        return np.asarray(image.resize(size, resampling, box=framing.view_box))
    right, bottom = framing.left + framing.crop, framing.top + framing.crop
    return np.asarray(image.resize(framing.resized, resampling).crop((framing.left, framing.top, right, bottom)))


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels of an image that `decode` takes, from its header."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def decode_and_crop(data: bytes | None, preprocess: Preprocess) -> np.ndarray:
    """Do `decode`, then `crop`: uint8 [crop, crop, 3]."""
    return crop(decode(data), preprocess)
