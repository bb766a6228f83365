"""`factpatch demo`, on a tiny model instead of the embedded one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Run
from tests.models import tiny

from factpatch.cli import checks
from factpatch.editor import Editor
from factpatch.presets.preset import Match, Preset


@pytest.fixture(autouse=True)
def tiny_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"memit-blue": {"target.steps": 3}}
    preset = Preset("tiny", Match("llama", 4, 32), [1, 2], "made up", shipped_corpus=True, methods=steps)
    monkeypatch.setattr(checks, "load_model", lambda model, device, dtype: tiny("llama"))
    monkeypatch.setattr("factpatch.recipe.preset_for", lambda lm, given: preset)


def test_the_demo_edits_and_undoes_to_the_last_bit(run: Run, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    result = run.ok("demo", "--facts", 2, "--report", report)
    for expected in ("Editing 2 facts with memit-blue", "it says now", "of 4 paraphrases agree", "bit-identical"):
        assert expected in result.output
    found = json.loads(report.read_text())
    assert found["model"] == "smollm2-135m"
    assert found["undo"]["before"] == found["undo"]["undone"] != found["undo"]["edited"]


def test_an_undo_that_leaves_something_behind_fails_the_demo(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Editor, "undo", lambda self: None)
    run.refused("bit for bit", "demo", "--facts", 1, code=1)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--method", "memitt"], "--method: unknown method 'memitt'"),
        (["--facts", "1000"], "--facts 1000: the demo has"),
        (["--report", "nowhere/r.json"], "--report nowhere/r.json"),
    ],
)
def test_a_bad_option_is_named(run: Run, extra: list[str], message: str) -> None:
    run.refused(message, "demo", *extra)
