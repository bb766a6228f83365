"""Settings by dotted name: a strategy and one of its fields, as `solver.weight=5000`.

Types decide, unknown names are errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from factpatch.methods import Method
from factpatch.suggestions import suggestion

STRATEGIES = ("target", "spread", "solver", "regularizer")


def with_settings(method: Method, settings: Mapping[str, Any]) -> Method:
    """Return the method with some fields of its strategies replaced.

    Args:
        settings: values by dotted name; text is read as the field's type, so `1e-1` is a number.

    Raises:
        ValueError: an unknown strategy or field (with a suggestion), or a value of the wrong type or range.
    """
    for name, value in settings.items():
        part, _, field = name.partition(".")
        if part not in STRATEGIES or not field:
            raise ValueError(f"setting {name!r}: write it as strategy.field.{suggestion(part, STRATEGIES)}")
        strategy = getattr(method, part)
        known = [member.name for member in fields(strategy)]
        if field not in known:
            raise ValueError(
                f"setting {name!r}: the {part} of {method.name} is {type(strategy).__name__}, which has no field "
                f"{field!r}.{suggestion(field, known)}"
            )
        kind = get_type_hints(type(strategy))[field]
        try:
            converted = TypeAdapter(kind).validate_python(value)
            method = replace(method, **{part: replace(strategy, **{field: converted})})
        except ValidationError as error:
            raise ValueError(f"setting {name}={value!r}: {error.errors()[0]['msg']}.") from None
        except ValueError as error:
            raise ValueError(f"setting {name}={value!r}: {error}") from None
    return method


def has_setting(method: Method, name: str) -> bool:
    """Whether a strategy of the method has the field that a dotted name means."""
    part, _, field = name.partition(".")
    return part in STRATEGIES and field in {member.name for member in fields(getattr(method, part))}


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """Turn `["solver.weight=5000"]` into a dictionary.

    Raises:
        ValueError: an assignment without `=`.
    """
    settings = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"setting {assignment!r}: write it as strategy.field=value.")
        settings[name.strip()] = value.strip()
    return settings


def settings_of(method: Method) -> dict[str, Any]:
    """The resolved settings of a method as JSON-able data: every strategy with its class and fields."""
    return {
        "method": method.name,
        "source": method.source,
        **{
            part: {"class": type(getattr(method, part)).__name__, **asdict(getattr(method, part))}
            for part in STRATEGIES
        },
    }


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Name the settings that differ, and show the first; None if all are the same."""
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if not names:
        return None
    first = names[0]
    return f"{', '.join(names)}; {first} is {there.get(first)!r} there and {here.get(first)!r} here"
