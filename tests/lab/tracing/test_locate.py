"""From prompts to a directory: interrupted and resumed, refused where it is not ours, and what it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from tests.lab.tracing.made import PROMPTS
from tests.models import NUM_LAYERS, tiny

from factpatch.lab.tracing import Prompt, Summary, TraceSettings, locate
from factpatch.lab.tracing.averages import POSITIONS
from factpatch.lab.tracing.directory import TraceDirectory
from factpatch.lab.tracing.figures import average_curves, average_heat_maps, fact_heat_maps

SETTINGS = TraceSettings(samples=2, window=2)
pytest.importorskip("matplotlib", reason="needs factpatch[plots]")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than tracing tiny models."""
    monkeypatch.setattr("factpatch.lab.tracing.directory.save_figure", lambda *given: [])


def same(one: Summary, other: Summary) -> None:
    assert [trace.prompt for trace in one.traces] == [trace.prompt for trace in other.traces]
    for trace, twin in zip(one.traces, other.traces, strict=True):
        torch.testing.assert_close(trace.restored, twin.restored)
    assert one.asked == other.asked


def test_unknown_prompts_are_left_out_and_counted() -> None:
    lm = tiny("llama")
    found = locate(lm, [*PROMPTS[:2], Prompt("Rome is", "Rome", "unheard of")], SETTINGS)
    assert found.asked == 3
    assert [one.index for one in found.traces] == [0, 1]
    assert list(found.averages) == ["states", "mlp", "attention"]
    assert found.critical is not None
    assert len(found.critical.layers) in (0, 1)
    assert locate(lm, PROMPTS[:1], TraceSettings(("states",), samples=2)).critical is None


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_trace_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    whole = locate(lm, PROMPTS, SETTINGS, directory=tmp_path / "whole")
    add = TraceDirectory.add

    def interrupted(self: TraceDirectory, *given: Any) -> None:
        if (self.path / "facts.jsonl").stat().st_size:
            raise KeyboardInterrupt
        add(self, *given)

    monkeypatch.setattr(TraceDirectory, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locate(lm, PROMPTS, SETTINGS, directory=tmp_path / "again")
    lines = tmp_path / "again" / "facts.jsonl"
    assert len(lines.read_text().splitlines()) == 1
    with lines.open("a") as file:
        file.write('{"index": 1, "prompt"')  # what a process that was killed may leave
    monkeypatch.setattr(TraceDirectory, "add", add)
    again = locate(lm, PROMPTS, SETTINGS, directory=tmp_path / "again")
    same(whole, again)
    assert len(lines.read_text().splitlines()) == len(PROMPTS)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "again")]
    assert summaries[0].keys() == summaries[1].keys()


@pytest.mark.usefixtures("undrawn")
def test_a_finished_trace_is_not_traced_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    first = locate(lm, PROMPTS, SETTINGS, directory=tmp_path / "trace")
    monkeypatch.setattr("factpatch.lab.tracing.trace._trace_batch", None)
    same(first, locate(lm, PROMPTS, SETTINGS, directory=tmp_path / "trace"))


@pytest.mark.usefixtures("undrawn")
def test_another_trace_and_another_directory_are_refused(tmp_path: Path) -> None:
    lm = tiny("llama")
    folder = tmp_path / "trace"
    locate(lm, PROMPTS, SETTINGS, directory=folder)
    for given, settings, differing in (
        (PROMPTS, TraceSettings(samples=3, window=2), "samples is 2 there and 3 here"),
        (PROMPTS[:2], SETTINGS, "prompts is"),
    ):
        with pytest.raises(ValueError, match=f"holds a trace with other settings: {differing}"):
            locate(lm, given, settings, directory=folder)
    with torch.no_grad():
        lm.weight(1).mul_(2)
    with pytest.raises(ValueError, match="other settings: weights is"):
        locate(lm, PROMPTS, SETTINGS, directory=folder)
    with pytest.raises(ValueError, match="is not empty and not the directory of a trace"):
        locate(lm, PROMPTS, SETTINGS, directory=tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_one_process_at_a_time_and_no_damaged_lines(tmp_path: Path) -> None:
    lm = tiny("llama")
    folder = tmp_path / "trace"
    locate(lm, PROMPTS, SETTINGS, directory=folder)
    with FileLock(folder / "lock"), pytest.raises(ValueError, match="another process is using this trace"):
        locate(lm, PROMPTS, SETTINGS, directory=folder)
    lines = (folder / "facts.jsonl").read_text().splitlines()
    (folder / "facts.jsonl").write_text("\n".join([lines[0], "{}", lines[2]]) + "\n")
    with pytest.raises(ValueError, match="line 2 is damaged"):
        locate(lm, PROMPTS, SETTINGS, directory=folder)


def test_a_trace_writes_data_and_figures(tmp_path: Path) -> None:
    lm = tiny("llama")
    found = locate(lm, PROMPTS, SETTINGS, directory=tmp_path / "trace", figures=1)
    folder = tmp_path / "trace"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {"lock"}
    drawn = {f"{name}.{suffix}" for name in ("heat_maps", "curves", "facts/0000") for suffix in ("png", "svg")}
    assert names == {"trace.json", "facts.jsonl", "summary.json", "averages.csv"} | drawn
    assert (folder / "heat_maps.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "averages.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(POSITIONS) * NUM_LAYERS
    record = json.loads((folder / "summary.json").read_text())
    for row in rows:
        mean = record["averages"][row["kind"]][row["position"]][int(row["layer"])]
        assert (row["effect"] == "") == (mean["value"] is None)
        if mean["value"] is not None:
            assert float(row["effect"]) == mean["value"]
    assert (record["asked"], record["traced"]) == (3, 3)
    assert record["critical_layers"]["reason"] == found.critical.reason if found.critical else False


def test_figures_show_what_was_found() -> None:
    lm = tiny("llama")
    found = locate(lm, [Prompt("Rome $1 is $2", "$1")], SETTINGS)
    (one,) = found.traces
    axes = fact_heat_maps(one).axes
    for axis, (kind, table) in zip(axes, one.restored.items(), strict=False):
        assert axis.images[0].get_array().tolist() == table.tolist(), kind
    starred = [label.get_text().endswith("*") for label in axes[0].get_yticklabels()]
    assert starred == [index in one.subject for index in range(len(one.tokens))]
    assert [len(axis.images) for axis in average_heat_maps(found.averages).axes[:3]] == [1, 1, 1]
    curves = average_curves(found.averages, found.critical).axes[0]
    assert {line.get_label() for line in curves.lines} >= set(POSITIONS)
