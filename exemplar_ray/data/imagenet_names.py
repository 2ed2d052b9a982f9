"""What people call ImageNet's 1,000 synsets: many copies name classes by their ids alone, and n02101556 is clumber.

The words are torchvision's. The ids, `imagenet_synsets.txt`, are those of ILSVRC 2012 in the order of its 1,000 labels,
which is that of the words, and their own.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

_WORDS = "_IMAGENET_CATEGORIES"


def name_of_synset(synset_id: str | None) -> str | None:
    """Return what a synset is called; None for one that is not among ImageNet's 1,000.

    >>> name_of_synset("n02101556"), name_of_synset("n00000001")
    ('clumber', None)
    """
    return _names().get(synset_id or "")


def spelled_out(class_name: str) -> str:
    """Return a class's name; where that is the id of one of ImageNet's synsets, also what people call it.

    >>> spelled_out("n02101556"), spelled_out("tench, Tinca tinca")
    ('n02101556 (clumber)', 'tench, Tinca tinca')
    """
    called = name_of_synset(class_name)
    return f"{class_name} ({called})" if called else class_name


@cache
def _names() -> dict[str, str]:
    ids = (Path(__file__).parent / "imagenet_synsets.txt").read_text().split()
    return dict(zip(ids, _torchvisions_words(), strict=True))


def _torchvisions_words() -> list[str]:
    """Read torchvision's list without importing it, which imports torch: results are read without."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        raise ImportError("torchvision, whose names of ImageNet's classes are used, is not installed")
    source = (Path(package.submodule_search_locations[0]) / "models" / "_meta.py").read_text()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == _WORDS:
            words: list[str] = ast.literal_eval(statement.value)
            return words
    raise ImportError(f"torchvision has no {_WORDS} in models/_meta.py, whose names of ImageNet's classes are used")
