"""The directory of a trace. A fact is written as soon as it is traced, so an interrupted trace resumes after it.

trace.json                settings, what identifies the model and the prompts, and with which versions
facts.jsonl               a line for each fact: its tokens and the probability with each state restored
summary.json              how many facts are known, totals, averages with their errors, the proposed layers
averages.csv              a row for each kind, position and layer
heat_maps.png, .svg       averages by position and layer
curves.png, .svg          averages over layers, with intervals
facts/0007.png, .svg      heat maps of single facts, by their place in the file, from 0
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from factpatch.evaluation.intervals import Mean
from factpatch.lab.drawing.charts import save_figure
from factpatch.lab.tracing.averages import Summary, interval
from factpatch.lab.tracing.figures import average_curves, average_heat_maps, fact_heat_maps
from factpatch.lab.tracing.prompts import Prompt
from factpatch.lab.tracing.trace import Trace
from factpatch.support.directory import DirectoryError, ResultDirectory, cut_unfinished
from factpatch.support.files import append, atomic_write, csv_text, write_json

_FACTS = "facts.jsonl"


class TraceDirectory(ResultDirectory):
    """A directory that keeps traces."""

    holds, record_name = "a trace", "trace.json"

    @contextmanager
    def opened(self) -> Iterator[list[Trace]]:
        """Lock the directory, and yield the traces it has.

        Raises:
            DirectoryError: Another process is using it, or a line is damaged.
        """
        with self.locked():
            file = self.path / _FACTS
            file.touch()
            cut_unfinished(file)
            yield list(self._traces())

    def add(self, one: Trace) -> None:
        """Add a trace. When this returns, it is on the disk."""
        line = json.dumps(_record(one), ensure_ascii=False, allow_nan=False) + "\n"
        append(self.path / _FACTS, line.encode("utf-8", "surrogatepass"))

    def write(self, summary: Summary, figures: int) -> None:
        """Write the results as data and drawn, with heat maps of the first `figures` facts."""
        write_json(self.path / "summary.json", summary.record())
        table = _table(summary.averages)
        # Bytes, so that every system writes the same line ends.
        atomic_write(self.path / "averages.csv", lambda draft: draft.write_bytes(table.encode()))
        save_figure(average_heat_maps(summary.averages), self.path, "heat_maps")
        save_figure(average_curves(summary.averages, summary.critical), self.path, "curves")
        drawn = self.path / "facts"
        drawn.mkdir(exist_ok=True)
        for one in summary.traces[:figures]:
            save_figure(fact_heat_maps(one), drawn, f"{one.index:04d}")

    def _traces(self) -> Iterator[Trace]:
        path = self.path / _FACTS
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                yield _trace(json.loads(line.decode("utf-8", "surrogatepass")))
            except (ValueError, KeyError, TypeError) as error:
                raise DirectoryError(f"{path}: line {number} is damaged ({error}); remove it.") from error


def _record(one: Trace) -> dict[str, Any]:
    return {
        "index": one.index,
        "prompt": asdict(one.prompt),
        "tokens": list(one.tokens),
        "subject": [one.subject.start, one.subject.stop],
        "answer": one.answer,
        "clean": one.clean,
        "corrupted": one.corrupted,
        "restored": {kind: table.tolist() for kind, table in one.restored.items()},
    }


def _trace(record: Mapping[str, Any]) -> Trace:
    return Trace(
        prompt=Prompt(**record["prompt"]),
        index=record["index"],
        tokens=tuple(record["tokens"]),
        subject=range(*record["subject"]),
        answer=record["answer"],
        clean=record["clean"],
        corrupted=record["corrupted"],
        restored={kind: torch.tensor(table, dtype=torch.float64) for kind, table in record["restored"].items()},
    )


def _table(averages: Mapping[str, Mapping[str, Sequence[Mean]]]) -> str:
    heads = ("kind", "position", "layer", "effect", "standard_error", "low", "high", "facts")
    lines = (
        (kind, position, layer, mean.value, mean.error, *(interval(mean) or (None, None)), mean.facts)
        for kind, positions in averages.items()
        for position, means in positions.items()
        for layer, mean in enumerate(means)
    )
    return csv_text(heads, lines)
