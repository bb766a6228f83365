"""What is taken away works elsewhere; what is brought is a session, or is refused."""

from __future__ import annotations

import io
import json
import runpy
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.cli.conftest import invoke
from tests.cli.page import assert_needs_nothing
from tests.web.conftest import until
from tests.web.test_desk import FACTS, KEYS, do

from factpatch import Patch, Session
from factpatch.model.loading import load_language_model
from factpatch.model.weights import model_hash
from factpatch.web.desk import Desk
from factpatch.web.effects import Effect, effects, traced
from factpatch.web.room import Room
from factpatch.web.take_away import EXPORT_FORMS, command_line, export, python, report, unpack_session
from factpatch.web.work import State


@pytest.fixture(scope="module")
def desk(make_room: Callable[..., Room]) -> Desk:
    """A desk with two batches."""
    made = make_room(grace=1000.0).desk(KEYS[0])
    do(made, lambda: made.edit(FACTS[:2]))
    do(made, lambda: made.edit(FACTS[2:]))
    return made


def unpacked(file: Path, folder: Path) -> Path:
    """The folder of an archive."""
    with zipfile.ZipFile(file) as packed:
        packed.extractall(folder)
    return folder / file.stem


@pytest.fixture(scope="module")
def files(desk: Desk) -> dict[str, Path]:
    """All that is exported, by name."""
    made: dict[str, Path] = {}
    for name in EXPORT_FORMS:
        do(desk, lambda name=name: made.update({name: export(desk, name)}))  # type: ignore[misc]
    return made


def test_what_is_exported_holds_the_edits(desk: Desk, files: dict[str, Path], tmp_path: Path) -> None:
    edited = model_hash(desk.edited_model.model)
    patch = Patch.load(files["patch"])
    assert len(patch.batches) == 2
    model = load_language_model(str(unpacked(files["model"], tmp_path)))
    assert model_hash(model.model) == edited
    assert load_file(unpacked(files["lora"], tmp_path) / "adapter_model.safetensors")
    assert files["gguf"].read_bytes()[:4] == b"GGUF"
    facts = unpacked(files["facts"], tmp_path)
    assert sorted(file.name for file in facts.iterdir()) == ["facts-1.json", "facts-2.json"]
    assert len(json.loads(files["record"].read_text())["facts"]) == 3
    session = Session(unpacked(files["session"], tmp_path))
    assert [len(batch) for batch in session.batches] == [2, 1]


def test_the_report_needs_nothing_else_and_takes_nothing_for_html(desk: Desk, files: dict[str, Path]) -> None:
    text = files["report"].read_text("utf-8")
    assert_needs_nothing(text)
    assert "Danielle Darrieux" in text
    assert "factpatch edit" in text
    assert text == report(desk)


def test_the_commands_and_the_python_make_the_same_patch(
    desk: Desk, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(files["facts"], tmp_path)
    monkeypatch.chdir(folder)
    for line in command_line(desk).splitlines():
        done = invoke(tmp_path / "cache", *shlex.split(line)[1:], "--no-verify")
        assert done.exit_code == 0, done.output
    assert (folder / "patch.safetensors").read_bytes() == files["patch"].read_bytes()
    (folder / "patch.safetensors").unlink()
    (folder / "same.py").write_text(python(desk))
    runpy.run_path("same.py")
    assert (folder / "patch.safetensors").read_bytes() == files["patch"].read_bytes()


def test_a_session_is_brought_to_another_desk(
    desk: Desk, files: dict[str, Path], make_room: Callable[..., Room], tmp_path: Path
) -> None:
    (tmp_path / "brought").mkdir()
    unpack_session(files["session"], tmp_path / "brought", 10**6)
    other = make_room(grace=1000.0).desk(KEYS[1])
    do(other, lambda: other.bring(tmp_path / "brought"))
    assert other.results.batches == desk.results.batches
    assert model_hash(other.edited_model.model) == model_hash(desk.edited_model.model)
    (tmp_path / "again").mkdir()
    assert "start over" in do(other, lambda: other.bring(tmp_path / "again"), State.FAILED)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("../../evil.json", b"x", "no file of a session"),
        ("/etc/evil.json", b"x", "no file of a session"),
        ("session/facts/0001.pkl", b"x", "no file of a session"),
        ("session/patches/../../0001.safetensors", b"x", "no file of a session"),
        ("session/facts/0001.json", b"{}", "holds no session"),
        ("session/facts/0001.json", b"0" * 50_000_000, "more than 20000000 bytes"),
    ],
)
def test_an_archive_that_is_no_session_is_refused(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, content)
    (tmp_path / "to").mkdir()
    with pytest.raises(ValueError, match=said):
        unpack_session(tmp_path / "x.zip", tmp_path / "to", 10**6)
    assert not list(tmp_path.rglob("*evil*"))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK" + bytes(100))
    with pytest.raises(ValueError, match="cannot be read"):
        unpack_session(tmp_path / "x.zip", tmp_path, 10**6)


def test_a_session_with_another_corpus_is_refused_before_the_corpus_is_looked_at(
    files: dict[str, Path], make_room: Callable[..., Room], tmp_path: Path
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(files["session"]) as packed, zipfile.ZipFile(out, "w") as altered:
        for name in packed.namelist():
            content = packed.read(name)
            if name.endswith("session.json"):
                record = json.loads(content)
                record["recipe"]["corpus"] = "/etc/shadow"
                content = json.dumps(record).encode()
            altered.writestr(name, content)
    (tmp_path / "x.zip").write_bytes(out.getvalue())
    (tmp_path / "to").mkdir()
    unpack_session(tmp_path / "x.zip", tmp_path / "to", 10**6)
    desk = make_room().desk(KEYS[0])
    said = do(desk, lambda: desk.bring(tmp_path / "to"), State.FAILED)
    assert "corpus='/etc/shadow': cannot be changed on this page" in said
    assert not desk.session_path.exists()
    until(lambda: not desk.busy)


def test_side_effects_have_lights_and_numbers(desk: Desk) -> None:
    found: list[Effect] = []
    facts = [fact for batch in desk.results.batches for fact in batch]
    do(desk, lambda: found.extend(effects(desk.original, desk.edited_model, [1, 2], facts, None)))
    assert [one.term for one in found] == ["perplexity", "capability", "drift"]
    same: list[Effect] = []
    do(desk, lambda: same.extend(effects(desk.original, desk.original, [1, 2], facts, None)))
    assert [one.light for one in same] == ["green"] * 3
    assert Effect("drift", "", ("", ""), "", float("nan"), (1.0, 2.0)).light == "red"


def test_a_fact_is_traced_in_both_models(desk: Desk) -> None:
    (original, edited) = traced([("Original", desk.original), ("Edited", desk.edited_model)], FACTS[2])
    assert original.title == "Original"
    assert len(edited.lines[0][2]) == desk.original.num_layers
    assert any(subject for _, subject, _ in edited.lines)
    assert all(0 <= share <= 1 for _, _, shares in edited.lines for share in shares)
