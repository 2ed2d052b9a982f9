"""What a module in hand computes, apart from its weights, as a hash: the same in another process, in a script as in a
notebook.

Classes and functions of installed packages count by their names. Those of the user's own count by their code, with
what it refers to: a class that was changed in a notebook is another structure. Code is compared as Python compiled it,
so another minor version of Python gives another hash; comments and the places of lines count for nothing.
"""

from __future__ import annotations

import dis
import hashlib
import os
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exemplar_ray.network.user_code import is_users_own

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, slice, range)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# What every module has: whether it is trained at the moment decides nothing, its hooks for the forward pass do.
_OF_ANY_MODULE = vars(nn.Module()).keys() - set(_HOOKS)
# How a call is prepared, which depends on more than the function's own text.
_OF_CALLING = {"CACHE", "RESUME", "NOP", "PUSH_NULL", "PRECALL", "COPY_FREE_VARS", "MAKE_CELL"}
# What Python adds to a class by itself.
_OF_ANY_CLASS = {"__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__qualname__"} | {
    *("__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__")
}


def structure_sha256(module: nn.Module) -> str:
    """Return the SHA-256 (hex) of what a module is made of and how it computes. Weights and buffers that its state
    dict has count by shape alone; tensors that it keeps elsewhere count by their bytes."""
    structure = _Structure()
    structure.add(module)
    return structure.digest.hexdigest()


def is_own(name: str | None) -> bool:
    """Whether a Python module, by name, is the user's own: the program, a notebook, or a file that nobody installed."""
    if name == "__main__":
        return True
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return isinstance(file, str) and name not in sys.stdlib_module_names and is_users_own(file, os.sep)


@dataclass
class _Structure:
    """Goes through what a module holds, and adds each part to the digest once."""

    digest: Any = field(default_factory=hashlib.sha256)
    seen: dict[int, tuple[int, object]] = field(default_factory=dict)
    """{identity: (its number, itself)}: kept, so that no other object gets the same identity meanwhile."""
    containers: list[int] = field(default_factory=list)
    """Identities of those that are being gone through: one may hold itself. Elsewhere they have none that counts, as
    Python makes one of several equal tuples where it likes."""

    def add(self, value: Any, whole: bool = True) -> None:
        """Add a value.

        Args:
            whole: go into objects of whatever class. Without, they count by their class alone.
        """
        if isinstance(value, _PLAIN):
            self._write(type(value).__name__, repr(value))
            return
        if isinstance(value, (Mapping, list, tuple, set, frozenset, np.ndarray)):
            self._add_container(value)
            return
        if id(value) in self.seen:
            self._write("again", self.seen[id(value)][0])
            return
        self.seen[id(value)] = len(self.seen), value
        if isinstance(value, Tensor):
            self._add_tensor(value)
        elif isinstance(value, nn.Module):
            self._add_module(value)
        else:
            self._add_what_computes(value, whole)

    def _add_container(self, value: Any) -> None:
        if id(value) in self.containers:
            self._write("in itself", len(self.containers) - self.containers.index(id(value)))
            return
        self.containers.append(id(value))
        if isinstance(value, np.ndarray):
            self._write("array", value.dtype, value.shape)
            self.digest.update(np.ascontiguousarray(value).tobytes() if value.dtype != object else b"objects")
        elif isinstance(value, Mapping):
            self._write("mapping", len(value))
            self._add_all(part for item in value.items() for part in item)
        elif isinstance(value, (list, tuple)):
            self._write(type(value).__name__, len(value))
            self._add_all(value)
        else:
            # Their order is another in every process.
            self._write("set", sorted(map(repr, value)))
        self.containers.pop()

    def _add_all(self, values: Iterable[Any]) -> None:
        for value in values:
            self.add(value)

    def _add_what_computes(self, value: Any, whole: bool) -> None:
        if isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.MethodType):
            self._write("method")
            self._add_all((value.__self__, value.__func__))
        elif isinstance(value, partial):
            self._write("partial")
            self._add_all((value.func, value.args, value.keywords))
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, property):
            self._add_all((value.fget, value.fset))
        elif isinstance(value, (staticmethod, classmethod)):
            self._write(type(value).__name__)
            self.add(value.__func__)
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, Enum):
            self._write("enum", type(value).__qualname__, value.name)
        elif isinstance(value, types.ModuleType) or isinstance(getattr(value, "__qualname__", None), str):
            # A Python module, or a function that has no code in Python.
            self._write("named", getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__))
        else:
            self.add(type(value))
            if whole:
                self.add(getattr(value, "__dict__", None))

    def _add_module(self, module: nn.Module) -> None:
        self.add(type(module))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, kind).items():
                shape = None if tensor is None else tuple(tensor.shape)
                self._write(kind, name, shape)
                if tensor is not None and name in module._non_persistent_buffers_set:
                    self._add_tensor(tensor)
        for hooks in _HOOKS:
            self._add_all(getattr(module, hooks).values())
        for name, child in module._modules.items():
            self._write("part", name)
            self.add(child)
        for name, value in sorted(vars(module).items()):
            if name not in _OF_ANY_MODULE and name not in _HOOKS:
                self._write("attribute", name)
                self.add(value)

    def _add_tensor(self, tensor: Tensor) -> None:
        self._write("tensor", tensor.dtype, tuple(tensor.shape))
        if not tensor.is_meta:
            self.digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())

    def _add_class(self, cls: type) -> None:
        self._write("class", cls.__module__ if not is_own(cls.__module__) else "", cls.__qualname__)
        if not is_own(cls.__module__):
            return
        self._add_all(cls.__bases__)
        for name, value in sorted(vars(cls).items()):
            if name not in _OF_ANY_CLASS:
                self._write("member", name)
                self.add(value, whole=False)

    def _add_function(self, function: types.FunctionType) -> None:
        if not is_own(function.__module__):
            self._write("function", function.__module__, function.__qualname__)
            self._add_cells(function)
            return
        self._write("code")
        self._add_all((function.__code__, function.__defaults__, function.__kwdefaults__))
        self._add_cells(function)
        for name in _globals_of(function.__code__):
            if name in function.__globals__:
                self._write("global", name)
                self.add(function.__globals__[name], whole=False)

    def _add_cells(self, function: types.FunctionType) -> None:
        """Add what a function closes over."""
        for cell in function.__closure__ or ():
            # A cell may still be empty.
            self.add(cell.cell_contents if cell != types.CellType() else None, whole=False)

    def _add_code(self, code: types.CodeType) -> None:
        self._write("code", code.co_argcount, code.co_kwonlyargcount, code.co_varnames[: code.co_argcount])
        for operation, argument in _instructions(code):
            self._write(operation)
            self.add(argument)

    def _write(self, *words: object) -> None:
        self.digest.update(f"{' '.join(map(str, words))}\n".encode(errors="backslashreplace"))


def _globals_of(code: types.CodeType) -> list[str]:
    """Return the global names that code looks up, and functions in it, sorted."""
    own = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(own.union(*(_globals_of(one) for one in code.co_consts if isinstance(one, types.CodeType))))


def _instructions(code: types.CodeType) -> list[tuple[str, Any]]:
    """Return what code does, each step with what it is done to, whatever unit the code was compiled in.

    A function in a script and the same in a notebook's cell are not compiled alike: `torch.relu(x)` is a method's call
    where the import stands in another unit.
    """
    kept = [one for one in dis.get_instructions(code) if one.opname not in _OF_CALLING]
    place = {one.offset: number for number, one in enumerate(kept)}
    ends = sorted(place)

    def argument(one: dis.Instruction) -> Any:
        if one.opcode in dis.hasjrel or one.opcode in dis.hasjabs:
            # What is jumped to may be left out; what follows it is not.
            return next((place[offset] for offset in ends if offset >= one.argval), len(kept))
        return one.argval

    return [("LOAD_ATTR" if one.opname == "LOAD_METHOD" else one.opname, argument(one)) for one in kept]
