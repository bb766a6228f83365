"""Our own record format, and how the converters of all formats read the fields of a record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from factpatch.facts import Fact

# Any of these marks a record as ours; a record that lacks or misspells some of them is then told so by name.
_OWN_FIELDS = frozenset({"prompt", "subject", "target_new"})


def is_own(record: Mapping[str, Any]) -> bool:
    """Say whether a record is meant to be in our own format. Ask after the published formats, which share names."""
    return not _OWN_FIELDS.isdisjoint(record)


def fact_from_own(record: Mapping[str, Any], index: int) -> Fact:
    """Return the fact of a record in our own format: the fields of `Fact`, by their names.

    A neighbor is an object with `prompt` and `target_true`, or a plain prompt, whose answer is then the fact's own
    `target_true`. `index`, the record's place in its file, is not used.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing, unknown or not acceptable to `Fact`, or a plain neighbor has no answer.
    """
    neighbors = record.get("neighbors")
    if not isinstance(neighbors, list):
        return Fact.from_dict(record)
    target_true = record.get("target_true")
    expanded: list[object] = []
    for i, neighbor in enumerate(neighbors):
        if not isinstance(neighbor, str):
            expanded.append(neighbor)
        elif target_true is None:
            raise ValueError(
                f"neighbors[{i}]={neighbor!r} is a plain prompt, which takes the fact's target_true, but the record "
                'has none; add target_true, or write {"prompt": ..., "target_true": ...}.'
            )
        else:
            expanded.append({"prompt": neighbor, "target_true": target_true})
    return Fact.from_dict({**record, "neighbors": expanded})


def read_text(record: Mapping[str, Any], path: str) -> str:
    """Return the string at a dotted `path` of a record, such as `requested_rewrite.target_new.str`.

    Raises:
        TypeError: The value is not a string, or a part of the path does not lead to an object.
        ValueError: A part of the path is missing, or the text is blank.
    """
    return _require_text(path, _read(record, path))


def read_optional_text(record: Mapping[str, Any], path: str) -> str | None:
    """Return the string at a dotted `path` of a record, or None where the last part of the path is missing or null.

    Raises:
        TypeError: The value is not a string, or a part of the path does not lead to an object.
        ValueError: Another part of the path is missing, or the text is blank.
    """
    *folder, name = path.split(".")
    holder = _read(record, ".".join(folder)) if folder else record
    if isinstance(holder, Mapping) and holder.get(name) is None:
        return None
    return read_text(record, path)


def prompt_around(record: Mapping[str, Any], text: str, subject: str) -> tuple[str, str]:
    """Return a complete text with `{}` in place of the subject, and the subject as the text spells it.

    The subject is looked for spelled alike before otherwise cased, and as whole words before parts of them; the first
    place counts. Filled with the returned subject, the prompt is the text to the letter.

    Args:
        record: A record of a published file.
        text: The field with the text.
        subject: The field with the subject.

    Raises:
        TypeError: A field is not a string.
        ValueError: A field is missing or blank, or the text does not contain the subject.
    """
    whole, name = read_text(record, text), read_text(record, subject).strip()
    part = re.escape(name)
    for flags in (0, re.IGNORECASE):
        for pattern in (rf"(?<!\w){part}(?!\w)", part):
            match = re.search(pattern, whole, flags)
            if match:
                start, end = match.span()
                return whole[:start] + "{}" + whole[end:], whole[start:end]
    raise ValueError(f"field {text!r} is {whole!r}; it does not contain the subject {name!r}, in any case.")


def read_texts(record: Mapping[str, Any], path: str) -> list[str]:
    """Return the list of strings at a dotted `path` of a record.

    Raises:
        TypeError: The value is not a list, one of its items is not a string, or the path meets something else.
        ValueError: A part of the path is missing, or one of the texts is blank.
    """
    values = _read(record, path)
    if not isinstance(values, list):
        raise TypeError(f"field {path!r} is {values!r}; it must be a list of strings.")
    return [_require_text(f"{path}[{i}]", value) for i, value in enumerate(values)]


def _read(record: Mapping[str, Any], path: str) -> Any:
    value: Any = record
    names = path.split(".")
    for depth, name in enumerate(names):
        if not isinstance(value, Mapping):
            raise TypeError(f"field {'.'.join(names[:depth])!r} is {value!r}; it must be an object with {name!r}.")
        if name not in value:
            raise ValueError(f"missing field {'.'.join(names[: depth + 1])!r}.")
        value = value[name]
    return value


def _require_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"field {name!r} is {value!r}; it must be a string.")
    if not value.strip():
        raise ValueError(f"field {name!r} is {value!r}; it must not be blank.")
    return value
