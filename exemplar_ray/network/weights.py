"""Weights: reading a state dict, finding the one reading of a file that fits, and the hash that names them."""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
import re
import socket
import urllib.error
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import fsspec
import torch
from torch import Tensor, nn

from exemplar_ray import errors
from exemplar_ray.errors import UsageError
from exemplar_ray.network.architecture import StateDict
from exemplar_ray.storage.transient import patiently

_DOWNLOAD_TIMEOUT_SECONDS = 20
_DOWNLOAD_ATTEMPTS = 2

# What wrappers put before every name: DataParallel and DistributedDataParallel, torch.compile.
_WRAPPERS = ("module.", "_orig_mod.")

Readings = Mapping[str, StateDict]
"""{entry of the file, or '' for all of it: what it maps}"""


# Reading ---------------------------------------------------------------------------------


def read_weights(uri: str) -> Readings:
    """Read a `.safetensors` or `.pth` file from any file system that fsspec opens.

    Pickled files are read with `weights_only=True`: they cannot run code.

    Returns:
        Every state dict that the file may be meant to be: all of it, or an entry such as `state_dict` or `model`.

    Raises:
        UsageError: the file cannot be read or has no state dict.
    """
    try:
        content = patiently(lambda: content_of(uri))
    except Exception as error:  # a file system raises what its library does
        raise UsageError(
            f"weights '{uri}' cannot be read ({one_line(error)}); give 'pretrained', 'random:SEED', "
            "or the path of a .pth or .safetensors state dict"
        ) from error
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            return {"": load(content)}
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler meets in a foreign file
        raise UsageError(f"weights '{uri}' are no state dict that can be read: {_why(content, error)}") from error
    found = {"": state} if _is_state_dict(state) else {}
    if isinstance(state, Mapping):
        found |= {name: entry for name, entry in state.items() if isinstance(name, str) and _is_state_dict(entry)}
    if not found:
        raise UsageError(f"weights '{uri}' are no state dict: it maps names to tensors")
    return found


def content_of(uri: str) -> bytes:
    """Read a whole file of any file system that fsspec opens."""
    with fsspec.open(uri, "rb") as file:
        return file.read()


def _is_state_dict(value: object) -> bool:
    """Whether it maps names to tensors; modules that pack their weights keep other things beside them."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    return any(isinstance(entry, Tensor) for entry in value.values())


def _why(content: bytes, error: Exception) -> str:
    """Say why torch does not load a file as weights."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return "it is a TorchScript archive; save the state_dict() of the network that it was made of"
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and "weights_only" in str(error):
            return (
                f"it holds objects of Python's ({found[1]}), so it may be a whole pickled model, which could run code; "
                "save its state_dict() alone"
            )
    return one_line(error)


def downloaded(what: str, url: str, fetch: Callable[[], StateDict]) -> StateDict:
    """Fetch a state dict that a library downloads into torch's folder.

    Args:
        what: what it is, as the subject of a message.
        fetch: downloads and reads it, or reads it where it was downloaded before.

    Raises:
        UsageError: it cannot be had; the message says which file to put where.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = url.rsplit("/", 1)[-1]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        return patiently(fetch, _DOWNLOAD_ATTEMPTS)
    except (urllib.error.URLError, OSError, HTTPException) as error:
        raise UsageError(
            f"{what} cannot be downloaded from {url} ({one_line(error)}); put {name} into {folder}, "
            f"or give --weights PATH/TO/{name}, or --weights random:0 for an untrained network"
        ) from error
    except Exception as error:  # torch raises whatever a torn file makes its reader raise
        raise UsageError(
            f"{what} cannot be read from {folder / name} ({one_line(error)}); "
            "remove that file, so that it is downloaded again"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


# Fitting ---------------------------------------------------------------------------------


def load_fitting(readings: Readings, load: Callable[[StateDict], nn.Module], model: str, origin: str) -> tuple:
    """Load the one reading of a file that fits a network.

    Args:
        load: makes the network with a state dict. Raises ValueError, whose message says what differs.
        origin: what the readings are of, as the subject of a message.

    Returns:
        The network, and the file's entry that was taken ('': all of it).

    Raises:
        UsageError: none fits, or several do.
    """
    fitting: list[tuple[nn.Module, str]] = []
    misfits = {}
    for entry, state in readings.items():
        try:
            fitting.append((load(state), entry))
        except ValueError as error:
            misfits[entry] = str(error)
    if len(fitting) > 1:
        names = " and ".join(f"'{entry}'" for _, entry in fitting)
        raise UsageError(f"{origin} fit '{model}' in several ways: {names}; save the one that you mean in a file alone")
    if not fitting:
        # What is nearest says the most.
        entry = min(misfits, key=lambda name: len(misfits[name]))
        part = f" (entry '{entry}')" if entry else ""
        raise UsageError(f"{origin}{part} do not fit '{model}': {misfits[entry]}")
    return fitting[0]


def load_into(module: nn.Module, state: StateDict) -> nn.Module:
    """Load a state dict that fits exactly into a network.

    What wrappers put before all names (`module.`, `_orig_mod.`) may differ.

    Raises:
        ValueError: it does not fit; the message says what differs.
    """
    state = _rewrapped(state, _wrapper_of(module.state_dict()))
    try:
        module.load_state_dict(state)
    except Exception as error:  # torch says a misfit with RuntimeErrors, a class with whatever it meets
        misfit = differences(module, state)
        if misfit:
            raise ValueError(misfit) from error
        try:
            module.load_state_dict(filled(state, module))
        except Exception as again:
            raise ValueError(one_line(again)) from again
    return module


def filled(state: StateDict, module: nn.Module) -> StateDict:
    """Return a state dict that lacks nothing that has no influence: which version of its classes it is of, and how many
    batches a normalisation has seen in training.
    """
    complete = copy.copy(module.state_dict())
    complete.update(state)
    return complete


def differences(module: nn.Module, state: StateDict) -> str:
    """Say how a state dict differs from a network's own; '' if it has the same names and shapes."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in own
        if name in state and isinstance(state[name], Tensor) and isinstance(own[name], Tensor)
        if state[name].shape != own[name].shape
    ]
    return misfit_in_words(missing, unknown, shapes)


def misfit_in_words(missing: list[str], unknown: list[str], shapes: list[str]) -> str:
    """Say what is not as it should be, by names; '' if nothing is."""
    kinds = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def unwrapped(state: StateDict) -> StateDict:
    """Return a state dict without what wrappers have put before all names, as a library's loader wants it."""
    return _rewrapped(state, "")


def _rewrapped(state: StateDict, wanted: str) -> StateDict:
    given = _wrapper_of(state)
    if wanted == given:
        return state
    renamed = OrderedDict((wanted + name.removeprefix(given), entry) for name, entry in state.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        inner = {f"{name}.".removeprefix(given): of for name, of in versions.items() if f"{name}.".startswith(given)}
        renamed._metadata = {(wanted + name).strip("."): of for name, of in inner.items()}  # type: ignore[attr-defined]
    return renamed


def _wrapper_of(names: Iterable[str]) -> str:
    """Return what wrappers have put before all names.

    >>> _wrapper_of(["module._orig_mod.conv.weight", "module._orig_mod.conv.bias"])
    'module._orig_mod.'
    """
    names, found = list(names), ""
    while names:
        prefix = next((one for one in _WRAPPERS if all(name.startswith(found + one) for name in names)), None)
        if prefix is None:
            break
        found += prefix
    return found


def _some(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


# The hash --------------------------------------------------------------------------------


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 (hex) over every entry of the state dict: name, dtype, shape, bytes.

    It names the weights whatever file they came from.

    Raises:
        UsageError: an entry is neither a tensor nor made of tensors and plain values.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(module.state_dict().items()):
        _add(digest, name, entry)
    return digest.hexdigest()


def _add(digest: Any, name: str, entry: object) -> None:
    """Add one entry of a state dict. Quantised modules keep packed weights there, which are no plain tensors."""
    if isinstance(entry, Tensor) and entry.is_quantized:
        scheme = entry.qscheme()
        scale: tuple[Any, ...]
        if scheme in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            scale = (entry.q_per_channel_scales(), entry.q_per_channel_zero_points(), entry.q_per_channel_axis())
        else:
            scale = (entry.q_scale(), entry.q_zero_point())
        _add(digest, f"{name} {scheme}", scale)
        _add(digest, name, entry.int_repr())
    elif isinstance(entry, Tensor):
        digest.update(f"{name} {entry.dtype} {tuple(entry.shape)}\n".encode())
        digest.update(entry.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    elif isinstance(entry, (tuple, list)):
        for position, one in enumerate(entry):
            _add(digest, f"{name}[{position}]", one)
    elif isinstance(entry, dict):
        for key, one in sorted(entry.items(), key=str):
            _add(digest, f"{name}[{key}]", one)
    elif isinstance(entry, torch.ScriptObject):
        _add(digest, name, entry.__getstate__())
    elif isinstance(entry, (str, bytes, bool, int, float, complex, torch.dtype, torch.Size, type(None))):
        digest.update(f"{name} {type(entry).__name__} {entry!r}\n".encode())
    else:
        raise UsageError(
            f"the network keeps a {type(entry).__name__} in its state ('{name}'), which has no bytes to tell it by; "
            "keep tensors there"
        )


def one_line(error: BaseException) -> str:
    """Return an error's message in one line, its beginning if it is long; its type where it has none."""
    return errors.one_line(error)[:300]
