"""The house: imports point down, nothing goes in circles, and what only reads does not wait for PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import factpatch

ROOT = Path(factpatch.__file__).parent
# From the top down. The longest name that a module begins with says where it stands.
ORDER = (
    "cli", "web", "lab", "edit_report", "session", "editor", "edited", "statistics.prepared", "journal", "recipe",
    "corpus", "evaluation", "statistics", "values", "presets", "methods", "strategies",
    "patch", "export", "data", "model", "facts", "pool", "support",
)  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("factpatch"):
            yield from (f"{node.module}.{name.name}" for name in node.names)
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("factpatch"))


def arrows() -> dict[str, set[str]]:
    known = modules()
    found = {}
    for name, path in known.items():
        names = {target.removeprefix("factpatch").removeprefix(".") for target in imported(path)}
        found[name] = {target for target in names if target and target in known and target != name}
    return found


def rank(module: str) -> int:
    places = [place for place in ORDER if module == place or module.startswith(f"{place}.")]
    assert places, f"{module}: where does it stand?"
    return ORDER.index(max(places, key=len))


def test_imports_point_down() -> None:
    faces = {"", "__main__"}  # the package's face and its script import what they show
    wrong = [
        f"{name} imports {target}"
        for name, targets in arrows().items()
        if name not in faces
        for target in targets
        if rank(target) < rank(name)
    ]
    assert not wrong


def test_imports_go_in_no_circle() -> None:
    left = {name: set(targets) for name, targets in arrows().items()}
    while True:
        ready = {name for name, targets in left.items() if not targets & left.keys()}
        if not ready:
            break
        left = {name: targets for name, targets in left.items() if name not in ready}
    assert not left


def test_the_library_knows_nothing_of_the_laboratory_and_of_the_command_line() -> None:
    above = ("lab", "web", "cli")
    for name, targets in arrows().items():
        if not name.startswith((*above, "__main__")):
            assert not [target for target in targets if target.startswith(above)], name
        if name.startswith("lab"):
            assert not [target for target in targets if target.startswith(("cli", "web"))], name


def test_few_files_lie_loose() -> None:
    loose = [path.name for path in ROOT.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(loose) <= 9


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{name}.{node.name}"
        for name, path in modules().items()
        if not name.startswith("cli")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if (node.end_lineno or 0) - node.lineno + 1 > 60
    ]
    assert not long


LOADED = """
import sys
from typer.testing import CliRunner
from factpatch.cli.main import app
for arguments in {commands}:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
    heavy = {{"torch", "transformers"}} & set(sys.modules)
    assert not heavy, f"{{arguments}} loaded {{heavy}}"
"""


def test_what_only_reads_loads_neither_torch_nor_transformers() -> None:
    old = Path(__file__).parent / "formats" / "before_0.2"
    commands = [
        ["--help"], ["edit", "--help"], ["methods", "--settings"], ["presets"], ["presets", "gpt-j-6b"], ["models"],
        ["data", "list"], ["show", str(old / "patch.safetensors")], ["log", str(old / "session"), "--facts"],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(commands=commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    assert {name for name in factpatch.__all__ if not hasattr(factpatch, name)} == set()
    with pytest.raises(AttributeError, match="Editr"):
        _ = factpatch.Editr
