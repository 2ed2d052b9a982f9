"""Folders that are called as layers are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LONGEST_FOLDER = 80


def folder_names(layers: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return a folder's name for each layer: safe on every file system, and no two alike in any case.

    Args:
        taken: names that stand for something else.

    >>> folder_names(["mixed4a", "a/b", "a b", "A_b", "images", ".."], ["images"])
    {'mixed4a': 'mixed4a', 'a/b': 'a_b', 'a b': 'a_b-2', 'A_b': 'A_b-3', 'images': 'images-2', '..': '_.'}
    """
    used = {name.casefold() for name in taken}
    names = {}
    for layer in layers:
        safe = re.sub(r"^\.|[^A-Za-z0-9_.-]", "_", layer)[:_LONGEST_FOLDER]
        name, number = safe, 1
        while name.casefold() in used:
            number += 1
            name = f"{safe}-{number}"
        used.add(name.casefold())
        names[layer] = name
    return names
