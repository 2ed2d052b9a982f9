"""The mean magnitude spectrum of the images that a run searched: what MACO's pictures keep to. Imports no torch."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow.parquet as pq

from exemplar_ray.errors import UsageError
from exemplar_ray.runs.run_folder import RunFolder

_FILE = "spectrum.parquet"


def spectrum_of(run: RunFolder | None) -> np.ndarray:
    """Read it: float32 [3, side, side // 2 + 1], in decorrelated colours.

    Raises:
        UsageError: there is no run, or it has none.
    """
    if run is None:
        raise UsageError(
            "maco keeps to the spectrum of the images that a run searched; give a run instead of --model and --layer, "
            "or another --parameterization"
        )
    if not run.exists(_FILE):
        raise UsageError(
            f"'{run.uri}' has no {_FILE}, which maco keeps to: a version without it scanned some of its shards; run it "
            "again in another folder, or give another --parameterization"
        )
    with run.open(_FILE) as file:
        table = pq.read_table(file)
    sides = {name: table[name][0].as_py() for name in ("height", "width")}
    values = [np.array(row, np.float32) for row in table.sort_by("colour")["magnitudes"].to_pylist()]
    return np.stack(values).reshape(len(values), sides["height"], sides["width"])


def sha256_of(spectrum: np.ndarray) -> str:
    """Return what a spectrum is told by, in hex."""
    return hashlib.sha256(spectrum.astype("<f4").tobytes()).hexdigest()
