"""README, docs and release files: links lead somewhere, commands and imports exist, versions agree."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer.main
import yaml

import factpatch
from factpatch.cli.main import app
from factpatch.model.architectures import ARCHITECTURES, TEXT_MODELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))}
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"[a-z]+:")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page].read_text("utf-8"), re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files_and_headings(page: str) -> None:
    for link in LINK.findall(PAGES[page].read_text("utf-8")):
        if EXTERNAL.match(link):
            continue
        name, _, anchor = link.partition("#")
        path = (PAGES[page].parent / name).resolve() if name else PAGES[page]
        assert path.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(path), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_documents_name_exist(page: str) -> None:
    places = (ROOT, ROOT / "src/factpatch")
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.\w+)`", PAGES[page].read_text("utf-8")):
        if any((place / name.split("/")[0]).is_dir() for place in places):
            assert any((place / name).exists() for place in places), f"{page}: {name}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")])
def test_commands_and_options_in_the_documents_exist(page: str) -> None:
    whole = typer.main.get_command(app)
    commands = whole.commands  # type: ignore[attr-defined]
    for line in "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["factpatch"] or words[1].isupper():
            continue
        places = [place for place, word in enumerate(words) if word in commands]
        assert places, f"{page}: {line}"
        command, first = commands[words[places[0]]], places[0] + 1
        if hasattr(command, "commands"):
            command, first = command.commands[words[first]], first + 1
        for some, given in ((whole, words[: places[0]]), (command, words[first:])):
            known = {name for parameter in some.params for name in parameter.opts + parameter.secondary_opts}
            assert {word for word in given if word.startswith("--")} <= known, f"{page}: {line}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_in_the_documents_compiles_and_imports_what_exists(page: str) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("factpatch"):
                module = import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page}: {ast.unparse(node)}"


@pytest.mark.parametrize("address", ["", "https://example.org/blob/v1/"])
def test_the_readme_of_a_package_index_has_no_relative_link(address: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = runpy.run_path(str(ROOT / "tools" / "dist.py"))["for_index"](readme, address)
    assert all(EXTERNAL.match(link) for link in LINK.findall(shown))
    assert ("https://example.org/blob/v1/docs/methods.md" in shown) == bool(address)
    assert shown.count("\n") == readme.count("\n")


def test_the_version_is_the_same_everywhere() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == factpatch.__version__
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == factpatch.__version__


def test_the_page_of_models_names_every_family_and_nothing_else() -> None:
    section = PAGES["docs/models.md"].read_text("utf-8").split("## Families\n")[1].split("\n###")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    named = set(re.findall(r"`([\w-]+)`", "".join(row.split("|", 2)[2] for row in rows)))
    assert named == {*ARCHITECTURES, *TEXT_MODELS}
