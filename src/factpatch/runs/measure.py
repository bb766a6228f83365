"""What a run measures: a measurement is due at some moments and leaves a set of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from factpatch.facts import Fact
from factpatch.files import atomic_write
from factpatch.model.language_model import LanguageModel
from factpatch.runs.rows import ResultRow, When, load_rows, write_rows

Number = tuple[int | None, str, float | None]
"""The place of a fact among those that were asked about, or None; a metric; its value."""


@dataclass(frozen=True)
class Moment:
    """A moment in the stream of edits, and the facts that are then asked about."""

    when: When
    facts: Sequence[Fact]
    places: Sequence[int]
    """Of each of them in the order of editing."""
    edits: int = 0
    """How many facts have been edited."""
    batch: int | None = None
    """The batch that was just written, from 1."""

    @property
    def name(self) -> str:
        """As used in file names."""
        return self.when.value if self.batch is None else f"{self.when.value}.{self.batch:04d}"

    def passed(self, every: int) -> bool:
        """Whether the last batch brought the number of edits to a multiple of `every`, or past it."""
        return self.edits // every > (self.edits - len(self.facts)) // every


@dataclass(frozen=True)
class Measured:
    """The outcome of one measurement."""

    numbers: Sequence[Number]
    texts: Sequence[tuple[int | None, dict[str, Any]]] = ()
    """What the model wrote, if it is worth keeping, with the place of the fact as in `Number`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What later measurements compare with."""

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a measurement was saved under this name."""
        return path.with_name(path.name + ".parquet").is_file()

    def save(self, path: Path, rows: Sequence[ResultRow], texts: Sequence[dict[str, Any]]) -> None:
        """Write everything beside `path`; the rows come last and say that the rest is there."""
        if texts:
            lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
            content = lines.encode("utf-8", "surrogatepass")
            atomic_write(path.with_name(path.name + ".jsonl"), lambda draft: draft.write_bytes(content))
        if self.tensors:
            atomic_write(path.with_name(path.name + ".safetensors"), lambda draft: save_file(self.tensors, draft))
        write_rows(path.with_name(path.name + ".parquet"), rows)


def take_over(source: Path, target: Path, moment: Moment) -> None:
    """Write a measurement of the model and of facts of one batch, from one of the same weights and of more facts.

    Args:
        source: The measurement that is there.
        target: Where the other one goes.
        moment: When that is, and which batch.
    """
    of_moment = (None, moment.batch)
    rows = load_rows(source.with_name(source.name + ".parquet"))
    texts = texts_at(source.with_name(source.name + ".jsonl"))
    Measured(()).save(
        target,
        [replace(row, when=moment.when.value) for row in rows if row.batch in of_moment],
        [text for text in texts if text["batch"] in of_moment],
    )


def tensors_at(path: Path) -> dict[str, Tensor]:
    """The tensors that a measurement saved."""
    tensors: dict[str, Tensor] = load_file(path.with_name(path.name + ".safetensors"))
    return tensors


class Measure(Protocol):
    """One thing that is measured."""

    @property
    def name(self) -> str:
        """As used in file names."""

    def due(self, moment: Moment) -> bool:
        """Whether it is measured at a moment after the first batch; the unedited model is always measured."""

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        """Measure the model as it is.

        Args:
            facts: Those of the moment.
            unedited: Where the same measurement of the unedited model is; None if this is that one.
        """


def texts_at(file: Path) -> list[dict[str, Any]]:
    """The answers or texts beside a measurement; none if there is no such file."""
    content = file.read_text("utf-8", "surrogatepass") if file.is_file() else ""
    # Not splitlines(): a model also writes characters such as U+2028.
    return [json.loads(line) for line in content.split("\n") if line]
