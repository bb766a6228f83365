"""Methods that are not the package's: added to the table by a program, or by a file that a user names."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from factpatch.methods import METHODS, STRATEGIES, Method
from factpatch.support.files import file_digest

_OWN: dict[str, str | None] = {}
"""Names of methods that this process alone knows, with the SHA-256 of the file that defines them, if one does."""


def register_method(method: Method) -> None:
    """Add a method of your own to the table: runs, reproductions, sessions and commands then know it by its name.

    What differs from the defaults of its strategies stays as it is. The rest is what the preset of a model has for all
    methods (`common`), and settings of the solver are derived, unless one of them differs. To register a name again
    replaces the method.

    Raises:
        TypeError: It is no `Method`.
        ValueError: The package has a method of that name.
    """
    _register(method, None)


def register_methods(file: str | Path) -> list[Method]:
    """Run a Python file, and register the methods among its global variables; return them.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no Python file, it fails, it holds no method or two of one name, or the package has one of
            that name.
    """
    path = Path(file)
    if path.suffix != ".py":
        raise ValueError(f"{path}: is no Python file; give one whose name ends in .py.")
    digest = file_digest(path)
    shipped = [method for name, method in METHODS.items() if name not in _OWN]
    found: dict[str, Method] = {}
    for method in vars(_run(path, digest)).values():
        if not isinstance(method, Method) or method in shipped:
            continue
        if found.setdefault(method.name, method) != method:
            raise ValueError(f"{path}: two of its methods are named {method.name!r}; give each a name of its own.")
    if not found:
        raise ValueError(f"{path}: none of its global variables is a factpatch.Method; there is nothing to register.")
    for method in found.values():
        _register(method, digest)
    return list(found.values())


def own_methods(names: Iterable[str]) -> dict[str, str | None]:
    """Those of some methods that have been registered, each with the SHA-256 of its file, None without one."""
    return {name: _OWN[name] for name in names if name in _OWN}


def own_settings(name: str) -> frozenset[str]:
    """The settings of a registered method that differ from its strategies' defaults, by dotted name.

    No preset replaces them. Empty for the methods of the package, whose numbers come from presets.
    """
    if name not in _OWN:
        return frozenset()
    strategies = {part: getattr(METHODS[name], part) for part in STRATEGIES}
    return frozenset(
        f"{part}.{field.name}"
        for part, strategy in strategies.items()
        for field in fields(strategy)
        if getattr(strategy, field.name) != _default(field)
    )


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _register(method: Method, digest: str | None) -> None:
    if not isinstance(method, Method):
        raise TypeError(f"method={method!r}: is no factpatch.Method; give one.")
    if method.name in METHODS and method.name not in _OWN:
        raise ValueError(f"method={method.name!r}: the package has a method of that name; give yours another.")
    METHODS[method.name] = method
    _OWN[method.name] = digest


def _run(path: Path, digest: str) -> ModuleType:
    """Run a file as a module whose name says what is in it: what is kept by the names of classes is then told apart."""
    name = f"own_methods.{path.stem}_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up the types of their fields
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path}: {_line(error, path)}{type(error).__name__}: {error}.") from error
    return module


def _line(error: Exception, path: Path) -> str:
    """Where in the file an error was raised, if that is known."""
    reached = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    line = error.lineno if isinstance(error, SyntaxError) else reached[-1] if reached else None
    return "" if line is None else f"line {line}: "
