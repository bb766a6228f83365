"""Figures of runs with several datasets and seeds: one for each, or a mean that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("matplotlib", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from tests.lab.runs.forged import TASKS, forged_run
from tests.lab.runs.test_outcomes import facts

from factpatch.lab.drawing.charts import figure
from factpatch.lab.drawing.shapes import STATES
from factpatch.lab.runs.figures import capability, hidden_states, mapped, method_styles
from factpatch.lab.runs.outputs import draw_up
from factpatch.lab.runs.report import report_page
from factpatch.lab.runs.results import Results, read_results


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(forged_run(tmp_path_factory.mktemp("runs") / "one", facts(4)))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Results:
    path = tmp_path_factory.mktemp("runs") / "many"
    return read_results(forged_run(path, facts(4), names=("first", "second"), seeds=(3, 5)))


def curve(figure: Any, panel: int, label: str) -> list[float]:
    (line,) = (line for line in figure.axes[panel].lines if line.get_label() == label)
    return [float(value) for value in line.get_ydata()]


def test_capability_is_drawn_for_each_dataset_as_a_mean_over_seeds_that_says_so(many: Results) -> None:
    ends = {}
    for dataset in ("first", "second"):
        drawn = figure(capability(many, dataset), method_styles(many), title=many.mean_over_seeds)
        assert drawn.get_suptitle() == "mean over 2 seeds"
        for panel, task in enumerate(TASKS):
            assert drawn.axes[panel].get_title() == f"{task}, {dataset}"
            rows = many.rows
            chosen = rows[
                (rows["metric"] == f"{task}.generated.f1") & (rows["label"] == "memit") & (rows["dataset"] == dataset)
            ]
            assert len(chosen) == 2
            ends[dataset, task] = curve(drawn, panel, "memit")
            assert ends[dataset, task] == pytest.approx([80.0, chosen["value"].mean()])
    assert len({tuple(curve) for curve in ends.values()}) == 4


def test_hidden_states_are_drawn_for_each_dataset_and_seed(many: Results) -> None:
    drawn = figure(hidden_states(mapped(many)), STATES)
    assert [axis.get_title() for axis in drawn.axes] == [
        f"{method} on {dataset}, seed {seed}"
        for dataset in ("first", "second")
        for seed in (3, 5)
        for method in ("memit", "memit-blue")
    ]


def test_a_run_of_one_dataset_and_seed_has_one_figure_without_such_a_title(one: Results, tmp_path: Path) -> None:
    assert one.mean_over_seeds == ""
    assert [panel.title for panel in capability(one, "forged")] == list(TASKS)
    for output, name in (("capability", "figure6"), ("hidden_states", "figure7")):
        files = draw_up(output, one, tmp_path, name).files  # type: ignore[arg-type]
        assert {f"{name}.png", f"{name}.svg"} <= {file.name for file in files}
    assert (tmp_path / "figure6.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "figure7.svg").read_text("utf-8")


def test_figures_of_several_datasets_and_seeds_are_named_after_them(many: Results, tmp_path: Path) -> None:
    names = {file.name for file in draw_up("capability", many, tmp_path, "figure6").files}
    assert names == {f"figure6.{dataset}.{end}" for dataset in ("first", "second") for end in ("png", "svg")}
    names = {file.name for file in draw_up("hidden_states", many, tmp_path, "figure7").files if file.suffix == ".svg"}
    assert names == {f"figure7.{dataset}.{seed}.svg" for dataset in ("first", "second") for seed in (3, 5)}
    assert all((tmp_path / name).is_file() for name in names)


def test_the_page_distinguishes_datasets_and_marks_means(many: Results) -> None:
    page = report_page([many], 5)
    assert "<figcaption>sst2, first</figcaption>" in page
    assert "<figcaption>sst2, second</figcaption>" in page
    assert "Capability, mean over 2 seeds" in page
    assert "Forgetting: first, mean over 2 seeds" in page
