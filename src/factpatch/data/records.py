"""Read the records of JSON, JSON Lines and CSV files, each with its place, and the fields of records by path."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AliasPath, TypeAdapter, ValidationError
from pydantic_core import PydanticUndefined

from factpatch.facts import Text
from factpatch.support.validation import explained
from factpatch.support.words import suggestion

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TEXT: TypeAdapter[str] = TypeAdapter(Text)
_TEXTS: TypeAdapter[list[str]] = TypeAdapter(list[Text])
_CSV_REQUIRED = ("prompt", "subject", "target_new")
_CSV_JSON = ("paraphrases", "neighbors", "generation_prompts")
_CSV_COLUMNS = (*_CSV_REQUIRED, "target_true", "id", *_CSV_JSON, "relation_id", "target_new_id", "space")


class DataFileError(ValueError):
    """A file of facts, or of texts about them, cannot be read or written; the message names the file and the place."""


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """Yield every record of a file with its place in it, such as "record 3" or "line 4".

    Reads `.json` (a list of records, or an object with the list under "facts"), `.jsonl` (one record per line) and
    `.csv` (a header, then one record per row). Raises DataFileError where it cannot.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataFileError(f"{path}: unknown extension {path.suffix!r}; known: {', '.join(_READERS)}.")
    yield from reader(path, _read_text(path))


def convert_records(
    path: Path, convert: Callable[[Mapping[str, Any], int], T], limit: int | None = None, skip_unusable: bool = False
) -> list[T]:
    """Return what `convert` makes of the records of a file and their places in it, from 0, in the file's order.

    Args:
        path: The file; see `read_records`.
        convert: Raises TypeError or ValueError if a record is not acceptable.
        limit: How many to return; later records are not checked. None reads all.
        skip_unusable: Skip records that are not acceptable, and log how many there were and what the first lacks.

    Raises:
        DataFileError: The file cannot be read, no record is left, or a record is not acceptable and not skipped.
        TypeError, ValueError: `limit` is not a positive integer.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
        raise TypeError(f"limit={limit!r}: must be a positive integer or None.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is not positive; give at least 1, or None to read all.")
    found: list[T] = []
    refused: list[str] = []
    for index, (place, record) in enumerate(read_records(path)):
        try:
            if not isinstance(record, dict):
                raise TypeError(f"{record!r} is {_json_name(record)}; a record must be an object.")
            found.append(convert(record, index))
        except (TypeError, ValueError) as error:
            if not skip_unusable:
                raise DataFileError(f"{path}: {place}: {error}") from error
            refused.append(f"{place}: {error}")
        if len(found) == limit:
            break
    if not found:
        why = f" {len(refused)} cannot be used, the first at {refused[0]}" if refused else ""
        raise DataFileError(f"{path}: holds no records; at least one is needed.{why}")
    if refused:
        logger.warning("%s: %d records cannot be used and were skipped; the first: %s", path, len(refused), refused[0])
    return found


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig also reads files without a byte order mark. Spreadsheets write one, and it would spoil the first
        # column's name. newline="" leaves line ends inside quoted CSV cells alone.
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise DataFileError(f"{path}: no such file.") from error
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not text.strip():
        raise DataFileError(f"{path}: the file is empty.")
    return text


def _json(place: object, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise DataFileError(f"{place}: not JSON: {error.msg} at {line}column {error.colno}.") from error


def _json_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    data = _json(path, text)
    name = "the top level"
    if isinstance(data, dict) and "facts" in data:
        name, data = 'field "facts"', data["facts"]
    if not isinstance(data, list):
        raise DataFileError(
            f"{path}: {name} is {_json_name(data)}; it must be a list of records, or an object with such a list under "
            '"facts".'
        )
    for index, record in enumerate(data):
        yield f"record {index}", record


def _jsonl_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    # Not splitlines(): it also breaks at characters such as U+2028, which JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _json(f"{path}: line {number}", line)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, each with its place."""
    # strict turns a stray quote into an error, where the default would swallow rows up to the next one.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"line {line}", cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataFileError(f"{path}: line {line}: not CSV: {error}.") from error


def _csv_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    rows = _csv_rows(path, text)
    place, header = next(rows)
    columns = [cell.strip() for cell in header]
    _check_columns(f"{path}: {place}", columns)
    for place, cells in rows:
        if len(cells) != len(columns):
            raise DataFileError(f"{path}: {place}: the row has {len(cells)} cells, the header has {len(columns)}.")
        record: dict[str, object] = dict.fromkeys(_CSV_REQUIRED, "")
        for name, cell in zip(columns, cells, strict=True):
            if cell.strip():
                record[name] = _cell(f"{path}: {place}: column {name!r}", name, cell)
        yield place, record


def _cell(place: str, name: str, cell: str) -> Any:
    if name in _CSV_JSON:
        return _json(place, cell)
    # "TRUE" is what spreadsheets write; another word is refused by the field's own check.
    return {"true": True, "false": False}.get(cell.strip().lower(), cell) if name == "space" else cell


def _check_columns(place: str, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in _CSV_COLUMNS:
            raise DataFileError(f"{place}: unknown column {name!r}.{suggestion(name, _CSV_COLUMNS)}")
        if columns.count(name) > 1:
            raise DataFileError(f"{place}: column {name!r} occurs {columns.count(name)} times; keep one.")
    for name in _CSV_REQUIRED:
        if name not in columns:
            raise DataFileError(f"{place}: missing column {name!r}; required: {', '.join(_CSV_REQUIRED)}.")


def _json_name(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".json": _json_records,
    ".jsonl": _jsonl_records,
    ".csv": _csv_records,
}


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
