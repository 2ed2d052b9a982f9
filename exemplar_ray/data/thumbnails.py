"""Small square pictures of a shard's images, for maps and lists of many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import simplejpeg
from PIL import Image

from exemplar_ray.data.decode import UndecodableImageError, decode
from exemplar_ray.data.formats.registry import open_shard
from exemplar_ray.data.framing import Box, Framing
from exemplar_ray.data.preprocess import Preprocess
from exemplar_ray.data.shard import Shard
from exemplar_ray.prefetch import map_ahead

SIDE = 64
_QUALITY = 85
_AHEAD = 16


def thumbnails(
    shard: Shard, rows: Iterable[int], preprocess: Preprocess, threads: int = 1, side: int = SIDE
) -> Iterator[tuple[int, bytes]]:
    """Yield what a network sees of some of a shard's images, made small: (row, JPEG of side x side pixels).

    Args:
        rows: which; an image that cannot be decoded is passed over.
        preprocess: the network's, which says which part of the image it sees.
        threads: how many decode at the same time.
    """
    with open_shard(shard) as reader:
        made = map_ahead(
            lambda image: (image.row, _made(image.data, preprocess, side)), reader.select(rows), threads, _AHEAD
        )
        yield from ((row, picture) for row, picture in made if picture is not None)


def _made(data: bytes | None, preprocess: Preprocess, side: int) -> bytes | None:
    try:
        image = decode(data)
    except UndecodableImageError:
        return None
    small = small_view(image, Framing.of(*image.size, preprocess).view_box, side)
    return simplejpeg.encode_jpeg(np.asarray(small), quality=_QUALITY, colorsubsampling="420")


def small_view(image: Image.Image, view_box: Box, side: int) -> Image.Image:
    """Return what a network sees of an image, side x side pixels; what it sees beyond the image's edge is left out.

    Args:
        view_box: see `Framing.view_box`.
    """
    x0, y0, x1, y1 = view_box
    box = (max(x0, 0), max(y0, 0), min(x1, image.width), min(y1, image.height))
    return image.resize((side, side), Image.Resampling.LANCZOS, box, reducing_gap=2.0)
