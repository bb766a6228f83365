"""`factpatch methods`: the table of methods, and the settings of their strategies."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Annotated, Any

import typer

from factpatch.cli import options, render


@options.documented
def methods(
    settings: Annotated[bool, typer.Option("--settings")] = False,
) -> None:
    """List the methods: the four strategies that each consists of, and its source.

    Args:
        settings: Also list the settings of every strategy, with their defaults.
    """
    from dataclasses import fields

    from factpatch.methods import METHODS, STRATEGIES

    made = render.table("method", *STRATEGIES, "source")
    made.columns[0].no_wrap = True
    for method in METHODS.values():
        strategies = [type(getattr(method, part)).__name__ for part in STRATEGIES]
        made.add_row(method.name, *strategies, method.source)
    render.screen.print(made)
    if not settings:
        return
    listed = render.table("strategy", "setting", "default", "meaning")
    listed.columns[1].no_wrap = True
    for part in STRATEGIES:
        for member in dict.fromkeys(type(getattr(method, part)) for method in METHODS.values()):
            meanings = field_meanings(member)
            for field in fields(member):
                listed.add_row(
                    member.__name__, f"{part}.{field.name}", str(field.default), meanings.get(field.name, "")
                )
    render.screen.print(listed)
    render.say("The preset of a model may set others; the report of an edit holds all that were used.")


def field_meanings(member: type[Any]) -> dict[str, str]:
    """The line under each field of a dataclass, by the field's name; those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(member.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, line in zip(body.body, body.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if (
                isinstance(line, ast.Expr)
                and isinstance(line.value, ast.Constant)
                and isinstance(line.value.value, str)
            ):
                found[field.target.id] = " ".join(line.value.value.split())
    return found
