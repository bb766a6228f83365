"""The rows of the facts' table, as facts; and files and pasted text, as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factpatch.data import demo_facts, load_facts
from factpatch.facts import Fact, RepeatedQuestionsError, without_repeats
from factpatch.support.files import scratch

COLUMNS = ("Prompt", "Subject", "New answer", "Old answer")
"""What a row says of a fact."""
EXAMPLES: Mapping[str, tuple[int, int]] = {
    "4 facts about places": (0, 4),
    "12 facts, half of the demo's": (0, 12),
    "24 facts, all of the demo's": (0, 24),
}
"""Sets of facts to try, by what the page calls them: which of the demo's they are."""
Cells = tuple[str, str, str, str]


@dataclass(frozen=True)
class Row:
    """A row with something in it."""

    number: int
    """Its place in the table, from 1."""
    cells: Cells
    fact: Fact | None = None
    mistake: str = ""
    """Why it is no fact, in the library's words."""


def cells_of(fact: Fact) -> Cells:
    """A fact as the table shows it."""
    return (fact.prompt, fact.subject, fact.target_new, fact.target_true or "")


def read_rows(table: Sequence[Sequence[Any]], known: Sequence[Fact] = ()) -> list[Row]:
    """Return the rows of a table that hold something, each as a fact or with what is wrong.

    Args:
        table: Its cells; `COLUMNS` says what they mean.
        known: Facts that were read from a file. A row that still asks the question of one has its paraphrases,
            neighbors and so on, which the table does not show.
    """
    by_question = {(fact.prompt, fact.subject): fact for fact in known}
    rows = [_read(number, _cells(cells), by_question) for number, cells in enumerate(table, start=1)]
    return _without_repeats([row for row in rows if any(row.cells)])


def _cells(cells: Sequence[Any]) -> Cells:
    prompt, subject, new, true = [("" if cell is None else str(cell)).strip() for cell in [*cells, *[""] * 4][:4]]
    return prompt, subject, new, true


def _read(number: int, cells: Cells, known: Mapping[tuple[str, str], Fact]) -> Row:
    prompt, subject, new, true = cells
    if not any(cells):
        return Row(number, cells)
    try:
        fact = known.get((prompt, subject))
        made = Fact(prompt, subject, new, target_true=true or None)
        if fact is not None:
            made = replace(fact, target_new=made.target_new, target_true=made.target_true)
        return Row(number, cells, made)
    except (TypeError, ValueError) as error:
        return Row(number, cells, mistake=str(error))


def _without_repeats(rows: Sequence[Row]) -> list[Row]:
    """Mark rows that answer the question of an earlier row."""
    first: dict[str, Row] = {}
    checked = []
    for row in rows:
        if row.fact is not None and (earlier := first.setdefault(row.fact.key, row)) is not row:
            assert earlier.fact is not None
            places = [f"row {earlier.number}", f"row {row.number}"]
            try:
                without_repeats([earlier.fact, row.fact], "error", places)
            except RepeatedQuestionsError as error:
                row = replace(row, fact=None, mistake=str(error).partition(" A batch can hold")[0])
        checked.append(row)
    return checked


def read_file(path: Path, name: str, most: int) -> list[Fact]:
    """Return the facts of a file in any format that the library reads, as many as are allowed.

    Args:
        name: What the file is called in messages, which show no path of the server.

    Raises:
        ValueError: The file cannot be read, or holds too many facts.
    """
    try:
        facts = load_facts(path, limit=most + 1)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), name)) from None
    if len(facts) > most:
        raise ValueError(f"{name}: holds more than the {most} facts that this page edits at a time; split the file.")
    return facts


def read_pasted(text: str, folder: Path, most: int) -> list[Fact]:
    """Return the facts of pasted text: JSON, JSON Lines, CSV, or cells copied from a spreadsheet, with a header.

    Raises:
        ValueError: The text cannot be read, or holds too many facts.
    """
    if not text.strip():
        raise ValueError("pasted text: it is empty; paste JSON, CSV, or cells of a spreadsheet.")
    start = text.lstrip()[0]
    header = text.lstrip().split("\n", 1)[0]
    suffix = "json" if start in "[{" else "tsv" if "\t" in header else "csv"
    with scratch(folder) as place:
        file = place / f"pasted.{suffix}"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        return read_file(file, "pasted text", most)


def example(name: str) -> list[Fact]:
    """Return a set of facts to try; KeyError for an unknown name."""
    start, end = EXAMPLES[name]
    return demo_facts()[start:end]
