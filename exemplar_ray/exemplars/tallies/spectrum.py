"""The mean magnitude spectrum of the images searched: what colours and frequencies they are made of.

It is a tally of images, not of channels: of the decorrelated colours (`data.decorrelated`) of what the network sees,
with red, green and blue on 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from exemplar_ray.exemplars.list_columns import lengths_and_values, list_column

UNIT = 2.0**-14
"""What the magnitudes of an image are rounded to: sums are then exact, in whatever order, up to 2**53 units."""


@dataclass(frozen=True)
class Spectrum:
    """The magnitudes of some images' spectra, added up."""

    images: int
    magnitudes: np.ndarray
    """float64 [3, side, side // 2 + 1]: of each decorrelated colour, as `numpy.fft.rfft2` orders frequencies."""

    @classmethod
    def empty(cls, side: int) -> Self:
        """Return the spectrum of no images of so many pixels a side."""
        return cls(0, np.zeros((3, side, side // 2 + 1)))

    def merge(self, other: Self) -> Self:
        """Return the spectrum of both sets of images."""
        return type(self)(self.images + other.images, self.magnitudes + other.magnitudes)

    def to_table(self) -> pa.Table:
        """Return everything that `from_table` needs, a row a colour."""
        return self._table(self.magnitudes)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read back what `to_table` returned."""
        magnitudes = lengths_and_values(table["magnitudes"])[1]
        return cls(table["images"][0].as_py(), magnitudes.reshape(3, table["height"][0].as_py(), -1))

    def mean_table(self) -> pa.Table:
        """Return `spectrum.parquet`: the mean of the images, float32, a row a colour.

        Raises:
            ValueError: there are no images.
        """
        if not self.images:
            raise ValueError("no images have no spectrum")
        return self._table((self.magnitudes / self.images).astype(np.float32))

    def _table(self, magnitudes: np.ndarray) -> pa.Table:
        colours, height, width = magnitudes.shape
        return pa.table(
            {
                "colour": pa.array(range(colours), pa.int32()),
                "images": pa.array([self.images] * colours, pa.int64()),
                "height": pa.array([height] * colours, pa.int32()),
                "width": pa.array([width] * colours, pa.int32()),
                "magnitudes": list_column(np.full(colours, height * width), magnitudes.reshape(-1)),
            }
        )
