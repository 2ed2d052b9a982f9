"""Running a user's Python file as `python file.py` would, without a trace of it in what else this process does.

While the file runs, what lies beside it can be imported, and comes before installed modules of the same name. Modules
of the user's own are read afresh, and their contents noted: they decide the network as the file itself does. Afterwards
the search path, the random generators and torch's defaults are what they were.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import random
import re
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from exemplar_ray.errors import UsageError
from exemplar_ray.storage.transient import patiently

Value = TypeVar("Value")

# What this package computes with is what a user's file gets by that name, whatever lies beside it.
_LIBRARIES = {"PIL", "exemplar_ray", "lucent", "numpy", "pyarrow", "ray", "torch", "torchvision"}
_PYTHONS = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
_INSTALLED = {"site-packages", "dist-packages"}
_PACKAGE = Path(__file__).resolve().parents[1]
# What the names of users' files begin with, as modules.
_NAME = "exemplar_ray_user_"

_running = threading.RLock()


@dataclass
class UserCode:
    """A user's file that was run, and what it imported of the user's own."""

    file: Path
    content: bytes
    module: types.ModuleType
    folders: tuple[str, ...]
    """Where modules are looked for first: the file's folder, and that of the package that it is in."""
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    """{module: its file, the SHA-256 of what was run}"""
    modules: dict[str, types.ModuleType] = field(default_factory=dict)
    """Those modules."""
    path_entries: tuple[str, ...] = ()
    """What the file itself put on the search path."""
    working_folder: str | None = None
    """Where the file went, if it was run."""

    def is_current(self) -> bool:
        """Whether the files on disk are what was run."""
        try:
            files_are = all(_sha256(Path(file).read_bytes()) == was for file, was in self.imported.values())
            return files_are and self.file.read_bytes() == self.content
        except OSError:
            return False

    def sha256(self, factory: str) -> str:
        """Return the SHA-256 (hex) of the file, the factory's name, and what was imported of the user's own."""
        digest = hashlib.sha256(self.content + f":{factory}".encode())
        for name, (_, of_file) in sorted(self.imported.items()):
            digest.update(f"\n{name} {of_file}".encode())
        return digest.hexdigest()

    def call(self, function: Callable[[], Value]) -> Value:
        """Call what the file defines, in the surroundings that it was run in."""
        with _surroundings(self):
            return function()

    def name_modules(self) -> None:
        """Give its modules their names back, which the same file, run again, has taken."""
        sys.modules.update({**self.modules, self.module.__name__: self.module})


def run_file(path: str, seed: int) -> UserCode:
    """Run a file. Its module stays in `sys.modules`, under a name that no other has.

    Args:
        seed: of every random generator while it runs.

    Raises:
        OSError: it cannot be read.
        BaseException: whatever it raises.
    """
    file = Path(os.path.abspath(path))
    content = patiently(file.read_bytes)
    package, root = _package_of(file)
    name = re.sub(r"\W", "_", file.stem)
    module = types.ModuleType(f"{_NAME}{name}_{_sha256(os.fsencode(file))[:12]}")
    # As a script: it has a package if it lies in one, so that `from .blocks import ...` works.
    module.__file__, module.__package__ = str(file), package
    code = UserCode(file, content, module, tuple(dict.fromkeys((str(file.parent), root))))
    sys.modules[module.__name__] = module
    try:
        with generators(seed), _surroundings(code):
            exec(_compiled(content, file, code.folders), vars(module))
    except BaseException:
        sys.modules.pop(module.__name__, None)
        raise
    return code


def _package_of(file: Path) -> tuple[str, str]:
    """Return the package that a file lies in ('' for none), and the folder that has that package."""
    folder, names = file.parent, []
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        names.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(names)), str(folder if names else file.parent)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _compiled(content: bytes, file: str | Path, folders: Sequence[str]) -> types.CodeType:
    """Compile a source, unless an import in it may mean two modules."""
    tree = ast.parse(content, str(file))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in {name.partition(".")[0] for name in names}:
            pythons = name in sys.stdlib_module_names and name not in sys.builtin_module_names
            beside = [found for folder in folders for found in (f"{folder}/{name}.py", f"{folder}/{name}/__init__.py")]
            mine = next(filter(os.path.isfile, beside), None)
            if pythons and mine:
                raise UsageError(
                    f"'{file}' imports '{name}', which is a module of Python's and also '{mine}'; rename that"
                )
    return compile(tree, str(file), "exec", dont_inherit=True)


# Imports ---------------------------------------------------------------------------------


def is_users_own(file: str, folder: str) -> bool:
    """Whether a module's file is the user's own: neither Python's, nor installed, nor of this package.

    What lies beside a file that is itself installed is the user's.
    """
    if _INSTALLED & set(Path(file).parts) and not _INSTALLED & set(Path(folder).parts):
        return False
    path, beside = Path(file).resolve(), Path(folder).resolve()
    if path.is_relative_to(_PACKAGE):
        return False
    parts = path.relative_to(beside).parts if path.is_relative_to(beside) else path.parts
    if _INSTALLED & set(parts):
        return False
    return not any(path.is_relative_to(python) and not beside.is_relative_to(python) for python in _PYTHONS)


class _OwnModules(MetaPathFinder):
    """Finds the user's modules: those beside the file first, others where Python would find them."""

    def __init__(self, code: UserCode) -> None:
        self._code = code

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module of the user's own, None for all others."""
        top = fullname.partition(".")[0]
        if top in _LIBRARIES or top in sys.stdlib_module_names:
            return None
        places = [self._code.folders, None] if path is None else [path]
        for place in places:
            spec = PathFinder.find_spec(fullname, place)
            if spec is None or spec.loader is None or spec.origin is None:
                continue
            if place is self._code.folders or is_users_own(spec.origin, self._code.folders[0]):
                if isinstance(spec.loader, SourceFileLoader):
                    spec.loader = _OwnLoader(self._code, spec.name, spec.origin)
                elif os.path.isfile(spec.origin):
                    self._code.imported[fullname] = (spec.origin, _sha256(Path(spec.origin).read_bytes()))
                return spec
            return None
        return None


class _OwnLoader(SourceFileLoader):
    """Runs a module of the user's own from its source, never from compiled code of another time, and notes it."""

    def __init__(self, code: UserCode, name: str, path: str) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> types.CodeType:
        """Compile the source."""
        content = self.get_data(self.path)
        self._code.imported[fullname] = (self.path, _sha256(content))
        return _compiled(content, self.path, self._code.folders)


def _gives_way(name: str, module: types.ModuleType | None, code: UserCode, beside: set[str]) -> bool:
    """Whether what another imported by this name must not be taken for what the file means by it."""
    top = name.partition(".")[0]
    if top in _LIBRARIES or top in sys.stdlib_module_names or top == "__main__" or top.startswith(_NAME):
        return False
    if top in beside:
        return True
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", None) or []), None)
    return isinstance(file, str) and is_users_own(file, code.folders[0])


def _modules_in(folders: Iterable[str]) -> set[str]:
    """Return the names of the modules and packages in some folders."""
    found = set()
    for folder in folders:
        for entry in os.scandir(folder):
            name, suffix = os.path.splitext(entry.name)
            if suffix == ".py" or (not suffix and os.path.isfile(os.path.join(entry.path, "__init__.py"))):
                found.add(name)
    return found


@contextmanager
def _own_modules(code: UserCode) -> Iterator[None]:
    """While inside, the user's modules are this file's: none that something else imported before."""
    beside = _modules_in(code.folders)
    taken = {name: module for name, module in list(sys.modules.items()) if _gives_way(name, module, code, beside)}
    for name in taken:
        del sys.modules[name]
    sys.modules.update(code.modules)
    finder, path = _OwnModules(code), list(sys.path)
    sys.meta_path.insert(0, finder)
    sys.path[:] = [*code.path_entries, *path, *code.folders]
    during = list(sys.path)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        code.path_entries += tuple(entry for entry in sys.path if entry not in during)
        sys.path[:] = path
        sys.meta_path.remove(finder)
        code.modules = {name: sys.modules[name] for name in code.imported if name in sys.modules}
        for name, module in taken.items():
            # Of two users' files with a module of one name, the one that ran last has it.
            if name not in code.modules or not isinstance(getattr(module, "__loader__", None), _OwnLoader):
                sys.modules[name] = module


# What else a file finds and leaves behind --------------------------------------------------


class _Arguments(list):
    """`sys.argv` while a user's file runs: the file's name, and no arguments.

    A parser that asks for them is refused: it would take its defaults, which nobody asked for.
    """

    def __getitem__(self, index: Any) -> Any:
        caller = sys._getframe(1).f_code.co_filename
        if isinstance(index, slice) and index.start and not _INSTALLED & set(Path(caller).parts):
            raise UsageError(
                f"model file '{self[0]}' reads the command line's arguments where it is imported, and there are none "
                "for it; do that under `if __name__ == '__main__':`"
            )
        return super().__getitem__(index)


@contextmanager
def _surroundings(code: UserCode) -> Iterator[None]:
    """While inside, this process is as a user's file finds it when it is run alone; afterwards, what it was.

    What the file prints goes to the standard error.
    """
    with _running, _own_modules(code), _torchs_defaults(), redirect_stdout(sys.stderr):
        argv, folder = sys.argv, os.getcwd()
        sys.argv = _Arguments([str(code.file)])
        os.chdir(code.working_folder or folder)
        try:
            yield
        finally:
            code.working_folder = None if os.getcwd() == folder else os.getcwd()
            os.chdir(folder)
            sys.argv = argv


@contextmanager
def generators(seed: int) -> Iterator[None]:
    """Seed the random generators of torch, numpy and Python; afterwards they are what they were."""
    numpys, pythons = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)


@contextmanager
def _torchs_defaults() -> Iterator[None]:
    """Give torch's defaults back as they were."""
    dtype, device, threads = torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
