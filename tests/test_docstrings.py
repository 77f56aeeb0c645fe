"""
Public names have docstrings that say what they take, give and raise: shapes of tensors, units of numbers, errors by class.

Public is what the API reference shows: ``sb3_pathwise.__all__`` and the modules that ``docs/api`` names.
"""

import ast
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import sb3_pathwise
from sb3_pathwise import critics, routes

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    {
        module
        for page in (ROOT / "docs" / "api").glob("*.md")
        for module in re.findall(r"automodule:: (sb3_pathwise[\w.]*)", page.read_text())
    }
)
# What tells the shape of a tensor, in the text on it
SHAPE = re.compile(r"shape|\([nBd][^)]*\)|\(\)|scalar|batch size|one number|rows", re.IGNORECASE)
TENSOR = re.compile(r"\b(th\.Tensor|Tensor|np\.ndarray)\b")
# Numbers that count something, and what
UNITS = {
    "every": "steps",
    "buffer_size": "transitions",
    "learning_starts": "steps",
    "keep": "checkpoints",
    "max_bytes": "bytes",
}


def public() -> Iterator[tuple[str, Any]]:
    """:return: public names of the package, with what they are"""
    for name in sb3_pathwise.__all__:
        if callable(getattr(sb3_pathwise, name)):
            yield f"sb3_pathwise.{name}", getattr(sb3_pathwise, name)
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        assert module.__doc__, module_name
        for name, value in vars(module).items():
            is_ours = (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module_name
            if is_ours and not name.startswith("_"):
                yield f"{module_name}.{name}", value


def functions() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """:return: public functions and methods, with the docstring that speaks of them: a constructor's is the class's"""
    for name, value in public():
        if inspect.isfunction(value):
            yield name, value, inspect.getdoc(value) or ""
            continue
        for method_name, method in vars(value).items():
            method = getattr(method, "__func__", getattr(method, "fget", getattr(method, "func", method)))
            if method_name == "__init__" and is_dataclass(value):
                continue  # A dataclass makes it; its class has the parameters
            if not inspect.isfunction(method) or method.__module__ != value.__module__:
                continue
            if method_name == "__init__":
                yield name, method, inspect.getdoc(value) or ""
            elif not method_name.startswith("_") and (method.__doc__ or not overrides_foreign(value, method_name)):
                # What overrides a method of ours may leave it to that to say what it does
                yield f"{name}.{method_name}", method, inspect.getdoc(getattr(value, method_name)) or ""


def overrides_foreign(cls: type, name: str) -> bool:
    """:return: whether a method is SB3's, torch's or Gymnasium's, done otherwise"""
    return any(name in vars(base) for base in cls.__mro__ if not base.__module__.startswith("sb3_pathwise"))


# Their docstrings say what they are
PROPERTIES = {
    f"{name}.{member}"
    for name, value in public()
    if inspect.isclass(value)
    for member, found in vars(value).items()
    if isinstance(found, (property, functools.cached_property))
}
FUNCTIONS = {name: (function, text) for name, function, text in functions()}


def fields(docstring: str, kind: str) -> dict[str, str]:
    """
    :param docstring: A docstring
    :param kind: "param", "raises" or "return"
    :return: what it says of each, by name
    """
    found = re.findall(rf"^\s*:{kind}s? ?([\w*.]*):(.*?)(?=^\s*:\w+|\n\n|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def test_there_is_something_to_test() -> None:
    assert len(MODULES) > 10 and len(FUNCTIONS) > 60


@pytest.mark.parametrize("name, value", list(public()), ids=[name for name, _ in public()])
def test_docstring(name: str, value: Any) -> None:
    assert value.__doc__ and len(value.__doc__.split()) > 5


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters(name: str) -> None:
    function, docstring = FUNCTIONS[name]
    assert docstring, "no docstring"
    signature = inspect.signature(function, eval_str=False)
    said = fields(docstring, "param")
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls") or parameter.name.startswith("_"):
            continue
        assert parameter.name in said, f":param {parameter.name}: is missing"
        assert said[parameter.name], f":param {parameter.name}: says nothing"
        annotation = str(parameter.annotation)
        if TENSOR.search(annotation) and "Callable" not in annotation:
            assert SHAPE.search(said[parameter.name]), f":param {parameter.name}: has no shape"
        if parameter.name in UNITS:
            assert UNITS[parameter.name] in said[parameter.name].lower(), f":param {parameter.name}: has no unit"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_returned(name: str) -> None:
    function, docstring = FUNCTIONS[name]
    annotation = str(inspect.signature(function).return_annotation)
    if function.__name__ == "__init__" or annotation in ("None", "<class 'inspect._empty'>"):
        return
    said = fields(docstring, "return").get("")
    assert said or name in PROPERTIES, ":return: is missing"
    if said and TENSOR.search(annotation) and "Callable" not in annotation:
        assert SHAPE.search(said), ":return: has no shape"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_raised(name: str) -> None:
    """Errors that the function itself raises; what it calls may raise others, of which the classes' docstrings speak."""
    function, docstring = FUNCTIONS[name]
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = {
        ast.unparse(node.exc.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func)[0].isupper()
    }
    said = set(fields(docstring, "raises"))
    assert raised <= said, f":raises {', '.join(raised - said)}: is missing"


def test_sources_are_named() -> None:
    """Estimators, algorithms and critics come from somewhere, and say from where: by a year, or by a link."""
    for name in ("pathwise", "likelihood_ratio", "measure_valued", "mixed"):
        assert re.search(r"\b(19|20)\d\d\b|https?://", getattr(routes, name).__doc__), name
    for name in ("PathwiseAC", "LikelihoodRatioAC", "MeasureValuedAC", "MixedAC"):
        assert "https://" in getattr(sb3_pathwise, name).__doc__, name
    for critic in critics.CRITICS.values():
        assert "https://" in (inspect.getmodule(critic).__doc__ or ""), critic
