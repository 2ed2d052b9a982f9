"""Functions that are handed from process to process by name."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any


def named_function(name: str) -> Callable[..., Any]:
    """Import and return what `module:function` names."""
    module, _, function = name.partition(":")
    return getattr(sys.modules.get(module) or _imported(module), function)


def _imported(module: str) -> Any:
    """Import a module without collecting garbage meanwhile, or looking for any in it ever after.

    torch alone makes half a million objects that stay. The collector would go through them again and again, which is
    a fifth of the time that importing takes.
    """
    was_on = gc.isenabled()
    if gc.get_freeze_count():
        # What is garbage by now would stay for good.
        gc.collect()
    gc.disable()
    try:
        imported = importlib.import_module(module)
        gc.freeze()
        return imported
    finally:
        if was_on:
            gc.enable()
