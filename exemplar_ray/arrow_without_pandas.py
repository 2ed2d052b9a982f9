"""Arrow arrays without pandas, which pyarrow imports to tell whether what it makes an array of is from there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def leave_pandas_out() -> None:
    """Have pyarrow make arrays in this process without importing pandas first, which takes 0.15 s.

    pyarrow asks for pandas once, when it makes its first array; here it hears that there is none. What needs pandas,
    such as `to_pandas`, imports it all the same. Nobody must import pandas in another thread meanwhile.
    """
    if "pandas" in sys.modules:
        return
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(finder)
