"""A module in hand, from a notebook or a program: kept in a file of the run folder, `module:FILE`, so that workers and
later commands have it.

The file holds the module as cloudpickle writes it, with the user's own classes by value: workers need none of their
files. To load it runs what is in it, as to load a model's file does.
"""

from __future__ import annotations

import copyreg
import hashlib
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import cloudpickle
import torch
from torch import nn

from exemplar_ray.errors import UsageError, one_line
from exemplar_ray.network.architecture import Architecture
from exemplar_ray.network.spec import IN_HAND
from exemplar_ray.network.structure import is_own, structure_sha256
from exemplar_ray.network.weights import content_of, weights_sha256
from exemplar_ray.storage.transient import patiently

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_AS_MADE = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}

# Where something in a network is called `classes` or `ops`, cloudpickle takes these for modules that it uses, and
# cannot write them.
copyreg.pickle(type(torch.classes), lambda _: (attrgetter("classes"), (torch,)))
copyreg.pickle(type(torch.ops), lambda _: (attrgetter("ops"), (torch,)))


class Kept(NamedTuple):
    """A module, written down."""

    sha256: str
    """Hex, of its structure and its weights."""
    content: bytes


def written_down(module: nn.Module) -> Kept:
    """Write a module down, whatever device it is on. It is left as it is.

    Raises:
        UsageError: it holds what cannot be written, such as an open file.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("a TorchScript module's layers cannot be looked into; give the network that it was made of")
    structure = structure_sha256(module)
    entry = {"structure": structure, "title": type(module).__name__, "module": module}
    file = io.BytesIO()
    try:
        with _own_classes_by_value():
            torch.save(entry, file, pickle_module=cloudpickle)
    except Exception as error:  # whatever an object raises that is asked for its state
        raise UsageError(
            f"the network cannot be handed to workers ({type(error).__name__}: {one_line(error)}); put what makes it "
            "into a file, and give model='file.py:function'"
        ) from error
    both = hashlib.sha256(f"{structure} {weights_sha256(module)}".encode()).hexdigest()
    return Kept(both, file.getvalue())


@contextmanager
def _own_classes_by_value() -> Iterator[None]:
    """While inside, cloudpickle writes what the user's own Python modules define, and not only its name."""
    # The program itself is written so anyway.
    known = {*cloudpickle.list_registry_pickle_by_value(), "__main__"}
    loaded = [module for name, module in list(sys.modules.items()) if getattr(module, "__name__", None) == name]
    own = [module for module in loaded if module.__name__ not in known and is_own(module.__name__)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def module_in_hand(uri: str, _weights: str) -> Architecture:
    """Look up a module that was written down.

    Raises:
        UsageError: there is no such file, or it cannot be loaded.
    """
    try:
        content = patiently(partial(content_of, uri))
    except Exception as error:  # a file system raises what its library does
        raise UsageError(
            f"'{IN_HAND}{uri}', a network that a program handed over, is not there: {one_line(error)}"
        ) from error
    entry = _loaded(content, uri)
    return Architecture(
        title=f"{entry['title']}, a module in hand",
        build=lambda: _loaded(content, uri)["module"],
        pretrained=None,
        preprocess=None,
        source=lambda: entry["structure"],
        own_weights="its own weights",
        is_trained=not _is_as_made(entry["module"]),
    )


def _loaded(content: bytes, uri: str) -> dict[str, Any]:
    try:
        entry = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=pickle)
        return {name: entry[name] for name in ("structure", "title", "module")}
    except Exception as error:  # whatever the classes in it raise
        raise UsageError(
            f"'{IN_HAND}{uri}' cannot be loaded here ({type(error).__name__}: {one_line(error)}); if it "
            "lacks a package, install that on every machine"
        ) from error


def _is_as_made(module: nn.Module) -> bool:
    """Whether a network shows that it was never trained: it has normalisations, and all are as they were made."""
    learnt = [
        (getattr(part, name), value)
        for part in module.modules()
        if isinstance(part, _NORMALISATIONS)
        for name, value in _AS_MADE.items()
        if getattr(part, name, None) is not None
    ]
    return bool(learnt) and all(bool((tensor == value).all()) for tensor, value in learnt)
