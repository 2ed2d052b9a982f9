"""Functions that are handed from process to process by name."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

_something_stays = False
"""Whether this process has imported something so that no garbage is looked for in it."""


def named_function(name: str) -> Callable[..., Any]:
    """Import and return what `module:function` names."""
    module, _, function = name.partition(":")
    return getattr(sys.modules.get(module) or _imported(module), function)


def _imported(module: str) -> Any:
    """Import a module without collecting garbage meanwhile, or looking for any in it ever after.

    torch alone makes half a million objects that stay. The collector would go through them again and again, which is
    a fifth of the time that importing takes.
    """
    global _something_stays  # gc.get_freeze_count() goes through all that stays, which takes as long as importing
    was_on = gc.isenabled()
    if _something_stays:
        # What is garbage by now would stay for good.
        gc.collect()
    gc.disable()
    try:
        imported = importlib.import_module(module)
        gc.freeze()
        _something_stays = True
        return imported
    finally:
        if was_on:
            gc.enable()
