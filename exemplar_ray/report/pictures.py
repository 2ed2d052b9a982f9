"""Pictures of a report: every distinct image once, a small one of each channel, and maps as bytes.

The browser makes all views of an exemplar from its stored picture (`static/channel.js`).
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from exemplar_ray.data.decode import decode
from exemplar_ray.data.framing import Box, Framing
from exemplar_ray.data.thumbnails import small_view
from exemplar_ray.network.layers import Axis, Layer
from exemplar_ray.report.writer import ReportWriter

LONGEST_SIDE = 640
"""Pictures with a longer side are reduced to this many pixels."""
_LARGEST_ORIGINAL = 64_000
_QUALITY = 85
# Browsers show these as the network's preprocessing does. Other kinds and modes are encoded anew.
_SHOWN_AS_THEY_ARE = {"JPEG": ".jpg", "PNG": ".png"}
_PLAIN_MODES = ("RGB", "L")
_ORIENTATION = 0x0112

DARKEST = 0.75
"""How much darker a picture gets where its map is lowest, as `static/channel.js` has it."""
_LARGEST_HALF = float(np.finfo(np.float16).max)

TILES = "tiles"
"""The folder of the pages that channels' small pictures are in."""
TILE_SIDE = 2
"""A tile shows at most so many times so many exemplars."""
_THUMBNAIL = 80
_MOST_THUMBNAILS = 2000  # 38 MB


@dataclass(frozen=True)
class Picture:
    """An image of the run as the report has it."""

    name: str
    """Below the report's folder."""
    width: int
    """Of the original, as `view_box` and `field_box` count."""
    height: int
    encoded_anew: bool
    """Whether it is other bytes than the data set's."""

    @property
    def reduced(self) -> bool:
        """Return whether it has fewer pixels than the original."""
        return max(self.width, self.height) > LONGEST_SIDE


class Pictures:
    """The pictures of a report, written as they come."""

    def __init__(self, writer: ReportWriter) -> None:
        self._writer = writer
        self._pictures: dict[tuple[str, int], Picture] = {}
        self._written: set[str] = set()
        self._thumbnails: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = Lock()

    def add(self, shard: str, row: int, data: bytes) -> None:
        """Take in the bytes of the image in a row of a shard. A new image is written."""
        if (shard, row) in self._pictures:
            return
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            ending = _SHOWN_AS_THEY_ARE.get(image.format or "") if _is_plain(image) else None
        encoded_anew = ending is None or max(width, height) > LONGEST_SIDE or len(data) > _LARGEST_ORIGINAL
        digest = hashlib.sha256(data).hexdigest()[:24]
        name = f"images/{digest[:2]}/{digest}{'.jpg' if encoded_anew else ending}"
        self._pictures[shard, row] = Picture(name, width, height, encoded_anew)
        if name not in self._written:
            self._written.add(name)
            self._writer.write(name, (lambda: _encoded_anew(data)) if encoded_anew else data)

    def get(self, shard: str, row: int) -> Picture | None:
        """Return the picture of an image; None if the run's result does not hold it."""
        return self._pictures.get((shard, row))

    def write_tile(self, name: str, exemplars: Sequence[dict[str, Any]]) -> None:
        """Write a channel's small picture: its strongest exemplars as the network saw them, row by row."""
        self._writer.write(name, lambda: self._tile(exemplars))

    def _tile(self, exemplars: Sequence[dict[str, Any]]) -> bytes:
        side = min(TILE_SIDE, math.ceil(math.sqrt(len(exemplars))))
        # A picture is as large alone as with three others.
        tile = Image.new("RGB", (side * _THUMBNAIL, math.ceil(len(exemplars) / side) * _THUMBNAIL), (128, 128, 128))
        for index, row in enumerate(exemplars):
            tile.paste(self._thumbnail(row), (index % side * _THUMBNAIL, index // side * _THUMBNAIL))
        return _jpeg(tile)

    def _thumbnail(self, row: dict[str, Any]) -> Image.Image:
        name = self._pictures[row["shard"], row["row"]].name
        with self._lock:
            thumbnail = self._thumbnails.get(name)
            if thumbnail is not None:
                self._thumbnails.move_to_end(name)
                return thumbnail
        thumbnail = small_view(decode(row["image"]["bytes"]), row["view_box"], _THUMBNAIL)
        with self._lock:
            self._thumbnails[name] = thumbnail
            if len(self._thumbnails) > _MOST_THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return thumbnail


def reduced_to_tile(data: bytes) -> bytes:
    """Return a picture as one that is no larger than a tile."""
    image = decode(data)
    image.thumbnail((TILE_SIDE * _THUMBNAIL, TILE_SIDE * _THUMBNAIL), Image.Resampling.LANCZOS)
    return _jpeg(image)


def _is_plain(image: Image.Image) -> bool:
    """Whether a browser shows the pixels that the network was given: no palette, no transparency, no animation.

    The image must not be turned either: browsers follow EXIF, the preprocessing does not.
    """
    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return image.mode in _PLAIN_MODES and getattr(image, "n_frames", 1) == 1 and not turned


def _encoded_anew(data: bytes) -> bytes:
    image = decode(data)
    if max(image.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class MapOverlay:
    """An activation map to be laid over a picture, stretched to `box`. Cells are then centred on what their units see.

    The browser goes from cell to cell linearly. The outermost cells' values go on beyond their centres.
    """

    box: Box
    """Where its corners lie, in pixels of the original image."""
    width: int
    height: int
    levels: str
    """Base64 of uint8, row by row: 255 at the map's highest value, 0 at its lowest or at 0, if that is lower."""


def map_overlay(row: dict[str, Any], layer: Layer, framing: Framing) -> MapOverlay | None:
    """Make the overlay of an exemplar; None where its layer has no map.

    A unit lies at the centre of its receptive field. The map is spread over the crop where fields are not known, or
    every unit may see the whole image.
    """
    if row["activation_map"] is None:
        return None
    values = np.array(row["activation_map"], np.float32).reshape(row["map_height"], row["map_width"])
    # A value too large for float16 is stored as infinity.
    values = np.clip(values, -_LARGEST_HALF, _LARGEST_HALF)
    field = layer.field
    (top, bottom, above, below), (left, right, before, after) = (
        _spread(axis, units, framing.crop)
        for axis, units in zip((field.y, field.x) if field else (None, None), values.shape, strict=True)
    )
    rows, columns = (
        np.clip(np.arange(-more, units + further), 0, units - 1)
        for more, units, further in zip((above, before), values.shape, (below, after), strict=True)
    )
    values = values[rows[:, None], columns]
    lowest, highest = min(0.0, float(values.min())), float(values.max())
    share = (values - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values)
    levels = np.rint(255 * share).astype(np.uint8)
    box = framing.to_original((left, top, right, bottom))
    return MapOverlay(box, levels.shape[1], levels.shape[0], base64.b64encode(levels.tobytes()).decode())


def _spread(axis: Axis | None, units: int, crop: int) -> tuple[float, float, int, int]:
    """Say where a map lies along an axis of the crop, once it goes on far enough to cover it.

    Returns:
        Where it starts and ends, in pixels of the crop; how many cells were added before and after.
    """
    if axis is None:
        return 0.0, float(crop), 0, 0
    start = axis.first + axis.size / 2 - axis.stride / 2
    end = start + units * axis.stride
    before, after = math.ceil(max(start, 0) / axis.stride), math.ceil(max(crop - end, 0) / axis.stride)
    return start - before * axis.stride, end + after * axis.stride, before, after


def darkened(seen: Image.Image, overlay: MapOverlay, view: Box) -> Image.Image:
    """Return a picture with a map over it, as the pages show it.

    Args:
        seen: what the network saw, RGB.
        view: where that is, in pixels of the original image.
    """
    x0, y0, x1, y1 = overlay.box
    across, down = overlay.width / (x1 - x0), overlay.height / (y1 - y0)
    # The map covers the view but for rounding.
    left, right = (min(max((x - x0) * across, 0.0), float(overlay.width)) for x in view[::2])
    top, bottom = (min(max((y - y0) * down, 0.0), float(overlay.height)) for y in view[1::2])
    levels = Image.frombytes("L", (overlay.width, overlay.height), base64.b64decode(overlay.levels)).convert("F")
    resized = levels.resize(seen.size, Image.Resampling.BILINEAR, (left, top, right, bottom))
    brightness = 1 - DARKEST * (1 - np.asarray(resized) / 255)
    return Image.fromarray(np.rint(np.asarray(seen) * brightness[:, :, None]).astype(np.uint8))
