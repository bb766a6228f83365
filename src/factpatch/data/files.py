"""Read facts from JSON, JSON Lines and CSV files, recognizing the format of each record, and write them."""

from __future__ import annotations

import csv
import importlib.resources
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from factpatch.data.counterfact import fact_from_counterfact, is_counterfact
from factpatch.data.records import fact_from_own, is_own
from factpatch.data.zsre import fact_from_zsre, is_zsre
from factpatch.facts import Fact
from factpatch.files import atomic_write
from factpatch.suggestions import suggestion


class FactFileError(ValueError):
    """A file of facts cannot be read or written; the message names the file, the place in it and the field."""


@dataclass(frozen=True)
class RecordFormat:
    """One format of records: its name, how it is recognized, and how it becomes a fact.

    Attributes:
        name: The name in messages.
        matches: Says whether a record is meant to be in this format, complete or not.
        convert: Turns a record and its place in the file, from 0, into a fact; raises ValueError or TypeError.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], int], Fact]


# The first match wins. Our own comes last because zsRE has a `subject` too.
FORMATS = (
    RecordFormat("CounterFact (requested_rewrite, ...)", is_counterfact, fact_from_counterfact),
    RecordFormat("zsRE (subject, src, answers, ...)", is_zsre, fact_from_zsre),
    RecordFormat("factpatch (prompt, subject, target_new, ...)", is_own, fact_from_own),
)

_CSV_REQUIRED = ("prompt", "subject", "target_new")
_CSV_JSON = ("paraphrases", "neighbors")
_CSV_COLUMNS = (*_CSV_REQUIRED, "target_true", "id", *_CSV_JSON)


def load_facts(path: str | Path, limit: int | None = None) -> list[Fact]:
    """Return the facts of a file, in its order.

    Reads `.json` (a list of records, or an object with the list under "facts"), `.jsonl` (one record per line) and
    `.csv` (a header, then one fact per row, in our own format; `paraphrases` and `neighbors` as JSON text). In the
    JSON files each record may be in our own format, that of CounterFact or that of zsRE; see `FORMATS`.

    Args:
        path: The file, in UTF-8. Its extension says how it is read.
        limit: How many facts to read, from the start; later records are not checked. None reads all.

    Raises:
        FactFileError: The file is missing, empty, of an unknown kind or malformed, or a record is not a fact.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive.
    """
    _check_limit(limit)
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise FactFileError(f"{path}: unknown extension {path.suffix!r}; known: {', '.join(_READERS)}.")
    facts = []
    records = islice(reader(path, _read_text(path)), limit)
    for index, (place, record) in enumerate(records):
        try:
            facts.append(_fact_from(record, index))
        except (TypeError, ValueError) as error:
            raise FactFileError(f"{path}: {place}: {error}") from error
    if not facts:
        raise FactFileError(f"{path}: holds no facts; at least one record is needed.")
    return facts


def save_facts(facts: Iterable[Fact], path: str | Path) -> None:
    """Write facts to a `.json` file in our own format, which `load_facts` reads back as equal facts.

    The file appears whole or not at all; an interrupted save leaves an earlier file as it was.

    Raises:
        FactFileError: `path` does not end in `.json`.
        OSError: The file cannot be written.
        ValueError: `facts` is empty.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise FactFileError(f"{path}: facts are saved as JSON; choose a name that ends in .json.")
    records = [fact.to_dict() for fact in facts]
    if not records:
        raise ValueError("facts=[]: there is nothing to save; give at least one fact.")
    text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    # Bytes, so that every system writes the same line ends.
    atomic_write(path, lambda draft: draft.write_bytes(text.encode()))


def demo_facts() -> list[Fact]:
    """Return the counterfactual facts that come with the package, each with two paraphrases and four neighbors."""
    resource = importlib.resources.files("factpatch.data").joinpath("demo_facts.json")
    with importlib.resources.as_file(resource) as path:
        return load_facts(path)


def _check_limit(limit: object) -> None:
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"limit={limit!r} is of type {type(limit).__name__}; it must be a positive integer or None.")
    if limit < 1:
        raise ValueError(f"limit={limit} is not positive; give at least 1, or None to read all facts.")


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig also reads files without a byte order mark. Spreadsheets write one, and it would spoil the first
        # column's name. newline="" leaves line ends inside quoted CSV cells alone.
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise FactFileError(f"{path}: no such file.") from error
    except OSError as error:
        raise FactFileError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise FactFileError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if not text.strip():
        raise FactFileError(f"{path}: the file is empty.")
    return text


def _fact_from(record: object, index: int) -> Fact:
    if not isinstance(record, dict):
        raise TypeError(f"{record!r} is {_json_name(record)}; a record must be an object.")
    for record_format in FORMATS:
        if record_format.matches(record):
            return record_format.convert(record, index)
    known = "; ".join(record_format.name for record_format in FORMATS)
    raise ValueError(f"fields {list(record)} belong to no known format; known: {known}.")


def _json_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise FactFileError(f"{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    allowed = 'it must be a list of records or an object with such a list under "facts"'
    if isinstance(data, dict):
        if "facts" not in data:
            raise FactFileError(f'{path}: the top level is an object without the field "facts"; {allowed}.')
        if not isinstance(data["facts"], list):
            raise FactFileError(f'{path}: field "facts" is {_json_name(data["facts"])}; it must be a list of records.')
        data = data["facts"]
    if not isinstance(data, list):
        raise FactFileError(f"{path}: the top level is {_json_name(data)}; {allowed}.")
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
            raise FactFileError(f"{path}: line {number}: not JSON: {error.msg} at column {error.colno}.") from error
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
            raise FactFileError(f"{path}: line {line}: not CSV: {error}.") from error
        if cells is None:
            return
        place, line = f"line {line}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
            _check_columns(f"{path}: {place}", columns)
        elif len(cells) != len(columns):
            raise FactFileError(f"{path}: {place}: the row has {len(cells)} cells, the header has {len(columns)}.")
        else:
            yield place, _record_from_cells(f"{path}: {place}", dict(zip(columns, cells, strict=True)))


def _check_columns(place: str, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in _CSV_COLUMNS:
            raise FactFileError(f"{place}: unknown column {name!r}.{suggestion(name, _CSV_COLUMNS)}")
        if columns.count(name) > 1:
            raise FactFileError(f"{place}: column {name!r} occurs {columns.count(name)} times; keep one.")
    for name in _CSV_REQUIRED:
        if name not in columns:
            raise FactFileError(f"{place}: missing column {name!r}; required: {', '.join(_CSV_REQUIRED)}.")


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
            raise FactFileError(
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
