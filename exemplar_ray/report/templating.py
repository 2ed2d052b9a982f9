"""How templates become pages: what came with the data is text there, never markup, without control characters."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2


def environment() -> jinja2.Environment:
    """Return the templates of this folder, with what they write numbers and texts by."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"number": number, "boxed": boxed, "isolated": isolated, "text": text}
    return templates


def number(value: float | None, digits: int = 4) -> str:
    """Write a number with so many digits; a dash stands for none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}g}"


def boxed(box: Sequence[float] | None) -> str:
    """Write a box for the scripts."""
    return " ".join(f"{value:.6g}" for value in box) if box is not None else ""


def text(value: Any) -> str:
    """Write what came with the data, without control characters: no page may hold some of them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "�", str(value))


def isolated(value: Any) -> str:
    """Write what came with the data into an attribute. Its direction of writing ends with it (FSI ... PDI)."""
    return f"\u2068{text(value)}\u2069" if value else ""
