"""Methods of one's own, which a file defines, through the commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import QUICK, Run

from factpatch import METHODS
from factpatch.lab.runs.results import read_results

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "add_a_method.py"


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> Iterator[None]:
    known = set(METHODS)
    yield
    for name in METHODS.keys() - known:
        del METHODS[name]


def test_a_method_in_a_file_edits_by_its_name(run: Run, edit_arguments: list[object], tmp_path: Path) -> None:
    session = tmp_path / "session"
    options = ("--method", "emmet-blue", "--session", session, "--no-verify")
    run.refused("unknown method 'emmet-blue'", *edit_arguments, *options)
    run.ok("--methods", EXAMPLE, *edit_arguments, *options)
    assert "emmet-blue" in run.ok("log", session).output
    run.ok("undo", session, "--to", 1)


def test_a_run_compares_it_with_others(begin: Any, run: Run, config: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `runs`")
    run.ok("--methods", EXAMPLE, "methods")
    config.update(
        methods=[config["methods"][0], {"name": "emmet", "settings": QUICK}],
        evaluate={"perplexity": False, "generation": False},
    )
    done = begin(config)
    assert done.exit_code == 0, done.output
    assert read_results(tmp_path / "out").labels == ["memit", "emmet"]
    refused = begin(config, "shared", "--workers", "2")
    assert refused.exit_code == 1
    assert "other processes do not know emmet" in refused.output


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own.py", None, "own.py: No such file or directory"),
        ("own.txt", "", "is no Python file; give one whose name ends in .py"),
        ("own.py", "from factpatch import METHODS\nmemit = METHODS['memit']\n", "none of its global variables is a"),
        (
            "own.py",
            "from dataclasses import replace\nfrom factpatch import METHODS\n"
            "mine = replace(METHODS['memit'], source='mine')\n",
            "method='memit': the package has a method of that name; give yours another",
        ),
    ],
)
def test_what_is_no_method_is_refused(run: Run, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text, "utf-8")
    run.refused(message, "--methods", path, "methods")


def test_an_error_in_the_file_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("from factpatch import Methud\n", "utf-8")
    assert "Methud" in run.refused("error: ", "--methods", path, "methods", code=1)
