"""What a machine keeps of networks for later runs, under names that say all that it depends on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from exemplar_ray._version import __version__
from exemplar_ray.data import preprocess
from exemplar_ray.network.spec import NetworkSpec, split_model

# The packages whose code the networks of the registries, and of the libraries that this package knows, are.
_LIBRARIES = ("efficientnet-lite-pytorch", "open_clip_torch", "torch-lucent", "torchvision", "timm", "transformers")
# Where a library's package has another name.
_PACKAGES = {"open_clip": "open_clip_torch"}


def cache_folder() -> Path:
    """Return the folder: `EXEMPLAR_RAY_CACHE`, or `exemplar_ray` in the user's cache folder."""
    own = os.environ.get("EXEMPLAR_RAY_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exemplar_ray"


def name_by_content(what: Any, network: NetworkSpec) -> str:
    """Return a name for something that depends on all this, and on the code that a network is of.

    Args:
        what: plain JSON values.
    """
    code = [__version__, torch.__version__, _code(), _libraries(is_known=is_of_known_libraries(network))]
    return hashlib.sha256(json.dumps([what, code], sort_keys=True).encode()).hexdigest()[:32]


def is_of_known_libraries(network: NetworkSpec) -> bool:
    """Whether a network's code is of this package and `_LIBRARIES`, and neither a user's nor another package's."""
    library, separator, _ = network.model.partition(":")
    is_of_users_file = bool(split_model(network.model)[2])
    return not is_of_users_file and (not separator or _PACKAGES.get(library, library) in _LIBRARIES)


def _code() -> list[str]:
    """Return hashes of this package's part of it: networks and their constants, hooks, preprocessing."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(preprocess.__file__)]
    return [f"{file.stem} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]


def _libraries(is_known: bool) -> list[str]:
    """Return what else a network's code is of: known libraries, or, as other code may import whatever is there, all
    that is installed.
    """
    if not is_known:
        folders = {Path(entry) for entry in sys.path if entry.endswith("-packages")}
        return sorted(found.name for folder in folders for found in folder.glob("*.dist-info"))
    versions = []
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{name} {metadata.version(name)}")
    return versions
