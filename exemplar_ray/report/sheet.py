"""What figures are drawn on: pictures and texts at whole pixels of 300 an inch, saved as PDF, SVG or PNG.

PDF and SVG use these pixels for positions only: their pictures keep every pixel that they have, and their text stays
text.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image

DPI = 300
WIDTH = 7 * DPI
"""The widest that a figure gets: a page's text."""
ENDINGS = (".pdf", ".png", ".svg")
INK, FAINT, ALARM = "#1c1c1e", "#6b6b70", "#b3261e"
LABEL_POINTS, SMALL_POINTS = 7, 4.5
WARNING = 45
"""The height of a line of warnings."""

_FONT = "DejaVu Sans"  # comes with matplotlib

SETTINGS: dict[Any, Any] = {
    "font.family": [_FONT, "sans-serif"],
    "pdf.fonttype": 42,  # TrueType: what journals ask for
    "svg.fonttype": "none",
    "svg.hashsalt": "exemplar_ray",
    "image.composite_image": False,
    "text.parse_math": False,
}
"""matplotlib's, while a sheet is made, drawn on and saved."""


class Sheet:
    """A white sheet. Positions are pixels from its upper left corner.

    Args:
        width: in pixels, as the height.
        as_vectors: whether pictures keep the pixels that they have; else they get those of the sheet.
    """

    def __init__(self, width: int, height: int, as_vectors: bool) -> None:
        self._as_vectors = as_vectors
        self._figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self._axes.set_axis_off()

    def warn(self, warnings: Sequence[str]) -> None:
        """Write warnings across the top, each `WARNING` high."""
        for line, text in enumerate(warnings):
            self.text(0, line * WARNING + 4, text, size=LABEL_POINTS, weight="bold", color=ALARM)

    def text(self, x: float, y: float, text: str, **how: Any) -> None:
        """Write a text.

        Args:
            x: its left side, unless `how` has another `ha`.
            y: its top, unless `how` has another `va`.
            how: matplotlib's properties of texts.
        """
        self._axes.text(x, y, text, **{"va": "top", **how})

    def picture(self, picture: Image.Image, x: int, y: int, side: int) -> None:
        """Put a picture where its upper left corner is to be, `side` wide and high."""
        if not self._as_vectors:
            # The pixels are those that will stand there: matplotlib's own reduction is coarser.
            picture = picture.resize((side, side), Image.Resampling.LANCZOS)
        extent = (x, x + side, y + side, y)
        self._axes.imshow(np.asarray(picture), extent=extent, interpolation="none", aspect="auto")

    def saved(self, ending: str, metadata: dict[str, str | None]) -> bytes:
        """Return it as a file of the kind that an ending of `ENDINGS` says."""
        buffer = io.BytesIO()
        self._figure.savefig(buffer, format=ending[1:], dpi=DPI, metadata=metadata)
        return buffer.getvalue()


def lacking(texts: Iterable[str]) -> str:
    """Return the characters of texts that the font lacks, and boxes stand for."""
    drawable = _font(SMALL_POINTS).get_charmap()
    return "".join(sorted({letter for text in texts for letter in text if ord(letter) not in drawable}))


def width_of(text: str, points: float) -> float:
    """Return how wide a text is, in pixels."""
    font = _font(points)
    font.set_text(text)
    return float(font.get_width_height()[0]) / 64


def shortened(text: str, width: float, points: float = SMALL_POINTS) -> str:
    """Cut a text to a width in pixels."""
    if width_of(text, points) <= width:
        return text
    while text and width_of(text + "...", points) > width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrapped(text: str, width: float, points: float) -> list[str]:
    """Break a text between its words into lines of a width in pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, points) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _font(points: float) -> Any:
    # matplotlib draws with the same object, at sizes of its own.
    font = get_font(findfont(FontProperties(family=_FONT)))
    font.set_size(points, DPI)
    return font
