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
    width, height = image.size
    short, long = min(width, height), max(width, height)
    # Sizes and offsets as torchvision computes them: truncated, and rounded half to even.
    resized_long = int(preprocess.resize * long / short)
    size = (preprocess.resize, resized_long) if width <= height else (resized_long, preprocess.resize)
    left = round((size[0] - preprocess.crop) / 2.0)
    top = round((size[1] - preprocess.crop) / 2.0)
    box = (left, top, left + preprocess.crop, top + preprocess.crop)
    resampling = _RESAMPLING[preprocess.interpolation]
    if size[0] * size[1] <= _LARGEST_RESIZED:
        return np.asarray(image.resize(size, resampling).crop(box))
    scale = (width / size[0], height / size[1])
    source = (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1])
    return np.asarray(image.resize((preprocess.crop, preprocess.crop), resampling, box=source))


def decode_and_crop(data: bytes | None, preprocess: Preprocess) -> np.ndarray:
    """Do `decode`, then `crop`: uint8 [crop, crop, 3]."""
    return crop(decode(data), preprocess)
