"""Image bytes to the pixels that a network sees: the reference preprocessing.

It is bit for bit torchvision's pipeline on Pillow images: convert to RGB (or `Grayscale`), `Resize`, `CenterCrop`. EXIF
orientation is ignored, as torchvision ignores it.
"""

from __future__ import annotations

import errno
import io
import struct
import zlib

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from exemplar_ray.data.framing import Framing
from exemplar_ray.data.preprocess import GREY, INTERPOLATIONS, Preprocess

_RESAMPLING = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}

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
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Of which Pillow's own decoders make an OSError.
_OUT_OF_MEMORY = "out of memory error"

_JPEG = b"\xff\xd8"
_PLAIN_COLOURS = ("YCbCr", "Gray")

# Resizing a 1 x 4000 image to a shorter side of 256 makes 256 x 1,024,000 pixels. Above this
# many, only the crop is computed; Pillow's rounding may then differ by one level of 255, or by more where it resizes
# bicubically, and rows and columns in the other order.
_LARGEST_RESIZED = 1 << 26


class UndecodableImageError(Exception):
    """The bytes are not an image, or a broken one; the message is the decoder's reason."""


def decode(data: bytes | None, mode: str = "RGB") -> Image.Image:
    """Decode any format that Pillow knows into an RGB image, or into one of another of Pillow's modes.

    Raises:
        UndecodableImageError: there are no bytes, or Pillow cannot decode them whole.
        MemoryError: this machine has too little memory now, which says nothing of the image.
    """
    if not data:
        raise UndecodableImageError("no image bytes" if data is None else "empty image bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # Converted into what it is, it would be copied.
            return image if image.mode == mode else image.convert(mode)
    except UnidentifiedImageError as error:
        # Pillow's own message names a place in memory.
        raise UndecodableImageError("not an image of any known format") from error
    except _UNDECODABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and (error.errno == errno.ENOMEM or reason.startswith(_OUT_OF_MEMORY)):
            raise MemoryError(f"no memory to decode an image: {reason}") from error
        raise UndecodableImageError(reason) from error


def crop(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Resize the shorter side and cut out the centre.

    Args:
        image: of the mode that `mode_of` says.

    Returns:
        uint8 [crop, crop, channels].
    """
    framing = Framing.of(*image.size, preprocess)
    if is_too_large(framing):
        return _resize_crop_only(image, preprocess)
    right, bottom = framing.left + framing.crop, framing.top + framing.crop
    resized = image.resize(framing.resized, _RESAMPLING[preprocess.interpolation])
    return _pixels_of(resized.crop((framing.left, framing.top, right, bottom)))


def is_too_large(framing: Framing) -> bool:
    """Return whether only the crop is computed of an image, not all that it is resized to."""
    return framing.resized[0] * framing.resized[1] > _LARGEST_RESIZED


def mode_of(preprocess: Preprocess) -> str:
    """Return which of Pillow's modes an image is in before it is resized."""
    return "L" if preprocess.order == GREY else "RGB"


def _pixels_of(image: Image.Image) -> np.ndarray:
    """Return an image's pixels, [height, width, channels] also where there is one channel."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Return a crop, uint8 [crop, crop, channels], as an image to look at."""
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])


def _resize_crop_only(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Do `crop`, but compute no pixel outside the crop."""
    framing = Framing.of(*image.size, preprocess)
    size = (framing.crop, framing.crop)
    return _pixels_of(image.resize(size, _RESAMPLING[preprocess.interpolation], box=framing.view_box))


def size_of(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels of an image that `decode` takes, from its header."""
    with Image.open(io.BytesIO(data)) as image:
        return image.size


def decode_and_crop(data: bytes | None, preprocess: Preprocess) -> np.ndarray:
    """Do `decode`, then `crop`: uint8 [crop, crop, channels].

    Raises:
        UndecodableImageError, MemoryError: as `decode`.
    """
    return crop(decode(data, mode_of(preprocess)), preprocess)


def size_of_plain_jpeg(data: bytes | None) -> tuple[int, int] | None:
    """Return width and height in pixels of an ordinary JPEG, from its header; None of anything else."""
    if not data or not data.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colours in _PLAIN_COLOURS and height * width <= Image.MAX_IMAGE_PIXELS else None
