"""The house stays small: a file can be read in one sitting, a function at one look; every package says what it is."""

import ast
import tomllib
from collections import Counter

import pytest
from conftest import PROJECT

PACKAGE = PROJECT / "exemplar_ray"
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 7
# "file:function" -> why it may have more.
EXCEPTIONS: dict[str, str] = {}

FILES = sorted(PACKAGE.rglob("*.py"))


def functions(file):
    """Every function and method of a file."""
    tree = ast.parse(file.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def parameters(function):
    arguments = function.args
    everything = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [one.arg for one in everything if one.arg not in ("self", "cls")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_and_its_functions_are_short(file):
    assert len(file.read_text().splitlines()) <= MOST_LINES_OF_A_FILE
    for function in functions(file):
        if f"{file.relative_to(PACKAGE)}:{function.name}" in EXCEPTIONS:
            continue
        assert function.end_lineno - function.lineno < MOST_LINES_OF_A_FUNCTION, function.name
        assert len(parameters(function)) <= MOST_PARAMETERS, function.name


def test_every_module_says_what_it_is_for():
    assert not [file for file in FILES if not ast.get_docstring(ast.parse(file.read_text()))]


def test_every_key_is_declared_once():
    from exemplar_ray.executor.resources import Resources
    from exemplar_ray.exemplars.spec import RunOptions, RunSpec
    from exemplar_ray.keys import keys_of

    names = Counter(name for cls in (RunSpec, RunOptions, Resources) for name in keys_of(cls))
    assert max(names.values()) == 1


def test_the_rules_name_every_folder():
    """A new folder of the package has a place in the house's layers."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {name for layer in contracts[0]["layers"] for name in layer.split(" | ")}
    folders = {f"exemplar_ray.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= layers
