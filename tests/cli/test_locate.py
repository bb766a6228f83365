"""`factpatch locate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import FACTS, Run, interrupt

pytest.importorskip("matplotlib", reason="needs factpatch[plots]")


@pytest.fixture
def said(tmp_path: Path) -> Path:
    """Facts without a true object: whatever the model says."""
    path = tmp_path / "said.json"
    path.write_text(json.dumps([{**fact, "target_true": None, "neighbors": []} for fact in FACTS[:2]]))
    return path


def test_locate_proposes_layers_and_keeps_what_it_found(
    run: Run, model_directory: Path, said: Path, tmp_path: Path
) -> None:
    out = tmp_path / "trace"
    given = ("locate", model_directory, "--facts", said, "--samples", 2, "--out", out, "--figures", 1)
    result = run(*given, "--kinds", "states, mlp,severed-mlp")
    assert result.exit_code == 0, result.output
    assert "2 of 2 facts are known and traced." in result.output
    assert "last subject token" in result.output
    assert "severed-mlp" in result.output
    record = json.loads((out / "summary.json").read_text())
    layers = record["critical_layers"]["layers"]
    assert ("Proposed: --layers " + ",".join(map(str, layers)) in result.output) == bool(layers)
    assert (out / "facts" / "0000.png").is_file()
    other = run(*given)
    assert other.exit_code == 1
    assert "holds a trace with other settings: kinds" in " ".join(other.output.split())


def test_an_interrupted_trace_says_how_to_continue(
    run: Run, model_directory: Path, said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "trace"
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.lab.tracing.directory.TraceDirectory.add", calls=1)
        result = run("locate", model_directory, "--facts", said, "--samples", 2, "--out", out)
    assert result.exit_code == 130
    assert "the same command continues" in " ".join(result.output.split())
    assert len((out / "facts.jsonl").read_text().splitlines()) == 1
    again = run("locate", model_directory, "--facts", said, "--samples", 2, "--out", out)
    assert again.exit_code == 0, again.output


def test_locate_explains_errors(run: Run, model_directory: Path, facts_file: Path, said: Path) -> None:
    given = ("locate", model_directory, "--facts")
    for options, code, message in (
        ((facts_file,), 1, "knows none of the 3 facts"),
        (("absent.json",), 2, "--facts: "),
        ((said, "--kinds", "mpl"), 2, "--kinds: no such kind as 'mpl'. Did you mean 'mlp'?"),
        ((said, "--window", 9), 2, "--window: window=9: give a number of layers from 1 to 4"),
        ((said, "--size", 9), 2, "--size: size=9: propose from 1 to 4 layers"),
        ((said, "--noise", 0), 2, "--noise: noise=0: give standard deviations above 0"),
        ((said, "--out", said), 2, "is a file"),
    ):
        result = run(*given, *options)
        assert result.exit_code == code, result.output
        assert message in " ".join(result.output.split())


def test_one_fact_is_too_few_for_an_interval(run: Run, model_directory: Path, said: Path) -> None:
    result = run("locate", model_directory, "--facts", said, "--limit", 1, "--samples", 2, "--seed", 1)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "Proposed: --layers 1 " in text
    assert "one fact says nothing about others; give at least 2" in text
