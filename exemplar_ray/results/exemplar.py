"""One exemplar of a finished run, and its pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image

from exemplar_ray.errors import UsageError


class Exemplar(dict):
    """One row of `exemplars.parquet`, with its pictures."""

    @property
    def image(self) -> Image.Image:
        """The original image, RGB.

        Raises:
            UsageError: the run was published without its images.
        """
        if self["image"] is None:
            raise UsageError("this result was published without its images; shard and row say where this one is")
        return Image.open(io.BytesIO(self["image"]["bytes"])).convert("RGB")

    @property
    def view(self) -> Image.Image:
        """What the network saw, cut out of the original."""
        return cut(self.image, self["view_box"])

    @property
    def field(self) -> Image.Image | None:
        """The receptive field of the unit that fired most; None where the layer has no map."""
        return cut(self.image, self["field_box"]) if self["field_box"] is not None else None

    @property
    def unit(self) -> Image.Image | None:
        """The receptive field of the unit whose value `activation` is; None for `mean`, which is of all units.

        That is the unit that fired most for `max`, the middle one for `center`.
        """
        return cut(self.image, self["unit_box"]) if self["unit_box"] is not None else None


def cut(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Cut a box (x0, y0, x1, y1) out of an image, rounded to whole pixels, at least one."""
    x0, y0, x1, y1 = (math.floor(value + 0.5) for value in box)
    x0, y0 = min(x0, image.width - 1), min(y0, image.height - 1)
    return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
