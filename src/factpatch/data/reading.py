"""Read the records of JSON, JSON Lines and CSV files, each with the place where it stands."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from factpatch.support.words import suggestion

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CSV_REQUIRED = ("prompt", "subject", "target_new")
_CSV_JSON = ("paraphrases", "neighbors", "generation_prompts")
_CSV_COLUMNS = (*_CSV_REQUIRED, "target_true", "id", *_CSV_JSON, "relation_id", "target_new_id")


class DataFileError(ValueError):
    """A file of facts, or of texts about them, cannot be read or written; the message names the file and the place."""


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """Yield every record of a file with its place in it, such as "record 3" or "line 4".

    Reads `.json` (a list of records, or an object with the list under "facts"), `.jsonl` (one record per line) and
    `.csv` (a header, then one record per row).

    Raises:
        DataFileError: The file is missing, empty, of an unknown kind or malformed.
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
        limit: How many to return; later records are not looked at. None reads all.
        skip_unusable: Pass over records that are not acceptable, and log how many these were and what the first lacks.

    Raises:
        DataFileError: The file cannot be read, no record is left, or a record is not acceptable and not passed over.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive.
    """
    _check_limit(limit)
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


def _check_limit(limit: object) -> None:
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"limit={limit!r} is of type {type(limit).__name__}; it must be a positive integer or None.")
    if limit < 1:
        raise ValueError(f"limit={limit} is not positive; give at least 1, or None to read all.")


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


def _json_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataFileError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    allowed = 'it must be a list of records or an object with such a list under "facts"'
    if isinstance(data, dict):
        if "facts" not in data:
            raise DataFileError(f'{path}: the top level is an object without the field "facts"; {allowed}.')
        if not isinstance(data["facts"], list):
            raise DataFileError(f'{path}: field "facts" is {_json_name(data["facts"])}; it must be a list of records.')
        data = data["facts"]
    if not isinstance(data, list):
        raise DataFileError(f"{path}: the top level is {_json_name(data)}; {allowed}.")
    for index, record in enumerate(data):
        yield f"record {index}", record


def _jsonl_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    # Not splitlines(): it also breaks at characters such as U+2028, which JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFileError(f"{path}: line {number}: not JSON: {error.msg} at column {error.colno}.") from error
        yield f"line {number}", record


def _csv_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    # strict turns a stray quote into an error, where the default would swallow rows up to the next one.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataFileError(f"{path}: line {line}: not CSV: {error}.") from error
        if cells is None:
            return
        place, line = f"line {line}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
            _check_columns(f"{path}: {place}", columns)
        elif len(cells) != len(columns):
            raise DataFileError(f"{path}: {place}: the row has {len(cells)} cells, the header has {len(columns)}.")
        else:
            yield place, _record_from_cells(f"{path}: {place}", dict(zip(columns, cells, strict=True)))


def _check_columns(place: str, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in _CSV_COLUMNS:
            raise DataFileError(f"{place}: unknown column {name!r}.{suggestion(name, _CSV_COLUMNS)}")
        if columns.count(name) > 1:
            raise DataFileError(f"{place}: column {name!r} occurs {columns.count(name)} times; keep one.")
    for name in _CSV_REQUIRED:
        if name not in columns:
            raise DataFileError(f"{place}: missing column {name!r}; required: {', '.join(_CSV_REQUIRED)}.")


def _record_from_cells(place: str, cells: Mapping[str, str]) -> dict[str, object]:
    record: dict[str, object] = {}
    for name, cell in cells.items():
        if not cell.strip() and name not in _CSV_REQUIRED:
            continue
        if name not in _CSV_JSON:
            record[name] = cell
            continue
        try:
            record[name] = json.loads(cell)
        except json.JSONDecodeError as error:
            raise DataFileError(
                f"{place}: column {name!r} is not JSON: {error.msg} at character {error.pos} of {cell!r}."
            ) from error
    return record


def _json_name(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".json": _json_records,
    ".jsonl": _jsonl_records,
    ".csv": _csv_records,
}
