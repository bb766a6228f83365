"""Methods of one's own, which a file defines, through the commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import QUICK, Run
from tests.models import tiny

from factpatch import METHODS, HiddenState, Recipe, Ridge, register_method
from factpatch.lab.runs.config import MethodConfig
from factpatch.lab.runs.directory import RunDirectory, RunError
from factpatch.lab.runs.reproductions import blue_pairs
from factpatch.lab.runs.results import read_results
from factpatch.presets import own_methods
from factpatch.presets.own_methods import own_settings, register_methods
from factpatch.recipe import choose

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "add_a_method.py"


def forget() -> None:
    """Know what a new process knows."""
    for name in own_methods._OWN:
        del METHODS[name]
    own_methods._OWN.clear()


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    forget()


def test_a_method_in_a_file_edits_by_its_name(run: Run, edit_arguments: list[object], tmp_path: Path) -> None:
    session = tmp_path / "session"
    options = ("--method", "emmet-blue", "--session", session, "--no-verify")
    run.refused("unknown method 'emmet-blue'", *edit_arguments, *options)
    run.ok("--methods", EXAMPLE, *edit_arguments, *options)
    forget()
    assert "emmet-blue" in run.ok("log", session).output
    fact = "1.1"
    run.refused("A method of your own needs `factpatch --methods", "undo", session, "--fact", fact)
    shown = run.ok("--methods", EXAMPLE, "undo", session, "--fact", fact).output
    assert f"factpatch --methods {EXAMPLE} edit --resume {session}" in shown.replace("\n", "")


def test_a_run_compares_it_with_others(begin: Any, run: Run, config: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra `runs`")
    register_methods(EXAMPLE)
    config.update(
        methods=[config["methods"][0], {"name": "emmet", "settings": QUICK}],
        evaluate={"perplexity": False, "generation": False},
    )
    done = begin(config)
    assert done.exit_code == 0, done.output
    assert read_results(tmp_path / "out").labels == ["memit", "emmet"]
    refused = begin(config, "shared", "--workers", "2")
    assert refused.exit_code == 2
    assert "other processes do not know emmet" in refused.output
    assert not (tmp_path / "shared").exists()
    changed = tmp_path / "changed.py"
    changed.write_text(EXAMPLE.read_text("utf-8") + "# Changed.\n", "utf-8")
    register_methods(changed)
    with pytest.raises(RunError, match="its inputs have changed since the run began: methods: emmet"):
        RunDirectory(tmp_path / "out").check_inputs()
    forget()
    assert "A method of your own needs" in run("report", tmp_path / "out", "--out", tmp_path / "page.html").output


def test_what_blue_improves_is_known_of_them_too() -> None:
    register_methods(EXAMPLE)
    assert blue_pairs()["emmet-blue"] == "emmet"


def test_a_file_may_register_its_methods_itself_and_be_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import factpatch\nfrom dataclasses import replace\n"
        "mine = replace(factpatch.METHODS['memit'], name='mine')\nfactpatch.register_method(mine)\n",
        "utf-8",
    )
    for _ in range(2):
        assert [method.name for method in register_methods(path)] == ["mine"]


def test_what_a_method_says_itself_stays_and_the_rest_is_of_the_preset() -> None:
    lm = tiny("llama")
    one = replace(METHODS["memit"], name="mine", target=HiddenState(clamp=2.0), solver=Ridge(weight=3000.0))
    register_method(one)
    assert own_settings("mine") == {"target.clamp", "solver.weight"}
    assert own_settings("pmet") == frozenset()
    chosen, usual = (choose(Recipe(method=name, effort="quick"), lm) for name in ("mine", "memit"))
    assert (chosen.method.solver, chosen.underived, usual.underived) == (one.solver, False, True)
    assert chosen.method.target == replace(usual.method.target, clamp=2.0)
    given = choose(Recipe(method="mine", settings={"solver.weight": 5}), lm)
    assert given.method.solver.weight == 5


def test_a_rival_keeps_its_name() -> None:
    register_method(replace(METHODS["memit"], name="lora"))
    with pytest.raises(ValueError, match="this is a rival's name too"):
        MethodConfig(name="lora")


def test_what_is_no_method_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match="method=3: is no factpatch"):
        register_method(3)  # type: ignore[arg-type]  # on purpose


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
        (
            "own.py",
            "from dataclasses import replace\nfrom factpatch import METHODS\n"
            "one = replace(METHODS['memit'], name='mine')\nother = replace(METHODS['rect'], name='mine')\n",
            "two of its methods are named 'mine'; give each a name of its own",
        ),
    ],
)
def test_what_is_no_method_is_refused(run: Run, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text, "utf-8")
    run.refused(message, "--methods", path, "methods")


def test_an_error_in_the_file_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("from factpatch import Methud\n", "utf-8")
    run.refused("broken.py: line 1: ImportError: ", "--methods", path, "methods")
    path.write_text("import factpatch\n\ndef method(:\n", "utf-8")
    run.refused("broken.py: line 3: SyntaxError: ", "--methods", path, "methods")
    assert not any(name.startswith("own_methods.broken_") for name in sys.modules)
