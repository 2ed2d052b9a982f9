"""A network of a user's own: `path/to/file.py:factory`, called so that every call gives another object."""

from __future__ import annotations

import copy
import socket
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import Parameter, isclass, iscoroutine, isroutine, signature
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from exemplar_ray.errors import MachineError, UsageError, near_matches
from exemplar_ray.network.architecture import Architecture
from exemplar_ray.network.user_code import UserCode, run_file
from exemplar_ray.network.weights import one_line

Value = TypeVar("Value")

_run: dict[tuple[str, str], UserCode] = {}
"""What this process has run: {(file, factory): its code}. A file that changed since is run anew."""


def model_of_file(path: str, factory: str) -> Architecture:
    """Run a user's Python file and take a callable from it.

    Raises:
        UsageError: there is no such file, it fails, or has no such callable.
    """
    code = _run.get((path, factory))
    if code is None or not code.is_current():
        code = _run[path, factory] = _code_of(path)
    return _architecture(code, path, factory)


def _run_again(path: str, factory: str, seed: int) -> Architecture:
    """Run the file once more, with other random numbers: what it gives may depend on them."""
    try:
        return _architecture(_code_of(path, seed), path, factory)
    finally:
        _run[path, factory].name_modules()


def _code_of(path: str, seed: int = 0) -> UserCode:
    if not Path(path).is_file():
        raise MachineError(f"model file '{path}' does not exist on {socket.gethostname()}")
    return _in_one_line(partial(run_file, path, seed), f"model file '{path}'")


def _architecture(code: UserCode, path: str, factory: str) -> Architecture:
    make = getattr(code.module, factory, None)
    if isinstance(make, nn.Module):
        raise UsageError(f"'{factory}' in '{path}' is a network, not a function that makes one; make it in a function")
    if not callable(make):
        names = [name for name, value in vars(code.module).items() if callable(value) and name[0] != "_"]
        raise UsageError(f"'{path}' has no callable '{factory}'; {near_matches(factory, names)}")
    needed = _needed_arguments(make)
    if needed:
        raise UsageError(f"'{path}:{factory}' needs arguments ({', '.join(needed)}); name a callable that needs none")
    return Architecture(
        title=f"{Path(path).stem}:{factory}",
        build=partial(_network_of, code, make, f"{path}:{factory}"),
        pretrained=None,
        preprocess=None,
        source=partial(code.sha256, factory),
        run_again=partial(_run_again, path, factory),
    )


def _needed_arguments(make: Callable) -> list[str]:
    try:
        parameters = signature(make).parameters.values()
    except (TypeError, ValueError):
        # Some callables do not say.
        return []
    many = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is Parameter.empty and one.kind not in many]


def _network_of(code: UserCode, make: Callable[[], Any], name: str) -> nn.Module:
    """Call a factory. What it returns is loaded into and moved to a device, so it must be nobody else's.

    A factory may hand out one network each time, so what it gives is copied. A network that cannot be copied is taken
    as it is, if another call gives another.
    """
    call = partial(_in_one_line, partial(code.call, make), f"'{name}()'")
    module = call()
    if not isinstance(module, nn.Module):
        raise UsageError(f"'{name}()' returned {_kind(module)}")
    try:
        copied = copy.deepcopy(module)
    except Exception as error:  # whatever a part of it raises
        why = one_line(error)
    else:
        if not _leads_back(copied, module):
            return copied
        why = "functions in it belong to the one that they were made with"
    if _objects(module) & _objects(call()):
        raise UsageError(
            f"'{name}()' hands out one network each time, and that cannot be copied ({why}); "
            "make a new one in each call"
        )
    return module


def _objects(module: nn.Module) -> set[int]:
    return {id(one) for one in chain(module.modules(), module.parameters(), module.buffers())}


def _leads_back(copied: nn.Module, original: nn.Module) -> bool:
    """Whether a copy still computes with parts of the original: a function is not copied, nor what it closes over."""
    originals = _objects(original)
    waiting: list[Any] = [vars(module) for module in copied.modules()]
    seen = set()
    while waiting:
        value = waiting.pop()
        if id(value) in originals:
            return True
        if id(value) not in seen:
            seen.add(id(value))
            waiting.extend(_held(value))
    return False


def _held(value: object) -> Iterator[Any]:
    """Yield what a container or a function holds."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value
    elif isinstance(value, types.FunctionType):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        # A cell may still be empty.
        yield from (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)


def _kind(value: object) -> str:
    """Say what a factory returned in place of a network, and what to return."""
    if value is None:
        return "nothing, not a torch.nn.Module; does it lack a return?"
    if isclass(value):
        return f"the class {value.__name__}, not a torch.nn.Module; return one of its objects"
    if isroutine(value):
        return "a function, not a torch.nn.Module; return what it makes"
    if iscoroutine(value):
        value.close()
        return "a coroutine, not a torch.nn.Module; it must not be async"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}, not a torch.nn.Module; return the network alone"
    if isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values()):
        return "a state dict, not a torch.nn.Module; return the network that it is loaded into"
    return f"a {type(value).__name__}, not a torch.nn.Module; return the network alone"


def _in_one_line(function: Callable[[], Value], what: str) -> Value:
    """Run a user's code; whatever it raises becomes one line."""
    try:
        return function()
    except (UsageError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise UsageError(
            f"{what} ends the program (SystemExit: {error.code}); do that under `if __name__ == '__main__':`"
        ) from error
    except BaseException as error:  # a user's file may raise anything
        text = one_line(error)
        message = type(error).__name__ + (f": {text}" if text != type(error).__name__ else "")
        raise UsageError(f"{what} fails: {message}{_place_of(error)}{_hint(error)}") from error


def _place_of(error: BaseException) -> str:
    """Say where in a user's file an error was raised; a syntax error says it itself."""
    if isinstance(error, SyntaxError):
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not frame.filename.startswith(("<", str(Path(__file__).parents[1])))]
    return f" ({Path(users[-1].filename).name}, line {users[-1].lineno})" if users else ""


def _hint(error: BaseException) -> str:
    if isinstance(error, ImportError) and "no known parent package" in str(error):
        return "; put an `__init__.py` into its folder, or import the files beside it without the dot"
    return ""
