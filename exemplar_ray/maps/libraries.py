"""The libraries that maps need beside numpy, each asked for where it is needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from exemplar_ray.errors import UsageError

# Module -> what of maps needs it, and the package that has it.
_NEEDED = {
    "umap": ("maps by UMAP need", "umap-learn>=0.5.9"),
    "openTSNE": ("maps by t-SNE need", "opentsne>=1.0.4"),
    "sklearn": ("clusters and scores of maps need", "scikit-learn>=1.6"),
    "threadpoolctl": ("maps that come out the same twice need", "threadpoolctl>=3.5"),
}


def library(module: str) -> ModuleType:
    """Import a module of a library that is an extra.

    Args:
        module: such as 'umap' or 'sklearn.metrics'.

    Raises:
        UsageError: the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        needs, package = _NEEDED[module.partition(".")[0]]
        raise UsageError(f"{needs} one more package: pip install '{package}' (the extra `maps`)") from error
