"""Threads of the command sleep while they wait for each other, unless the environment says how they are to wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_sleep_unless_they_are_told_otherwise(
    given: dict[str, str], expected: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.py"
    file.write_text("import os, sys\nprint(os.environ['OMP_WAIT_POLICY'])\nsys.exit()\n", "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-m", "factpatch", "--methods", file, "methods"],
        capture_output=True,
        text=True,
        env={**environment, **given},
        check=False,
    )
    assert done.stdout.split() == [expected], done.stdout + done.stderr
