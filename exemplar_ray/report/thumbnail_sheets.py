"""Small pictures of a map's points, many in one file: a folder of a million files is slow to make, copy and open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg

from exemplar_ray.report.writer import ReportWriter

IN_SHEET = 1024
BESIDE = 32
"""Pictures side by side in a sheet."""
SIDES = (32, 64)
"""Pixels. Multiples of JPEG's blocks of 16, so that no picture runs into its neighbours."""
_QUALITY = 82
_GREY = 128


def write_sheets(
    writer: ReportWriter, thumbnails: Iterable[tuple[int, bytes | npt.NDArray[np.uint8]]], points: int
) -> dict[str, Any] | None:
    """Write `thumbnails/SHEET.jpg`, each the pictures of 1,024 points in their order. One sheet is held at a time.

    Args:
        thumbnails: (place among the points, picture), places ascending. Points without one stay grey.

    Returns:
        {"side": pixels, "beside": pictures side by side, "sheets": which there are}; None without any picture.

    Raises:
        ValueError: pictures of other or several sizes, places that do not ascend or are of no point.
    """
    sheet: npt.NDArray[np.uint8] | None = None
    side, before = 0, -1
    sheets: list[int] = []
    for place, given in thumbnails:
        picture = _pixels(given)
        side = side or len(picture)
        if picture.shape != (side, side, 3) or side not in SIDES:
            raise ValueError(
                f"a thumbnail of {picture.shape[1]} x {picture.shape[0]} pixels; all have 32 x 32 or 64 x 64"
            )
        if not before < place < points:
            raise ValueError(f"the thumbnail of point {place} after that of {before}, of {points} points")
        if sheet is None or place // IN_SHEET != sheets[-1]:
            if sheet is not None:
                _write(writer, sheets[-1], sheet)
            sheets.append(place // IN_SHEET)
            sheet = np.full((BESIDE * side, BESIDE * side, 3), _GREY, np.uint8)
        top, left = (at * side for at in divmod(place % IN_SHEET, BESIDE))
        sheet[top : top + side, left : left + side] = picture
        before = place
    if sheet is None:
        return None
    _write(writer, sheets[-1], sheet)
    return {"side": side, "beside": BESIDE, "sheets": sheets}


def _pixels(picture: bytes | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return simplejpeg.decode_jpeg(picture) if isinstance(picture, bytes) else picture


def _write(writer: ReportWriter, sheet: int, pixels: npt.NDArray[np.uint8]) -> None:
    # Encoded at once: many sheets of pixels would wait otherwise.
    writer.write(f"thumbnails/{sheet}.jpg", simplejpeg.encode_jpeg(pixels, quality=_QUALITY, colorsubsampling="420"))
