"""Tables as files: Markdown, LaTeX and CSV, and beside them how sure the differences are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from factpatch.files import atomic_write, csv_text
from factpatch.runs.contrasts import Contrast
from factpatch.runs.tables import MISSING, Column, Table

_MARKS = {"better": "**", "worse": "*", "no clear difference": ""}


def write_table(
    table: Table, folder: Path, name: str, contrasts: Sequence[Contrast] = (), notes: Sequence[str] = ()
) -> list[Path]:
    """Write a table as Markdown, LaTeX and CSV.

    Args:
        contrasts: Differences between its lines, which go below the table in Markdown and into a CSV of their own.
        notes: Sentences about its columns, which go below the table in Markdown and are comments in LaTeX.
    """
    contents = {
        ".md": table.markdown()
        + "".join(f"\n{note}\n" for note in notes)
        + (differences_markdown(table.columns, contrasts) if contrasts else ""),
        ".tex": table.latex() + "".join(f"% {note}\n" for note in notes),
        ".csv": table.csv(),
    }
    if contrasts:
        contents[".differences.csv"] = differences_csv(contrasts)
    written = [folder / f"{name}{suffix}" for suffix in contents]
    for path, content in zip(written, contents.values(), strict=True):
        atomic_write(path, partial(Path.write_text, data=content, encoding="utf-8"))
    return written


def differences_markdown(columns: Sequence[Column], contrasts: Sequence[Contrast]) -> str:
    """A line for each pair of methods, a column for each metric; what is clearly better is bold, worse is slanted."""
    found: dict[str, dict[Column, str]] = {}
    for one in contrasts:
        mark = _MARKS[one.verdict]
        found.setdefault(one.pair, {})[one.column] = f"{mark}{one.interval.text(sign=True)}{mark}"
    rows = [
        "",
        "Differences on the same facts, with 95 % bootstrap intervals; bold: clearly better, slanted: clearly worse.",
        "",
        f"| difference | {' | '.join(column.head for column in columns)} |",
        "|---" * (1 + len(columns)) + "|",
        *(
            f"| {pair} | {' | '.join(texts.get(column, MISSING) for column in columns)} |"
            for pair, texts in found.items()
        ),
    ]
    return "\n".join(rows) + "\n"


def differences_csv(contrasts: Sequence[Contrast]) -> str:
    """Numbers in full: a line for each pair of methods and each metric."""
    heads = ["method", "base", "dataset", "metric", "difference", "low", "high", "facts", "verdict"]
    lines = (
        [
            one.label,
            one.base,
            one.column.dataset,
            one.column.metric,
            one.interval.value,
            one.interval.low,
            one.interval.high,
            one.interval.facts,
            one.verdict,
        ]
        for one in contrasts
    )
    return csv_text(heads, lines)
