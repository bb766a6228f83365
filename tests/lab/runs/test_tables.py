"""Tables in the paper's layout, from rows made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("pandas", reason="needs the extra `runs`")

from factpatch.lab.runs.rows import ResultRow, read_rows, write_rows
from factpatch.lab.runs.tables import Column, comparison, improvements

COLUMNS = (Column("cf", "efficacy", "Efficacy"), Column("cf", "loss", "Loss", higher_is_better=False))
PAIRS = {"memit-blue": "memit"}


def row(label: str, when: str, place: int | None, metric: str, value: float | None) -> ResultRow:
    return ResultRow(label, "cf", 0, when, 0, None if place is None else 1, place, str(place), metric, value)


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    given = [
        row("", "before", 0, "efficacy", 0.0), row("", "before", 1, "efficacy", 100.0),
        row("memit", "end", 0, "efficacy", 50.0), row("memit", "end", 1, "efficacy", 70.0),
        row("memit", "written", 0, "efficacy", 0.0),
        row("memit", "end", None, "loss", 4.0),
        row("memit-blue", "end", 0, "efficacy", 90.0), row("memit-blue", "end", 1, "efficacy", None),
        row("memit-blue", "end", None, "loss", 5.0),
    ]  # fmt: skip
    write_rows(tmp_path / "a.parquet", given[:3])
    write_rows(tmp_path / "b.parquet", given[3:])
    return read_rows([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_cell_is_the_mean_over_facts_with_its_standard_error(rows: Any) -> None:
    cells = dict(comparison("t", rows, ["memit", "memit-blue"], COLUMNS, PAIRS).lines)
    # The sample standard deviation of 50 and 70 is √200, over √2 facts.
    assert (cells["memit"][0].mean, cells["memit"][0].error) == (60.0, pytest.approx(10.0))
    assert (cells["unedited"][0].mean, cells["unedited"][0].error) == (50.0, pytest.approx(50.0))
    # A value that is missing does not count; one fact has no standard error.
    assert (cells["memit-blue"][0].mean, cells["memit-blue"][0].error) == (90.0, None)
    assert cells["unedited"][1].mean is None


def test_the_unedited_model_is_shown_on_the_facts_that_are_asked_about_at_the_end(tmp_path: Path) -> None:
    given = [
        row("", "before", 0, "efficacy", 0.0), row("", "before", 1, "efficacy", 100.0),
        row("", "before", None, "loss", 4.0), row("memit", "end", None, "loss", 5.0),
        row("memit", "end", 1, "efficacy", 70.0),  # the other one was replaced
    ]  # fmt: skip
    write_rows(tmp_path / "a.parquet", given)
    rows = read_rows([tmp_path / "a.parquet"])
    assert [cell.mean for cell in dict(comparison("t", rows, ["memit"], COLUMNS, {}).lines)["unedited"]] == [100.0, 4.0]
    before = rows[rows["when"] == "before"]
    assert [cell.mean for cell in dict(comparison("t", before, [], COLUMNS, {}).lines)["unedited"]] == [50.0, 4.0]


def test_a_method_that_stopped_is_not_compared_with_one_that_edited_more(tmp_path: Path) -> None:
    given = [row("memit", "end", place, "efficacy", 50.0) for place in range(2)]
    for blue, base in (([0, 1], 50.0), ([0], None)):
        write_rows(
            tmp_path / "a.parquet", [*given, *(row("memit-blue", "end", place, "efficacy", 90.0) for place in blue)]
        )
        table = comparison("t", read_rows([tmp_path / "a.parquet"]), ["memit", "memit-blue"], COLUMNS, PAIRS)
        cell = dict(table.lines)["memit-blue"][0]
        assert (cell.mean, cell.base, cell.improved) == (90.0, base, base is not None)


def test_seeds_are_no_facts(tmp_path: Path) -> None:
    given = [
        ResultRow("memit", "cf", seed, "end", 2, 1, place, str(place), "efficacy", value)
        for seed in range(4)
        for place, value in enumerate((0.0, 100.0))
    ]
    write_rows(tmp_path / "a.parquet", given)
    cells = dict(comparison("t", read_rows([tmp_path / "a.parquet"]), ["memit"], COLUMNS, {}).lines)
    assert (cells["memit"][0].mean, cells["memit"][0].error) == (50.0, pytest.approx(50.0))


def test_improvements_are_marked_by_what_is_better(rows: Any) -> None:
    table = comparison("t", rows, ["memit", "memit-blue"], COLUMNS, PAIRS)
    cells = dict(table.lines)
    assert [cell.improved for cell in cells["memit-blue"]] == [True, False]
    assert not any(cell.improved for cell in cells["memit"])
    # + 50 % of 60, and a loss that rose by a quarter.
    assert improvements(table, PAIRS) == {"memit-blue": pytest.approx((50 - 25) / 2)}


def test_methods_that_were_not_measured_on_the_same_facts_are_not_compared(rows: Any) -> None:
    rows.loc[(rows["label"] == "memit-blue") & (rows["place"] == 1), "seed"] = 1
    table = comparison("t", rows, ["memit", "memit-blue"], COLUMNS, PAIRS)
    assert [(cell.base, cell.improved) for cell in dict(table.lines)["memit-blue"]] == [(None, False)] * 2
    assert improvements(table, PAIRS) == {"memit-blue": None}


def test_the_forms_of_a_table_say_the_same(rows: Any) -> None:
    table = comparison("t", rows, ["memit", "memit-blue"], COLUMNS, PAIRS)
    assert "| memit-blue | **90.00** | 5.00 |" in table.markdown()
    assert "| unedited | 50.00±50.00 | – |" in table.markdown()
    assert r"memit-blue & \textcolor{red}{90.00} & 5.00 \\" in table.latex()
    lines = [line.split(",") for line in table.csv().splitlines()]
    assert lines[0] == ["method", "cf.efficacy", "cf.efficacy.error", "cf.loss", "cf.loss.error"]
    assert lines[2][0] == "memit"
    assert math.isclose(float(lines[2][1]), 60.0)


def test_a_harmonic_mean_is_of_the_means_and_does_not_count_as_an_improvement_of_its_own(rows: Any) -> None:
    score = Column("cf", "score", "Score", parts=("efficacy", "loss"), error=False)
    plain = comparison("t", rows, ["memit", "memit-blue"], COLUMNS, PAIRS)
    table = comparison("t", rows, ["memit", "memit-blue"], (*COLUMNS, score), PAIRS)
    cells = {label: line[-1] for label, line in table.lines}
    assert cells["memit"].mean == pytest.approx(2 / (1 / 60 + 1 / 4))
    assert cells["memit-blue"].improved
    assert cells["unedited"].mean is None  # a part was not measured
    assert improvements(table, PAIRS) == improvements(plain, PAIRS)
    assert table.csv().splitlines()[0].endswith("cf.loss.error,cf.score")


def test_the_average_improvement_is_the_papers() -> None:
    """Table 3 from table 2, for AlphaEdit on Llama 3: 2.50 %."""
    import pandas as pd

    base = (98.90, 94.22, 67.88, 622.49, 32.40, 94.47, 91.13, 32.55)
    blue = (99.93, 97.25, 75.24, 624.90, 33.79, 95.77, 91.73, 31.96)
    columns = [Column("cf", f"m{index}", "m") for index in range(len(base))]
    rows = pd.DataFrame(
        {"label": label, "dataset": "cf", "metric": f"m{index}", "when": "end", "seed": 0, "fact": "0", "value": value}
        for label, values in (("alphaedit", base), ("alphaedit-blue", blue))
        for index, value in enumerate(values)
    )
    pairs = {"alphaedit-blue": "alphaedit"}
    table = comparison("t", rows, ["alphaedit", "alphaedit-blue"], columns, pairs)
    assert round(improvements(table, pairs)["alphaedit-blue"] or 0.0, 2) == 2.50
