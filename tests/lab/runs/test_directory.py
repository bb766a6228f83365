"""What the record of a run must be for it to be opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("pandas", reason="needs the extra `runs`")

from tests.lab.runs.forged import forged_run
from tests.lab.runs.test_outcomes import facts

from factpatch.lab.runs.directory import RunDirectory, RunError


def test_a_run_of_a_newer_factpatch_is_not_called_damaged(tmp_path: Path) -> None:
    """Even if its configuration has fields that nobody here knows."""
    path = forged_run(tmp_path / "forged", facts(2))
    about = json.loads((path / "run.json").read_text("utf-8"))
    about["config"]["planet"] = "Mars"
    (path / "run.json").write_text(json.dumps({**about, "format": 2}), "utf-8")
    with pytest.raises(RunError, match="of format 2, which a newer factpatch wrote; upgrade"):
        RunDirectory(path)
    (path / "run.json").write_text(json.dumps(about), "utf-8")
    with pytest.raises(RunError, match="planet is 'Mars': there is no such field"):
        RunDirectory(path)
