"""Runs whose methods edit again what does not hold, also after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import QUICK, interrupt

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from factpatch.lab.runs.results import read_results
from factpatch.session import Session

STIFF = {"name": "memit", "settings": {**QUICK, "solver.weight": 1e9}}
"""Changes nothing, so that nothing holds."""


def row(directory: Path) -> Session:
    return Session(directory / "rows" / "three" / "0" / "memit")


def test_a_row_is_mended_after_its_last_batch_and_measured_before_and_after(
    begin: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    evaluate = {"perplexity": True, "generation": False, "curve": {"at": 2, "facts": 1, "generation": False}}
    mended = {**config, "methods": [{**STIFF, "mend": 2}], "evaluate": evaluate}
    result = begin(mended, "whole")
    assert result.exit_code == 0, result.output
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert [batch.facts for batch in row(whole).finished] == [2, 1, 2, 2]
    rows = read_results(whole).rows
    of_method = rows[rows["label"] == "memit"]
    assert set(of_method["edits"]) == {2, 3}  # a fact that is edited again is not another
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched, "factpatch.session.Session._save", calls=3)
        assert begin(mended, "cut").exit_code == 130
    assert len(row(cut).finished) == 3
    assert begin(mended, "cut").exit_code == 0
    assert [batch.sha256 for batch in row(cut).finished] == [batch.sha256 for batch in row(whole).finished]
    assert read_results(cut).rows.equals(rows)


def test_a_rival_is_not_mended(begin: Any, config: dict[str, Any]) -> None:
    result = begin({**config, "methods": [{"name": "locft-bf", "mend": 1}]}, "rival")
    assert result.exit_code == 2
    assert "mend=1: locft-bf is no editing method, and has none; leave it out" in " ".join(result.output.split())


def test_a_row_that_cannot_be_mended_is_measured_as_it_is(
    begin: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mended = {**config, "methods": [{**STIFF, "mend": 1}], "evaluate": {"perplexity": True, "generation": False}}

    def fails(*_: object, **__: object) -> None:
        raise FloatingPointError("the shift of layer 1 is not finite")

    monkeypatch.setattr("factpatch.session.Session.mend", fails)
    result = begin(mended, "run")
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "run" / "rows" / "three" / "0" / "memit" / "row.json").read_text())
    assert "failed" not in kept
    assert kept["stopped"] == {"edited": 3, "mending": True, "reason": "the shift of layer 1 is not finite"}
    rows = read_results(tmp_path / "run").rows
    assert 3 in set(rows[rows["label"] == "memit"]["edits"])
