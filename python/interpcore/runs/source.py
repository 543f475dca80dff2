"""What a function computes, as far as the text of its module says it: one text, one hash."""

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from types import CodeType
from typing import Any

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None))


def source_hash(function: Callable[..., Any]) -> str | None:
    """Hash of a function's source text (of what a partial calls), and of what it names in its own module:
    functions, classes and constants, and what these name. None where there is no text to read.
    """
    while isinstance(function, partial):
        function = function.func
    return _hash(function) if inspect.isfunction(function) else None


@lru_cache(maxsize=256)
def own_source(thing: Any) -> str | None:
    """The text of a function or class, None where there is none; it stays when its file is edited later."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return None


@lru_cache(maxsize=256)
def _hash(function: Callable[..., Any]) -> str | None:
    text = own_source(function)
    if text is None:
        return None
    relied: dict[str, str] = {}
    _follow(function, function.__globals__, relied)
    relied.pop(function.__qualname__, None)
    parts = [text, *(f"{name} = {relied[name]}" for name in sorted(relied))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _follow(thing: Any, module: dict[str, Any], relied: dict[str, str]) -> None:
    """Add what a function or class names of its module, by name, and what that names."""
    for name in sorted(_names(thing)):
        value = inspect.unwrap(found) if callable(found := module.get(name)) else found
        if name in relied or name not in module:
            continue
        if _is_constant(value):
            relied[name] = repr(value)
        elif getattr(value, "__module__", None) == thing.__module__ and (text := own_source(value)):
            relied[name] = text
            _follow(value, module, relied)


def _names(thing: Any) -> set[str]:
    """Names in the text of a function or class: in its body, decorators, defaults, bases and annotations; in
    the code alone where the text does not stand alone (a lambda within a line)."""
    try:
        tree = ast.parse(textwrap.dedent(own_source(thing) or ""))
    except SyntaxError:
        return set(_names_in(thing.__code__))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names_in(inner)


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_constant(each) for each in value)
    return type(value) in _CONSTANTS
