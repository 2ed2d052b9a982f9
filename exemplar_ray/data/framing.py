"""How an image is resized and cropped, and which of its pixels a network sees. Plain arithmetic, no torch.

Boxes are (x0, y0, x1, y1), x to the right, y downwards; x1 and y1 are where the box ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from exemplar_ray.data.preprocess import FLOORED, Preprocess

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Framing:
    """How an image of some size is resized and cropped.

    `resized` is (width, height) after resizing; `left` and `top` are where
    the crop lies in it. Sizes and offsets are those of torchvision's `Resize` and
    `CenterCrop`: truncated, and rounded half to even, if the preprocessing does not say floored.
    """

    width: int
    height: int
    resized: tuple[int, int]
    left: int
    top: int
    crop: int

    @classmethod
    @lru_cache(maxsize=1 << 16)
    def of(cls, width: int, height: int, preprocess: Preprocess) -> Framing:
        """Frame an image of `width` x `height` pixels."""
        resized = _resized(width, height, preprocess.resize)
        left, top = (_start(side - preprocess.crop, preprocess.centre) for side in resized)
        return cls(width, height, resized, left, top, preprocess.crop)

    def to_original(self, box: Box) -> Box:
        """Take a box from pixels of the crop to pixels of the original image."""
        x, y = self.width / self.resized[0], self.height / self.resized[1]
        x0, y0, x1, y1 = box
        return (self.left + x0) * x, (self.top + y0) * y, (self.left + x1) * x, (self.top + y1) * y

    @cached_property
    def view_box(self) -> Box:
        """What the network saw, in pixels of the original image."""
        return self.to_original((0, 0, self.crop, self.crop))


def _start(margin: int, centre: str) -> int:
    """Return where a crop starts that leaves so many pixels over, on both sides together.

    >>> [_start(3, "rounded"), _start(3, "floored")]
    [2, 1]
    """
    return margin // 2 if centre == FLOORED else round(margin / 2.0)


def _resized(width: int, height: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of an image after resizing."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    short, long = min(width, height), max(width, height)
    resized_long = int(resize * long / short)
    return (resize, resized_long) if width <= height else (resized_long, resize)
