"""Functions that are handed from process to process by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def named_function(name: str) -> Callable[..., Any]:
    """Import and return what `module:function` names."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)
