"""`--chat`: through `edit` into the patch and the report, and from the patch back into `verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run

from factpatch.data import load_facts
from factpatch.evaluation.verify import verify
from factpatch.model.loading import load_language_model
from factpatch.patch.patch import Patch


@pytest.fixture
def edit_chat(edit_arguments: list[object], chat_model_directory: Path) -> list[object]:
    return ["edit", chat_model_directory, *edit_arguments[2:]]


def readings(report: Path, side: str) -> list[float]:
    found: dict[str, Any] = json.loads(report.read_text())
    rows = found["facts"]["rows"] if "rows" in found["facts"] else found["facts"]
    return [row[side]["nll_new"] for row in rows]


def test_an_edit_in_a_chat_is_recorded_and_verified_in_a_chat(
    run: Run, edit_chat: list[object], chat_model_directory: Path, facts_file: Path, tmp_path: Path
) -> None:
    out, report, again = tmp_path / "p.safetensors", tmp_path / "r.json", tmp_path / "v.json"
    result = run.ok(*edit_chat, "--chat", "--out", out, "--report", report)
    assert "im_start" not in result.output
    assert Patch.load(out).chat
    assert json.loads(report.read_text())["settings"]["chat"] is True

    lm = load_language_model(chat_model_directory, chat=True)
    facts = [load_facts(facts_file)[index] for index in (1, 2)]
    asked = [reading.nll_new for reading in verify(lm, None, facts, answers=False).after]
    assert readings(report, "before") == pytest.approx(asked)

    ask = ("verify", chat_model_directory, "--facts", facts_file, "--report", again)
    result = run.ok(*ask, "--patch", out)
    assert json.loads(again.read_text())["chat"] is True
    for side in ("before", "after"):
        assert readings(again, side) == pytest.approx(readings(report, side), rel=1e-4)

    run.ok(*ask, "--chat")
    assert readings(again, "after") == pytest.approx(asked)
    run.ok(*ask)
    assert json.loads(again.read_text())["chat"] is False
    assert readings(again, "after") != pytest.approx(asked, rel=1e-3)
    shown = run("show", out).output
    assert "chat         yes" in shown


def test_a_plain_patch_can_be_asked_in_a_chat(
    run: Run, edit_chat: list[object], chat_model_directory: Path, facts_file: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "p.safetensors", tmp_path / "v.json"
    run.ok(*edit_chat, "--out", out, "--no-verify")
    assert not Patch.load(out).chat
    ask = ("verify", chat_model_directory, "--facts", facts_file, "--report", report, "--patch", out)
    for extra in ((), ("--chat",)):
        run.ok(*ask, *extra)
        assert json.loads(report.read_text())["chat"] is bool(extra)


@pytest.mark.parametrize("command", ["edit", "verify"])
def test_a_model_without_a_chat_template_is_refused(
    run: Run, edit_arguments: list[object], model_directory: Path, facts_file: Path, tmp_path: Path, command: str
) -> None:
    arguments = edit_arguments if command == "edit" else ["verify", model_directory, "--facts", facts_file]
    extra = ["--out", tmp_path / "p"] if command == "edit" else []
    output = run.refused("--chat: chat=True: the tokenizer", *arguments, *extra, "--chat")
    assert "has no chat template" in output
    assert not (tmp_path / "p").exists()


def test_composing_edits_of_a_chat_with_others_is_noted(
    run: Run, edit_chat: list[object], facts_file: Path, tmp_path: Path
) -> None:
    facts = json.loads(facts_file.read_text())
    plain, chat, both = (tmp_path / f"{name}.safetensors" for name in "pcb")
    for fact, out, options in ((facts[0], plain, []), (facts[1], chat, ["--chat"])):
        facts_file.write_text(json.dumps([fact]))
        run.ok(*edit_chat, *options, "--out", out, "--no-verify")
    result = run.ok("compose", plain, chat, "--out", both)
    assert f"{chat}: edited in a chat, unlike the rest" in result.output
    assert "edited in a chat" not in run("compose", chat, "--out", both).output
