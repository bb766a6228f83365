"""What others wrote, as JSON and as fields that pydantic checks; each error in one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import wraps
from typing import Any, TypeVar

from pydantic import ValidationError

from factpatch.support.words import quoted, suggestion

C = TypeVar("C", bound=Any)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_DEEPEST = 100
_LONGEST_PLACE = 200


def parsed(text: str | bytes) -> Any:
    """Return what a text of JSON says; ValueError if it is not JSON, or nested so deeply that nothing could use it."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None
    level = [found]
    for _ in range(_DEEPEST):
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return found
    raise ValueError(f"lists or objects are nested deeper than {_DEEPEST} levels")


def _items(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def explained(error: ValidationError, known: Sequence[str] = (), at: str = "") -> ValueError | TypeError:
    """Return the first error of a record in one sentence, as a TypeError if a field has the wrong type.

    Args:
        error: What pydantic found.
        known: The fields that the record may have, in order.
        at: Where it is within another one.
    """
    # A misspelled field is missing too.
    first = min(error.errors(include_url=False), key=lambda one: one["type"] not in _UNKNOWN)
    kind, reason = first["type"], first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    steps = [at, *first["loc"]] if at else list(first["loc"])
    if not steps:  # an error of the whole, whose message says it all
        return ValueError(f"{reason}.")
    if isinstance(steps[0], int) and steps[0] < len(known):  # an argument without its name
        steps[0] = known[steps[0]]
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    place = place if len(place) <= _LONGEST_PLACE else f"{place[:_LONGEST_PLACE]}..."
    holder, _, name = place.rpartition(".")
    within = f"{holder}: " if holder else ""
    if kind == "missing":
        return ValueError(f"{within}missing field {name!r}.")
    if kind in _UNKNOWN:
        return ValueError(f"{within}unknown field {quoted(name)}.{'' if holder else suggestion(name, known)}")
    return (TypeError if kind.endswith("_type") else ValueError)(f"{place}={quoted(first['input'])}: {reason}.")


def explaining(checked: C) -> C:
    """Let a dataclass of pydantic raise what `explained` says of its arguments."""
    made, names = checked.__init__, list(checked.__dataclass_fields__)

    @wraps(made)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            made(self, *args, **kwargs)
        except ValidationError as error:
            raise explained(error, names) from None

    checked.__init__ = init
    return checked
