"""Files to records, each with its place: the encodings, layouts and separators in which programs write them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from factpatch.support.words import counted, quoted, suggestion

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins like that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CSV_TEXTS = ("prompt", "subject", "target_new")
_CSV_REQUIRED = ("prompt", "target_new")
_CSV_JSON = ("paraphrases", "questions", "neighbors", "generation_prompts", "ripples", "aliases")
_CSV_FURTHER = ("relation_id", "target_new_id", "space", "forget", "valid_from", "source", "note")
_CSV_COLUMNS = (*_CSV_TEXTS, "target_true", "id", *_CSV_JSON, *_CSV_FURTHER)
_CSV_FLAGS = ("space", "forget")
_SEPARATORS = ",;\t|"
_NAMELESS = re.compile(r"(Unnamed: [\d.]+)?")
"""What pandas calls the column of a table's index, or leaves it without a name."""
_SHOWN = 5
_OF_DATASETS = ("dataset_info.json", "dataset_dict.json", "state.json")
_TO_JSON = 'datasets.load_from_disk("{}").to_json("facts.jsonl")'
_INSTEAD = {
    ".parquet": 'pandas.read_parquet("{}").to_json("facts.jsonl", orient="records", lines=True)',
    ".arrow": 'datasets.Dataset.from_file("{}").to_json("facts.jsonl")',
    ".xlsx": "save it as CSV UTF-8 in the spreadsheet program",
    ".xls": "save it as CSV UTF-8 in the spreadsheet program",
    ".ods": "save it as CSV UTF-8 in the spreadsheet program",
}


class DataFileError(ValueError):
    """A file of facts, or of texts about them, cannot be read or written; the message names the file and the place."""


class Unusable:
    """What stands in place of a value of JSON that no record may hold; the rest of the file can be read."""

    def __init__(self, why: str) -> None:
        self.why = why


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """Yield every record of a file with its place in it, such as "record 3" or "line 4", both from 1.

    Reads `.json` and `.jsonl` (a list of records, an object with the list under "facts", or one record per line, in
    either), and `.csv` and `.tsv` (a header, then one record per row). Where a record holds something that cannot be
    used, an `Unusable` is yielded in its place. Raises DataFileError where the file cannot be read.
    """
    if path.is_dir():
        raise DataFileError(f"{path}: is a folder; give a file.{_what_is_there(path)}")
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None:
        raise DataFileError(f"{path}: unknown extension {suffix!r}; known: {', '.join(_READERS)}.{_instead(path)}")
    yield from reader(path, _read_text(path))


def _what_is_there(folder: Path) -> str:
    """Which file of a folder may be meant, or how to make one, as a sentence after a space."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        return f" It cannot be listed: {error.strerror}."
    if any(name in _OF_DATASETS for name in names):
        return f" It is a data set that `save_to_disk` wrote; make a file of it with {_TO_JSON.format(folder)}."
    known = [name for name in names if Path(name).suffix.lower() in _READERS]
    if known:
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        return f" It holds {', '.join(known[:_SHOWN])}{more}."
    inside = next((file for end in (".parquet", ".arrow") for file in sorted(folder.rglob(f"*{end}"))), None)
    return " It holds no file that can be read." if inside is None else f" It holds {inside.name}.{_instead(inside)}"


def _instead(path: Path) -> str:
    """How to make a file that can be read of one that cannot, as a sentence after a space."""
    advice = _INSTEAD.get(path.suffix.lower())
    return "" if advice is None else f" Make one of it: {advice.format(path)}."


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataFileError(f"{path}: no such file.") from error
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read: {error.strerror}.") from error
    # utf-8-sig also reads files without a byte order mark. Spreadsheets write one, and it would spoil the first name.
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8-sig")
    if data.startswith(b"version https://git-lfs"):
        raise DataFileError(f"{path}: is a pointer of git-lfs, not the file itself; get that with: git lfs pull")
    if encoding == "utf-8-sig" and b"\0" in data[:4]:
        raise DataFileError(f"{path}: looks like UTF-16 without a byte order mark; save it as UTF-8.")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else encoding.upper()
        raise DataFileError(
            f"{path}: is not {name} text: {error.reason} at byte {error.start}; save it as UTF-8 (in a spreadsheet "
            'program as "CSV UTF-8").'
        ) from error
    if not text.strip():
        raise DataFileError(f"{path}: the file is empty.")
    return text


def _object(pairs: list[tuple[str, Any]]) -> object:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice, times = Counter(name for name, _ in pairs).most_common(1)[0]
        return Unusable(f"the field {quoted(twice)} is given {times} times in one object; keep one.")
    return made


def _integer(digits: str) -> object:
    try:
        return int(digits)
    except ValueError:  # Python limits the length
        return Unusable(f"a number has {len(digits)} digits; write it as a string.")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def _json(place: object, text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        raise DataFileError(f"{place}: not JSON: {error.msg} at {line}column {error.colno}.") from error
    except RecursionError as error:
        raise DataFileError(f"{place}: {_at_fault(text)}is nested too deeply.") from error


def _at_fault(text: str) -> str:
    """The record of a list at which decoding fails, in front of what is wrong with it; nothing if there is no list."""
    start = re.match(r"\s*\[\s*", text)
    place, number = start.end() if start else len(text), 1
    while place < len(text):
        try:
            _, place = _DECODER.raw_decode(text, place)
        except RecursionError:
            return f"record {number}: "
        except json.JSONDecodeError:
            break
        between = re.compile(r"\s*,?\s*").match(text, place)
        assert between is not None
        place, number = between.end(), number + 1
    return ""


def _json_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """The records of one JSON value, or of one in every line: programs write either into `.json` and into `.jsonl`."""
    if _has_lines(path, text):
        yield from _line_records(path, text)
        return
    data = _json(path, text)
    name = "the top level"
    if isinstance(data, dict) and "facts" in data:
        name, data = 'field "facts"', data["facts"]
    elif isinstance(data, dict) and not all(isinstance(value, dict | list) for value in data.values()):
        data = [data]  # a single record
    if isinstance(data, Unusable):
        raise DataFileError(f"{path}: {name}: {data.why}")
    if not isinstance(data, list):
        message = (
            f'{name} is {json_name(data)}; it must be a list of records, or an object with such a list under "facts".'
        )
        if isinstance(data, dict) and data and all(isinstance(value, dict) for value in data.values()):
            message += ' pandas writes a list with to_json("facts.json", orient="records").'
        raise DataFileError(f"{path}: {message}")
    for number, record in enumerate(data, start=1):
        yield f"record {number}", record


def _has_lines(path: Path, text: str) -> bool:
    """Whether a file is JSON Lines, whatever its name says: its first line is JSON, and more follows."""
    first, _, rest = text.strip().partition("\n")
    if not rest.strip():
        return path.suffix.lower() == ".jsonl" and not first.startswith("[")
    try:
        _DECODER.decode(first)
    except RecursionError:
        return path.suffix.lower() == ".jsonl"
    except json.JSONDecodeError:
        # Mostly a list over several lines. A file of lines, if its name says so, whose first line is damaged.
        return path.suffix.lower() == ".jsonl" and first.startswith("{") and not _is_json(text)
    return True


def _is_json(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _line_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    # Not splitlines(): it also breaks at characters such as U+2028, which JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        data = _json(f"{path}: line {number}", line)
        if isinstance(data, list) and data and all(isinstance(record, (dict, Unusable)) for record in data):
            yield from ((f"line {number}, record {count}", record) for count, record in enumerate(data, start=1))
        else:
            yield f"line {number}", data


def _cell_rows(path: Path, text: str, separator: str, line: int) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, each with its place."""
    # strict turns a stray quote into an error, where the default would swallow rows up to the next one.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    before, place = line - 1, line
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"line {place}", cells
            place = before + reader.line_num + 1
    except csv.Error as error:
        raise DataFileError(f"{path}: line {place}: not CSV: {error}.") from error


def _cell_records(path: Path, text: str) -> Iterator[tuple[str, object]]:
    separator, text, line = _separator(path, text)
    rows = _cell_rows(path, text, separator, line)
    place, header = next(rows, (f"line {line}", []))
    columns = [cell.strip() for cell in header]
    _check_columns(f"{path}: {place}", columns)
    for place, cells in rows:
        if len(cells) != len(columns):
            raise DataFileError(
                f"{path}: {place}: the row has {counted(len(cells), 'cell')}, the header has {len(columns)}; cells are "
                f"separated by {separator!r}."
            )
        record: dict[str, object] = dict.fromkeys((name for name in _CSV_TEXTS if name in columns), "")
        for number, (name, cell) in enumerate(zip(columns, cells, strict=True)):
            if not cell.strip() or (number == 0 and _NAMELESS.fullmatch(name)):
                continue
            if _NAMELESS.fullmatch(name):
                raise DataFileError(f"{path}: {place}: the cell {quoted(cell)} is in a column without a name.")
            value = _cell(f"{path}: {place}: column {name!r}", name, cell)
            if value is not None:
                record[name] = value
        yield place, record


def _separator(path: Path, text: str) -> tuple[str, str, int]:
    """What separates the cells of a file, its text from the header on, and the header's line."""
    blank = re.match(r"(?:[ \t]*\r?\n)*", text)
    assert blank is not None
    line, text = blank[0].count("\n") + 1, text[blank.end() :]
    said = re.match(r'"?sep=(.)"?\r?\n', text)  # a line for Excel
    if said:
        return said[1], text[said.end() :], line + 1
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    for separator in (usual, *_SEPARATORS):
        # Split by itself: the names that are looked for need no quotes, and a damaged header is reported by the reader.
        if {cell.strip(' "') for cell in header.split(separator)}.issuperset(_CSV_REQUIRED):
            return separator, text, line
    return usual, text, line


def _cell(place: str, name: str, cell: str) -> Any:
    """What a cell that is not blank holds; None for nothing."""
    if name not in _CSV_TEXTS and cell.strip().lower() in ("nan", "<na>"):  # as pandas may write an absent value
        return None
    if name in _CSV_JSON:
        return _json(place, cell)
    # "TRUE" is what spreadsheets write; another word is refused by the field's own check.
    return {"true": True, "false": False}.get(cell.strip().lower(), cell) if name in _CSV_FLAGS else cell


def _check_columns(place: str, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in _CSV_COLUMNS and not _NAMELESS.fullmatch(name):
            raise DataFileError(f"{place}: unknown column {quoted(name)}.{suggestion(name, _CSV_COLUMNS)}")
        if name and columns.count(name) > 1:
            raise DataFileError(f"{place}: column {name!r} occurs {columns.count(name)} times; keep one.")
    required = _CSV_REQUIRED[:1] if "forget" in columns else _CSV_REQUIRED  # what is forgotten has no new answer
    for name in required:
        if name not in columns:
            raise DataFileError(f"{place}: missing column {name!r}; required: {', '.join(required)}.")


def json_name(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")


_READERS: dict[str, Callable[[Path, str], Iterator[tuple[str, object]]]] = {
    ".json": _json_records,
    ".jsonl": _json_records,
    ".csv": _cell_records,
    ".tsv": _cell_records,
}
