"""Result rows: each is one number of one metric, of one fact or of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factpatch.support.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


class When(str, Enum):
    """The moment of a measurement in the stream of edits."""

    BEFORE = "before"
    """On the unedited model."""
    WRITTEN = "written"
    """Right after the batch of the facts, or on the way."""
    END = "end"
    """After the last batch."""


@dataclass(frozen=True)
class ResultRow:
    """One number."""

    label: str
    """The method as tables call it; empty for the unedited model."""
    dataset: str
    seed: int
    when: str
    """A value of `When`."""
    edits: int
    """How many facts had been edited."""
    batch: int | None
    """The batch of the fact, from 1; None for a number about the model."""
    place: int | None
    """The fact's place in the order of editing, from 0; None for a number about the model."""
    fact: str | None
    """The fact's id, or "facts[3]", its place, where it has none; None for a number about the model."""
    metric: str
    value: float | None
    """As docs/metrics.md defines the metric; None where it could not be computed."""


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write rows as Parquet, whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema())
    atomic_write(path, lambda draft: parquet.write_table(table, draft))


def load_rows(path: Path) -> list[ResultRow]:
    """The rows of a file."""
    from pyarrow import parquet

    return [ResultRow(**row) for row in parquet.read_table(path, schema=_schema()).to_pylist()]


def read_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """The rows of some files as one frame with the fields of `ResultRow` as columns."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    tables = [parquet.read_table(path, schema=schema) for path in paths]
    return pa.concat_tables([schema.empty_table(), *tables]).to_pandas()


def _schema() -> Any:
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
    return pa.schema([(field.name, types[str(field.type).removesuffix(" | None")]) for field in fields(ResultRow)])
