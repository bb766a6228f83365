"""Records to whatever a file is read for, each error with its file and place; and the fields of records by path."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasPath, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from factpatch.data.reading import DataFileError, Unusable, json_name, read_records
from factpatch.facts import Text
from factpatch.support.validation import explained
from factpatch.support.words import counted, cut, quoted

logger = logging.getLogger(__name__)

T = TypeVar("T")
Record = Mapping[str, Any]

_TEXT: TypeAdapter[str] = TypeAdapter(Text)
_TEXTS: TypeAdapter[list[str]] = TypeAdapter(list[Text])
_TOO_DEEP = "is nested too deeply."
_LONGEST = 1500
"""The longest message about one record; its parts are cut where they are quoted."""


def _whole(record: Record) -> Sequence[Record]:
    return (record,)


def convert_records(
    path: Path,
    convert: Callable[[Record, int], T],
    limit: int | None = None,
    skip_unusable: bool = False,
    split: Callable[[Record], Sequence[Record]] = _whole,
) -> list[T]:
    """Return what `convert` makes of the records of a file, in the file's order; see `placed_records`."""
    return [made for _, made in placed_records(path, convert, limit, skip_unusable, split)]


def placed_records(
    path: Path,
    convert: Callable[[Record, int], T],
    limit: int | None = None,
    skip_unusable: bool = False,
    split: Callable[[Record], Sequence[Record]] = _whole,
) -> list[tuple[str, T]]:
    """Return what `convert` makes of the records of a file, each with its place, in the file's order.

    Args:
        path: The file; see `read_records`.
        convert: Takes a record and its number in the file, from 0; raises TypeError or ValueError if a record is not
            acceptable.
        limit: How many to return; later records are not checked. None reads all.
        skip_unusable: Skip records that are not acceptable, and log how many there were and what the first lacks.
        split: The parts of a record that holds several, each of which is converted by itself.

    Raises:
        DataFileError: The file cannot be read, no record is left, or a record is not acceptable and not skipped.
        TypeError, ValueError: `limit` is not a positive integer.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise TypeError(f"limit={limit!r}: must be a positive integer or None.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is not positive; give at least 1, or None to read all.")
    found: list[tuple[str, T]] = []
    refused: list[str] = []
    for index, place, record in _parts(path, split):
        try:
            if isinstance(record, ValueError | TypeError):
                raise record
            found.append((place, convert(record, index)))
        except (TypeError, ValueError, RecursionError) as error:
            why = _TOO_DEEP if isinstance(error, RecursionError) else cut(str(error), _LONGEST)
            if not skip_unusable:
                raise DataFileError(f"{path}: {place}: {why}") from error
            refused.append(f"{place}: {why}")
        if len(found) == limit:
            break
    if not found:
        why = f" {len(refused)} cannot be used, the first at {refused[0]}" if refused else ""
        raise DataFileError(f"{path}: holds no records; at least one is needed.{why}")
    if refused:
        skipped = (
            f"{counted(len(refused), 'record')} cannot be used and {'was' if len(refused) == 1 else 'were'} skipped"
        )
        logger.warning("%s: %s; the first: %s", path, skipped, refused[0])
    return found


def _parts(
    path: Path, split: Callable[[Record], Sequence[Record]]
) -> Iterator[tuple[int, str, Record | ValueError | TypeError]]:
    """Yield the parts of all records with the record's number and their places; or why a record has none."""
    for index, (place, record) in enumerate(read_records(path)):
        try:
            found = next(_unusable(record), None)
            if found is not None:
                raise ValueError(found.why)
            if not isinstance(record, dict):
                raise TypeError(f"{quoted(record)} is {json_name(record)}; a record must be an object.")
            parts = split(record)
        except RecursionError:
            yield index, place, ValueError(_TOO_DEEP)
        except (TypeError, ValueError) as error:
            yield index, place, error
        else:
            for number, part in enumerate(parts, start=1):
                yield index, place if len(parts) == 1 else f"{place}, part {number}", part


def _unusable(value: object) -> Iterator[Unusable]:
    if isinstance(value, Unusable):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list | Unusable):
                yield from _unusable(item)


def read_text(record: Mapping[str, Any], path: str) -> str:
    """Return the text at a dotted `path` of a record, such as `requested_rewrite.target_new.str`.

    Raises:
        TypeError: The value is not a string.
        ValueError: The path leads nowhere, or the text is blank.
    """
    return _checked(_TEXT, path, _present(record, path))


def read_texts(record: Mapping[str, Any], path: str) -> list[str]:
    """Return the list of texts at a dotted `path` of a record; raise as `read_text` does."""
    return _checked(_TEXTS, path, _present(record, path))


def read_optional_text(record: Mapping[str, Any], path: str) -> str | None:
    """Return the text at a dotted `path` of a record, or None where it is missing or null; raise as `read_text`."""
    value = _at(record, path)
    return None if value is PydanticUndefined or value is None else _checked(_TEXT, path, value)


def _at(record: Mapping[str, Any], path: str) -> Any:
    return AliasPath(*path.split(".")).search_dict_for_path(dict(record))


def _present(record: Mapping[str, Any], path: str) -> Any:
    value = _at(record, path)
    if value is PydanticUndefined:
        raise ValueError(f"missing field {path!r}.")
    return value


def _checked(kind: TypeAdapter[T], path: str, value: object) -> T:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise explained(error, at=path) from None
