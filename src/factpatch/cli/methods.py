"""`factpatch methods`: the table of methods, and the settings of their strategies."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields
from itertools import pairwise
from typing import Annotated, Any

import typer

from factpatch.cli import options, render


@options.documented
def methods(
    settings: Annotated[bool, typer.Option("--settings")] = False,
) -> None:
    """List the methods: the four strategies that make up each, and its source; then the rivals.

    Rivals are no editing methods: `factpatch run` and `factpatch reproduce` take them by name, to compare with.

    Args:
        settings: Also list the settings of every strategy and of every rival, with their defaults.
    """
    from factpatch.lab.rivals.rival import RIVALS, setting_names
    from factpatch.methods import METHODS, STRATEGIES

    rows = (
        (method.name, *(type(getattr(method, part)).__name__ for part in STRATEGIES), method.source)
        for method in METHODS.values()
    )
    made = render.table("method", *STRATEGIES, "source", rows=rows)
    made.columns[0].no_wrap = True
    render.screen.print(made)
    rivals = ((rival.name, rival.summary, rival.source) for rival in RIVALS.values())
    shown = render.table("rival, for runs only", "what it does", "source", rows=rivals)
    shown.columns[0].no_wrap = True
    render.screen.print(shown)
    if not settings:
        return
    listed = render.table("strategy", "setting", "default", "meaning")
    listed.columns[1].no_wrap = True
    for part in STRATEGIES:
        for member in dict.fromkeys(type(getattr(method, part)) for method in METHODS.values()):
            meanings = field_meanings(member)
            for field in fields(member):
                setting, meaning = f"{part}.{field.name}", meanings.get(field.name, "")
                listed.add_row(member.__name__, setting, str(field.default), meaning)
    for rival in RIVALS.values():
        meanings = field_meanings(type(rival))
        for name in setting_names(rival):
            listed.add_row(rival.name, name, str(getattr(rival, name)), meanings[name])
    render.screen.print(listed)
    render.say("The preset of a model may change them; the report of an edit lists all values that were used.")


def field_meanings(member: type[Any]) -> dict[str, str]:
    """The docstring of each field of a dataclass and its bases, by the field's name."""
    found: dict[str, str] = {}
    for base in reversed(member.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, line in pairwise(body.body):
            match field, line:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
