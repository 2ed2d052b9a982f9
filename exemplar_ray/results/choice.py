"""Which rows of a table are asked for: values that columns must have, as people and their libraries write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from exemplar_ray.errors import UsageError

_LONGEST_SHOWN = 60


def several(value: Any) -> list:
    """Return one value, or the values of a list, array, series, range or anything else to go through, as Python's."""
    value = _plain(value)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        return [value]
    return [_plain(one) for one in value]


def _plain(value: Any) -> Any:
    """Return what numpy, pyarrow, pandas or torch wrap, if it is a single value."""
    if isinstance(value, pa.Scalar):
        return value.as_py()
    if isinstance(value, np.generic) or (getattr(value, "ndim", None) == 0 and hasattr(value, "item")):
        return value.item()
    # pandas' own, which is not imported here.
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def values_of(column: str, kind: pa.DataType, value: Any) -> list:
    """Return the values that a column may have, of the column's type; None for no value.

    Args:
        value: one, or several of which any will do.

    Raises:
        UsageError: a value is of another type.
    """
    values = several(value)
    wanted, read = _reading(column, kind)
    result = []
    for one in values:
        if one is not None and read(one) is None:
            raise UsageError(f"{column} is {wanted}, or several, not {_shown(one)}")
        result.append(None if one is None else read(one))
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore"):
            result = [None if one is None else kind.to_pandas_dtype()(one).item() for one in result]
        # Arrow tells -0 from 0.
        result += [-one for one in result if one == 0]
    return result


def _reading(column: str, kind: pa.DataType) -> tuple[str, Callable[[Any], Any]]:
    """Return what values of a type are called, and what reads one; None for what is none."""
    if pa.types.is_integer(kind):
        return "a whole number", _whole_number
    if pa.types.is_floating(kind):
        return "a number", _number
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "a text", _text
    if pa.types.is_boolean(kind):
        return "true or false", _truth
    raise UsageError(f"rows cannot be chosen by {column}, which is no number and no text")


def one_of(name: str, kind: pa.DataType, value: Any) -> Any:
    """Return a value that must be a single one; see `values_of`."""
    values = values_of(name, kind, value)
    if len(values) != 1 or values[0] is None:
        raise UsageError(f"{name} is one value, not {_shown(value)}")
    return values[0]


def names_of(what: str, given: Any) -> list[str]:
    """Return the names that are given: one, or several.

    Raises:
        UsageError: something else is.
    """
    names = several(given)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"{what} are names, not {_shown(name)}")
    return names


def _whole_number(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str) else None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _shown(value: Any) -> str:
    """Write a value on one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def is_among(column: pa.ChunkedArray, values: list) -> pa.ChunkedArray:
    """Return where a column has one of some values, bool."""
    if pa.types.is_integer(column.type):
        # What the type has no room for, no row has.
        room = np.iinfo(column.type.to_pandas_dtype())
        values = [one for one in values if one is None or room.min <= one <= room.max]
    return pc.is_in(column, pa.array(values, column.type))


def may_hold(statistics: Any, values: list) -> bool:
    """Whether a row group can hold one of some values, as parquet's statistics of a column tell."""
    if statistics is None:
        return True
    if None in values and not (statistics.has_null_count and statistics.null_count == 0):
        return True
    known = [value for value in values if value is not None]
    # Statistics leave NaN out.
    if not statistics.has_min_max or any(value != value for value in known):
        return bool(known)
    return any(statistics.min <= value <= statistics.max for value in known)
