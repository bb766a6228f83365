"""`factpatch edit --session` and `--resume`, `log`, and `undo --to`: interrupted anywhere, and given anything."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import FACTS, Run, editing, interrupt
from tests.processes import command, killed, start, wait
from tests.support.test_files_atomic import largest_file
from tests.test_session import relinked
from transformers import AutoModelForCausalLM

from factpatch.patch.patch import Patch
from factpatch.session import Session

MORE: list[dict[str, Any]] = [
    {"prompt": "{} plays the sport of", "subject": "Messi", "target_new": "basketball"},
    {"prompt": "{} works in the field of", "subject": "Ada Lovelace", "target_new": "football"},
]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "session"


@pytest.fixture
def arguments(edit_arguments: list[object], directory: Path) -> list[object]:
    """A session of two batches."""
    return [*edit_arguments, "--session", directory, "--no-verify"]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    path = tmp_path / "more.json"
    path.write_text(json.dumps(MORE), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, corpus: Path) -> dict[str, str]:
    """Two sessions that tests copy, and the places that bad commands name; nothing of it may change."""
    place = tmp_path_factory.mktemp("sessions")
    facts = place / "facts.json"
    facts.write_text(json.dumps(FACTS))
    run = Run(tmp_path_factory.mktemp("cache"))
    edit = [*editing(model_directory, facts, corpus), "--no-verify"]
    done, unfinished = place / "done", place / "unfinished"
    run.ok(*edit, "--session", done)
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched, "factpatch.editor.optimize_values", calls=2)
        message = f"1 of 2 batches kept; continue with: factpatch edit --resume {unfinished}"
        run.refused(message, *edit, "--session", unfinished, code=130)
    names = {"done": str(done), "unfinished": str(unfinished), "facts": str(facts), "model": str(model_directory)}
    return {**names, "edit": "\0".join(map(str, edit))}


@pytest.fixture
def unfinished(sessions: dict[str, str], directory: Path) -> Path:
    """A session that was interrupted in its second batch."""
    return shutil.copytree(sessions["unfinished"], directory)


@pytest.fixture
def session(sessions: dict[str, str], directory: Path) -> Path:
    """A session of two batches, both finished."""
    return shutil.copytree(sessions["done"], directory)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "lock"}


def patches(directory: Path) -> list[bytes]:
    return [(directory / batch.patch).read_bytes() for batch in Session(directory).finished]


def test_what_does_not_hold_is_edited_again_also_after_an_interruption(
    run: Run, edit_arguments: list[object], directory: Path, tmp_path: Path
) -> None:
    """Settings that change nothing hold nothing, so each round edits both facts in force again."""
    edit = [*edit_arguments, "--set", "solver.weight=1e9", "--mend", 2]
    plain, out, report = (tmp_path / name for name in ("plain", "out", "r.json"))
    result = run.ok(*edit, "--out", plain, "--report", report, "--verify", 1)
    assert "Edited more than once: 2 facts" in " ".join(result.output.split())
    found = json.loads(report.read_text())
    assert found["facts"]["batches"] == [2, 1, 2, 2]
    assert (found["facts"]["number"], found["facts"]["in_force"], len(found["repeated"])) == (3, 2, 2)
    assert [fact["id"] for fact in found["superseded"]] == ["darrieux"]
    with pytest.MonkeyPatch.context() as patched:  # in the second round, at its second layer
        interrupt(patched, "factpatch.editor.optimize_values", calls=7)
        message = f"3 of 4 batches kept; continue with: factpatch edit --resume {directory}"
        run.refused(message, *edit, "--session", directory, "--out", out, "--no-verify", code=130)
    run.ok("edit", "--resume", directory)
    assert out.read_bytes() == plain.read_bytes()
    assert [batch.facts for batch in Session(directory).finished] == [2, 1, 2, 2]


@pytest.mark.parametrize("method", ["memit-blue", "prune"])
def test_a_session_gives_the_patch_and_report_of_a_plain_edit_and_writes_the_patch_alone_again_when_asked(
    run: Run, edit_arguments: list[object], directory: Path, tmp_path: Path, method: str
) -> None:
    plain, out, report, again = (tmp_path / name for name in ("plain", "out", "r.json", "again"))
    edit = [*edit_arguments, "--method", method]
    run.ok(*edit, "--out", plain, "--no-verify")
    options = ("--report", report, "--save-model", tmp_path / "edited", "--seed", 0)
    result = run.ok(*edit, "--session", directory, "--out", out, *options)
    assert f"Session: {directory} (3 facts; factpatch log {directory} shows them)" in result.output
    assert out.read_bytes() == plain.read_bytes()
    found = json.loads(report.read_text())
    assert found["facts"]["batches"] == [2, 1]
    assert [fact["id"] for fact in found["superseded"]] == ["darrieux"]
    assert found["efficacy"]["after"] is not None
    assert all(len(batch.exact) == batch.facts for batch in Session(directory).finished)

    before = {**files(directory), str(report): report.read_bytes()}
    result = run.ok("edit", "--resume", directory, "--out", again)
    assert again.read_bytes() == out.read_bytes()
    assert "efficacy" in result.output
    assert {**files(directory), str(report): report.read_bytes()} == before


def test_paths_settings_and_outputs_hold_when_a_session_is_resumed_elsewhere(
    run: Run, model_directory: Path, corpus: Path, facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    shutil.copytree(model_directory, work / "tiny")
    shutil.copy(corpus, work / "corpus.txt")
    arguments = [
        "edit", "tiny", "--facts", facts_file, "--layers", "1,2", "--set", "target.steps=5", "--set",
        "solver.weight=1e-1", "--corpus", "corpus.txt", "--batch-size", 2, "--seed", 3, "--method", "memit",
        "--precision", "exact",
    ]  # fmt: skip
    monkeypatch.chdir(work)
    result = run.ok(*arguments, "--session", "whole", "--out", "whole.safetensors")
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.editor.optimize_values", calls=1)
        result = run(
            *arguments, "--session", "s", "--out", "p.safetensors", "--save-model", "edited", "--report", "r.json"
        )
    assert result.exit_code == 130, result.output
    monkeypatch.chdir(tmp_path)
    facts_file.unlink()
    result = run.ok("edit", "--resume", "work/s")
    assert patches(work / "s") == patches(work / "whole")
    assert (work / "p.safetensors").read_bytes() == (work / "whole.safetensors").read_bytes()
    patch = Patch.load(work / "p.safetensors")
    assert (patch.seed, patch.settings["target"]["steps"], patch.settings["solver"]["weight"]) == (3, 5, 0.1)
    assert patch.settings["precision"] == "exact"
    assert json.loads((work / "r.json").read_text())["facts"]["number"] == 3
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    patch.apply(base)
    edited = AutoModelForCausalLM.from_pretrained(work / "edited").state_dict()
    assert all(torch.equal(tensor, edited[name]) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("target", ["factpatch.editor.Editor.save_pretrained", "factpatch.edit_report.verify"])
def test_outputs_that_were_not_written_after_the_last_batch_are_written_on_resuming(
    run: Run,
    edit_arguments: list[object],
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    out, saved, report = tmp_path / "out", tmp_path / "edited", tmp_path / "r.json"
    with monkeypatch.context() as patched:
        # The second verification comes after the edit and after the model was saved.
        interrupt(patched, target, calls=int("verify" in target))
        result = run(*edit_arguments, "--session", directory, "--out", out, "--save-model", saved, "--report", report)
    assert result.exit_code == 130, result.output
    assert "2 of 2 batches kept; continue with" in result.output
    was = out.read_bytes()
    written = saved.exists()
    out.unlink()
    result = run.ok("edit", "--resume", directory)
    assert (f"{saved} exists already, so the model is not written again" in result.output) == written
    assert out.read_bytes() == was
    assert (saved / "config.json").is_file()
    assert json.loads(report.read_text())["facts"]["number"] == 3
    result = run.ok("edit", "--resume", directory)
    assert "Model:" not in result.output


def planned_elsewhere(session: Path, **outputs: object) -> None:
    """Rewrite the journal, with all checksums, as that of somebody who wants an output in a certain place."""
    journal = session / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]["outputs"].update({name: str(value) for name, value in outputs.items()})
    journal.write_bytes(relinked(lines))


@pytest.mark.parametrize("name", ["out", "report"])
def test_a_resumed_session_replaces_no_file_that_is_not_its_own_unless_told_to(
    run: Run, unfinished: Path, tmp_path: Path, name: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    planned_elsewhere(unfinished, **{name: precious})
    before = files(unfinished)
    run.refused(f"repeat --{name} {precious}; or choose another place", "edit", "--resume", unfinished, "--no-verify")
    assert precious.read_text() == "precious"
    assert files(unfinished) == before
    run.ok("edit", "--resume", unfinished, "--no-verify", f"--{name}", tmp_path / "chosen")
    assert (tmp_path / "chosen").is_file()
    assert precious.read_text() == "precious"


def test_a_resumed_session_replaces_its_own_patch_and_not_that_of_another(
    run: Run, unfinished: Path, edit_arguments: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    planned_elsewhere(unfinished, out=out)
    facts = tmp_path / "others.json"
    facts.write_text(json.dumps(MORE))
    edit_arguments[edit_arguments.index("--facts") + 1] = facts
    run.ok(*edit_arguments, "--out", out, "--no-verify")
    run.refused("there is a file that it has not written", "edit", "--resume", unfinished)
    Session(unfinished).patch().save(out)
    result = run.ok("edit", "--resume", unfinished, "--no-verify")
    assert f"as planned in {unfinished}: --out {out}" in result.output
    assert Patch.load(out).states() == Session(unfinished).patch().states()


@pytest.mark.parametrize(("name", "value"), [("out", 5), ("report", ["x"]), ("save_model", True), ("verify", 5)])
def test_an_output_of_the_wrong_type_is_named(run: Run, unfinished: Path, name: str, value: object) -> None:
    journal = unfinished / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]["outputs"][name] = value
    journal.write_bytes(relinked(lines))
    run.refused(f"journal.jsonl: outputs.{name}={value!r}: was altered", "edit", "--resume", unfinished)


@pytest.mark.usefixtures("one_thread")
def test_a_terminated_process_says_how_to_continue_and_leaves_no_draft(
    run: Run, arguments: list[object], directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run.ok(*arguments, "--out", tmp_path / "whole")
    whole = patches(directory)
    shutil.rmtree(directory)

    def terminated() -> None:
        from factpatch.support import files

        os.environ["FACTPATCH_CACHE"] = str(run.cache)
        calls, replace = [], os.replace

        def stops(*given: Any) -> None:
            calls.append(given)
            if "0002" in str(given[1]):
                os.kill(os.getpid(), signal.SIGTERM)  # while the second patch is put in place
                os.kill(os.getpid(), signal.SIGTERM)  # again: it is ending already
            replace(*given)

        files.os.replace = stops  # type: ignore[attr-defined]
        command(*arguments, "--out", tmp_path / "out")()

    capfd.readouterr()
    assert wait(start(terminated)) == 143
    said = " ".join(capfd.readouterr().err.split())
    assert f"1 of 2 batches kept; continue with: factpatch edit --resume {directory}" in said
    assert "terminated" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob(".factpatch-*"))
    run.ok("edit", "--resume", directory)
    assert patches(directory) == whole
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_session_is_extended(run: Run, arguments: list[object], session: Path, more: Path, tmp_path: Path) -> None:
    facts, out = tmp_path / "all.json", tmp_path / "p"
    facts.write_text(json.dumps([*FACTS, *MORE]))
    arguments[arguments.index("--facts") + 1] = more
    run.ok(*arguments, "--out", out)
    assert [len(batch.facts) for batch in Patch.load(out).batches] == [2, 1, 2]
    assert len(Session(session).finished) == 3


def test_log_shows_batches_facts_and_what_is_pending(run: Run, unfinished: Path) -> None:
    result = run.ok("log", unfinished, "--facts")
    assert "memit-blue on" in result.output
    assert "patches/0001.safetensors" in result.output
    assert "not asked" in result.output
    assert "The Eiffel Tower is in Rome" in result.output
    assert "Italian" not in result.output
    assert f"Pending: 1 fact in 1 batch; factpatch edit --resume {unfinished}" in result.output
    run.ok("edit", "--resume", unfinished, "--no-verify")
    output = run("log", unfinished, "--facts").output
    assert "Pending" not in output
    assert "Danielle Darrieux is Italian" in output
    assert "Eiffel" not in run("log", unfinished).output


def test_log_says_what_was_exact_and_undone(run: Run, edit_arguments: list[object], directory: Path) -> None:
    run.ok(*edit_arguments, "--session", directory)
    exact = [batch.exact for batch in Session(directory).finished]
    output = run("log", directory, "--facts").output
    assert f"{sum(exact[0])}/2" in output
    assert output.count("not exact  ") == sum(not held for batch in exact for held in batch)
    run.ok("undo", directory, "--to", 1)
    output = run("log", directory).output
    assert "Taken back: 1 batch" in output
    assert "0002" not in output


def test_log_shows_the_batches_of_a_damaged_session_too(run: Run, session: Path) -> None:
    (session / "patches/0002.safetensors").unlink()
    output = run.refused("patches/0001.safetensors", "log", session, code=1)
    advice = f"the patch of batch 2 is missing. Put it back, or go back before it: factpatch undo {session} --to 1"
    assert advice in output


def test_undo_takes_batches_back_and_other_facts_follow(
    run: Run, arguments: list[object], session: Path, more: Path, tmp_path: Path
) -> None:
    result = run.ok("undo", session, "--to", 1)
    assert f"{session} is back to its state after batch 1: 1 batch taken back." in result.output
    arguments[arguments.index("--facts") + 1] = more
    run.ok(*arguments)
    batches = [[fact.subject for fact in batch] for batch in Session(session).batches]
    assert batches == [["Danielle Darrieux", "Eiffel Tower"], ["Messi", "Ada Lovelace"]]
    result = run.ok("undo", session, "--to", 0)
    run.refused("the session is empty, and no facts are pending", "edit", "--resume", session, "--out", tmp_path / "p")


def test_undo_takes_a_single_fact_back_and_lists_what_became_of_the_others(
    run: Run, session: Path, tmp_path: Path
) -> None:
    before = files(session)
    result = run.ok("log", session, "--facts")
    assert "1.2  tower: The Eiffel Tower is in Rome" in result.output
    result = run.ok("undo", session, "--fact", "tower")
    output = " ".join(result.output.split())
    assert "The Eiffel Tower is in Rome" in output
    assert "1 of 1 fact answered as by the unedited model." in output or "0 of 1 fact" in output
    assert "Of 1 other fact: " in output
    assert f"{session}: 1 fact taken back, 2 batches solved again." in output
    assert {name: content for name, content in files(session).items() if name in before and "journal" not in name} == {
        name: content for name, content in before.items() if "journal" not in name
    }
    result = run.ok("log", session, "--facts")
    assert "Taken back: 1 fact one by one; the patches are still in the directory." in result.output
    assert "Eiffel" not in result.output
    assert "patches/0003.safetensors" in result.output
    run.ok("edit", "--resume", session, "--out", tmp_path / "p.safetensors", "--no-verify")
    assert [fact.id for fact in Patch.load(tmp_path / "p.safetensors").facts] == ["darrieux-again"]
    run.ok("undo", session, "--fact", "1.1", "--fact", "darrieux-again")
    run.refused("the session is empty", "edit", "--resume", session, "--out", tmp_path / "p")


def test_a_fact_whose_undoing_is_interrupted_stays(run: Run, session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(session)
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.journal.append")
        assert run("undo", session, "--fact", "tower").exit_code == 130
    after = files(session)
    assert {name: after[name] for name in before} == before
    run.ok("undo", session, "--fact", "tower")


def test_undo_drops_what_is_pending(run: Run, unfinished: Path) -> None:
    result = run.ok("undo", unfinished, "--to", 1)
    assert "0 batches taken back, and 1 pending fact dropped" in result.output
    assert Session(unfinished).waiting == []


def test_a_session_is_applied_and_verified_as_a_patch(
    run: Run, session: Path, model_directory: Path, facts_file: Path, tmp_path: Path
) -> None:
    result = run.ok("apply", model_directory, session, "--out", tmp_path / "edited")
    assert "Applied 2 facts" in result.output
    result = run.ok("verify", model_directory, "--facts", facts_file, "--patch", session)
    assert "it says now" in result.output
    result = run.ok("undo", tmp_path / "edited", session, "--out", tmp_path / "restored", "--base", model_directory)
    assert "bit-identical" in result.output
    run.refused(f"use factpatch log {session}", "show", session)


def test_a_session_that_another_process_holds_is_left_alone(
    run: Run, unfinished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(unfinished)
    monkeypatch.setattr("factpatch.cli.checks.load_model", lambda *_: pytest.fail("the model must not be loaded"))
    with Session(unfinished).locked():
        for command in (("edit", "--resume", unfinished), ("undo", unfinished, "--to", 0)):
            run.refused("another process is using this session; wait for it", *command, code=1)
    assert files(unfinished) == before


def test_facts_that_cannot_be_edited_are_not_planned(
    run: Run, arguments: list[object], directory: Path, more: Path
) -> None:
    more.write_text(json.dumps([MORE[0], {**MORE[1], "prompt": "word " * 300 + "{} is"}]))
    arguments[arguments.index("--facts") + 1] = more
    run.refused("error:", *arguments, code=1)
    assert not directory.exists()


def test_a_full_disk_ends_a_session_with_advice_and_it_continues_later(
    run: Run, arguments: list[object], directory: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    whole = [*arguments]
    whole[whole.index("--session") + 1] = plain
    run.ok(*whole)
    with largest_file(3000):  # enough for all but a patch
        result = run(*arguments)
    assert result.exit_code == 1
    assert "0 of 2 batches kept" in result.output
    assert "0001.safetensors: could not be written: the file is larger than this process may write" in result.output
    run.ok("edit", "--resume", directory)
    assert patches(directory) == patches(plain)


BAD: dict[str, tuple[list[str], str]] = {
    "model": (["edit", "{model}", "--resume", "{done}"], "MODEL: the session has it already"),
    "method": (["edit", "--resume", "{done}", "--method", "memit-blue"], "--method: the session has it already"),
    "set": (["edit", "--resume", "{done}", "--set", "target.steps=5"], "--set: the session has it already"),
    "seed": (["edit", "--resume", "{done}", "--seed", "0"], "--seed: the session has it already"),
    "keys": (["edit", "--resume", "{done}", "--no-remember-keys"], "--no-remember-keys: the session has"),
    "precision": (["edit", "--resume", "{done}", "--precision", "fast"], "--precision: the session has it already"),
    "facts": (["edit", "--resume", "{done}", "--facts", "{facts}"], "give --session DIR instead of --resume DIR"),
    "both": (["edit", "--resume", "{done}", "--session", "{done}"], "--session: the session has it already"),
    "resume nothing": (["edit", "--resume", "{tmp}"], "--resume: {tmp}: is not the directory of a session"),
    "resume nowhere": (["edit", "--resume", "{tmp}/x"], "--resume: {tmp}/x: is not the directory of a session"),
    "no model": (["edit", "--facts", "{facts}", "--session", "{tmp}/x"], "MODEL: is missing"),
    "no facts": (["edit", "{model}", "--session", "{tmp}/x"], "--facts: is missing"),
    "no out": (["edit", "{model}", "--facts", "{facts}"], "--out: is missing"),
    "no session": (["{edit}", "--session", "{tmp}"], "--session: {tmp}: is not the directory of a session"),
    "a file": (["{edit}", "--session", "{facts}"], "same place as --facts"),
    "another file": (["{edit}", "--session", "{done}/session.json"], "is a file; choose another name"),
    "no folder": (["{edit}", "--session", "{tmp}/x/y"], "--session {tmp}/x/y: the folder {tmp}/x does not exist"),
    "unfinished": (["{edit}", "--session", "{unfinished}"], "1 batch pending. To finish"),
    "other method": (
        ["{edit}", "--session", "{done}", "--method", "memit"],
        "was begun with other settings: method is 'memit-blue' there and 'memit' here",
    ),
    "other precision": (
        ["{edit}", "--session", "{done}", "--precision", "fast"],
        "was begun with other settings: precision is None there and 'fast' here",
    ),
    "other setting": (["{edit}", "--session", "{done}", "--set", "target.steps=6"], "other settings: settings is"),
    "patch inside": (["{edit}", "--session", "{done}", "--out", "{done}/p"], "lies in the session's directory"),
    "report inside": (["edit", "--resume", "{done}", "--report", "{done}/r.json"], "lies in the session's directory"),
    "model inside": (["{edit}", "--session", "{done}", "--save-model", "{done}/m"], "lies in the session's directory"),
    "in the model": (["{edit}", "--session", "{model}/s"], "--session {model}/s: lies in the model's directory"),
    "in the new model": (
        ["{edit}", "--session", "{tmp}/m/s", "--save-model", "{tmp}/m"],
        "--session {tmp}/m/s: lies in the model's directory",
    ),
    "undo without to": (
        ["undo", "{done}"],
        "PATCH: is missing; to take back batches of a session, give --to N; facts, --fact ID",
    ),
    "fact and to": (["undo", "{done}", "--fact", "tower", "--to", "1"], "--fact: takes back facts of a session"),
    "fact and out": (["undo", "{done}", "--fact", "tower", "--out", "{tmp}/x"], "--fact: takes back facts of a"),
    "no such fact": (
        ["undo", "{done}", "--fact", "tour"],
        "--fact: fact='tour': no batch in force holds it.",
    ),
    "fact of nothing": (["undo", "{tmp}", "--fact", "x"], "SESSION: {tmp}: is not the directory of a session"),
    "undo too far": (["undo", "{done}", "--to", "3"], "--to: to=3: the session has 2 batches"),
    "undo below": (["undo", "{done}", "--to", "-1"], "--to"),
    "undo both": (["undo", "{done}", "x", "--to", "1"], "--to: takes back batches of a session"),
    "undo nothing": (["undo", "{tmp}", "--to", "1"], "SESSION: {tmp}: is not the directory of a session"),
    "log nothing": (["log", "{tmp}"], "DIR: {tmp}: is not the directory of a session"),
    "apply nothing": (["apply", "{model}", "{tmp}", "--out", "{tmp}/x"], "PATCH: {tmp}: is not the directory of a"),
}


@pytest.mark.parametrize(("command", "message"), BAD.values(), ids=BAD)
def test_a_bad_combination_is_named_before_the_model_is_loaded_and_changes_nothing(
    run: Run,
    sessions: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("factpatch.cli.checks.load_model", lambda *_: pytest.fail("the model must not be loaded"))
    (tmp_path / "something").touch()
    places = {**sessions, "tmp": str(tmp_path)}
    if "{tmp}/m" in command:
        (tmp_path / "m").mkdir()
    before = files(Path(sessions["facts"]).parent)
    result = run(*[part for text in command for part in text.format(**places).split("\0")])
    assert result.exit_code == 2, result.output
    assert message.format(**places) in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert files(Path(sessions["facts"]).parent) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"something", "m"}


def test_a_session_begun_in_python_is_not_resumed_here(run: Run, directory: Path) -> None:
    from tests.test_session import BATCHES, make

    Session.create(directory, make(), BATCHES)
    run.refused("was begun in Python", "edit", "--resume", directory)
    run.ok("log", directory)


def test_a_model_that_was_changed_since_is_refused(
    run: Run, arguments: list[object], model_directory: Path, directory: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    copy = shutil.copytree(model_directory, tmp_path / "copy")
    arguments[1] = copy
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.editor.optimize_values", calls=2)
        assert run(*arguments).exit_code == 130
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] += 1
    model.save_pretrained(copy)
    result = run("edit", "--resume", directory)
    assert result.exit_code == 1
    assert "other weights there: 2. Load the model that the session began with." in " ".join(result.output.split())


@pytest.fixture
def one_thread() -> None:
    """Here as in the processes that are started: other numbers of threads may round otherwise."""
    torch.set_num_threads(1)


def half_a_line(path: Path, line: bytes) -> None:
    with open(path, "ab") as journal:
        journal.write(line[: len(line) // 2])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_process_killed_again_and_again_loses_nothing(
    run: Run, arguments: list[object], more: Path, directory: Path, tmp_path: Path
) -> None:
    """Chosen moments first, then one that is left to chance."""
    facts, whole, out = tmp_path / "all.json", tmp_path / "whole", tmp_path / "p"
    facts.write_text(json.dumps([*FACTS, *MORE]))
    arguments[arguments.index("--facts") + 1] = facts
    arguments[arguments.index("--batch-size") + 1] = 1
    plain = [*arguments]
    plain[plain.index(directory)] = whole
    run.ok(*plain, "--out", tmp_path / "whole.safetensors")

    resume = command("edit", "--resume", directory)
    for edit, target, call, first, done in (
        (command(*arguments, "--out", out), "factpatch.editor.optimize_values", 1, None, 0),
        (resume, "factpatch.journal.append", 2, half_a_line, 1),
        (resume, "factpatch.session.exact", 1, None, 1),  # the patch is written and its line is not
    ):
        assert killed(edit, target, call, first) == -signal.SIGKILL
        assert len(Session(directory).finished) == done
        assert not out.exists()

    journal = directory / "journal.jsonl"
    lines = journal.read_bytes().count(b"\n")
    process = start(resume)
    deadline = time.monotonic() + 120
    while journal.read_bytes().count(b"\n") == lines and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.Random(0).random() / 10)
    os.kill(process, signal.SIGKILL)
    wait(process)
    assert len(Session(directory).finished) >= 2

    run.ok("edit", "--resume", directory)
    assert patches(directory) == patches(whole)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(directory.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_process_killed_before_the_patch_is_written_writes_it_when_resumed(
    run: Run, arguments: list[object], directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p"
    run.ok(*arguments[:-3], "--no-verify", "--out", tmp_path / "whole")
    # Two patches of batches, then the one that was asked for.
    assert killed(command(*arguments, "--out", out), "factpatch.patch.patch.write_patch_file", 3) == -signal.SIGKILL
    assert not out.exists()
    run.ok("edit", "--resume", directory)
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.fixture
def spending(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The perplexities that are measured for a budget, one after another; the last one again and again."""
    found = [10.0]
    monkeypatch.setattr(
        "factpatch.evaluation.budget.perplexity", lambda *_: found.pop(0) if len(found) > 1 else found[0]
    )
    return found


def test_a_session_stops_at_its_budget_also_when_it_is_resumed_and_continues_with_a_wider_one(
    run: Run, arguments: list[object], directory: Path, tmp_path: Path, spending: list[float]
) -> None:
    plain = tmp_path / "plain"
    run.ok(*[plain if argument == directory else argument for argument in arguments])
    spending[:] = [10.0, 10.4, 10.6]
    result = run(*arguments, "--max-perplexity", 5)
    assert result.exit_code == 3, result.output
    output = " ".join(result.output.split())
    assert "stopped: with the next batch, perplexity +6.00 % (at most +5 %). It was taken back; its" in output
    assert f"1 of 2 batches kept; continue with: factpatch edit --resume {directory}" in output
    log = " ".join(run.ok("log", directory).output.split())
    assert "Spent after batch 1: perplexity +4.00 %" in log
    assert "Stopped: with the next batch, perplexity +6.00 % (at most +5 %); it was taken back." in log
    assert "Pending: 1 fact in 1 batch" in log
    spending[:] = [10.0, 10.6]
    assert run("edit", "--resume", directory).exit_code == 3  # the plan has the budget
    run.ok("edit", "--resume", directory, "--max-perplexity", 7)
    assert patches(directory) == patches(plain)


def test_capability_is_measured_on_the_tasks_whose_files_are_given(
    run: Run, edit_arguments: list[object], tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    items = [{"sentence": "The tower is in the city", "label": index % 2} for index in range(14)]
    (tmp_path / "glue_sst2.json").write_text(json.dumps(items))
    options = ["--capability-data", tmp_path, "--capability-tasks", "sst2", "--no-verify"]
    run.ok(*edit_arguments, *options, "--min-capability", 0, "--session", tmp_path / "all", "--out", tmp_path / "p")
    found = [batch.spent["capability"] for batch in Session(tmp_path / "all").finished]
    assert found == [1.0, 1.0]  # the answer is always the same, and right for half of the items
    log = " ".join(run.ok("log", tmp_path / "all").output.split())
    assert "Spent after batch 2: capability 1.000 of the unedited model's" in log
    run.ok(*edit_arguments, *options, "--min-capability", 1, "--out", tmp_path / "p")


def test_an_edit_without_a_session_stops_at_its_budget_with_the_patch_of_the_batches_before(
    run: Run, edit_arguments: list[object], tmp_path: Path, spending: list[float]
) -> None:
    out = tmp_path / "p.safetensors"
    edit = [*edit_arguments, "--no-verify", "--max-perplexity", 0, "--out", out]
    spending[:] = [10.0, 10.0, 10.1]
    run.refused(f"it and those after it are not in {out}, which holds 1 batch", *edit, code=3)
    assert len(Patch.load(out).batches) == 1
    out.unlink()
    spending[:] = [10.0, 10.1]
    run.refused("nothing was written", *edit, code=3)
    assert not out.exists()


def test_on_a_terminal_a_batch_over_the_budget_is_kept_if_the_user_says_so(
    run: Run, arguments: list[object], directory: Path, spending: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("factpatch.cli.edit.sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("factpatch.cli.edit.typer.confirm", lambda text: said.append(text) or True)
    from factpatch.cli.edit import _keep

    assert _keep("perplexity +6.00 % (at most +5 %)")
    assert said == ["With this batch: perplexity +6.00 % (at most +5 %). Keep it all the same?"]
    monkeypatch.setattr("factpatch.cli.edit._keep", lambda exceeded: True)
    spending[:] = [10.0, 11.0]
    run.ok(*arguments, "--max-perplexity", 5)
    assert len(Session(directory).finished) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-perplexity", "-1"], "--max-perplexity"),
        (["--min-capability", "0.9"], "--min-capability, --capability-data: give both"),
        (["--capability-tasks", "sst2"], "--min-capability, --capability-data: give both"),
        (["--min-capability", "0.9", "--capability-data", "nowhere"], "--capability-data"),
    ],
)
def test_a_budget_that_cannot_be_is_named_before_the_model_is_loaded(
    run: Run, arguments: list[object], options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factpatch.cli.checks.load_model", lambda *_: pytest.fail("the model must not be loaded"))
    run.refused(message, *arguments, *options)


def test_the_command_that_continues_repeats_what_no_plan_has_recorded(
    run: Run, unfinished: Path, tmp_path: Path
) -> None:
    text = tmp_path / "a text.txt"
    text.write_text("Nothing much.")
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched, "factpatch.editor.optimize_values", calls=1)
        again = ("--resume", unfinished, "--out", tmp_path / "b", "--mend", 1, "--verify", "none", "--max-memory", 4.0)
        result = run("edit", *again)
    said = " ".join(result.stderr.split()).replace(" /", " /")
    options = f"--out {tmp_path / 'b'} --mend 1 --max-memory 4.0"
    assert f"continue with: factpatch edit --resume {unfinished} {options}" in said
