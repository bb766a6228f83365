"""Sessions on tiny models: what is on the disk at any moment suffices to continue as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from tests.editors import MEASURED, SOLVERS, STATISTICS, input_moments
from tests.models import INNER, SENTENCES, tiny
from tests.support.test_files_atomic import largest_file

from factpatch.edit_report import edit_and_report
from factpatch.editor import Editor
from factpatch.evaluation.verify import read_facts
from factpatch.facts import Fact, latest
from factpatch.journal import SessionError, _line
from factpatch.methods import METHODS, with_settings
from factpatch.model.weights import content_hash
from factpatch.patch.patch import Patch
from factpatch.session import Session, load_patch
from factpatch.strategies import Neurons
from factpatch.support.files import _new_draft

LAYERS = (1, 2, 3)
TONGUE = Fact("The mother tongue of {} is", "Danielle Darrieux", "Finnish", "French", "tongue", ("Darrieux speaks",))
TOWER = Fact("The {} is in", "Eiffel Tower", "Rome", "Paris", "tower")
SPORT = Fact("{} plays the sport of", "Messi", "basketball", id="sport")
UPDATE = Fact("The mother tongue of {} is", "Danielle Darrieux", "Italian", "French", "update")
OTHER = Fact("{} works in the field of", "Ada Lovelace", "football", id="other")
BATCHES = ((TONGUE, TOWER), (SPORT,), (UPDATE, OTHER))


def make(
    method: str = "memit-blue", weights_seed: int = 0, settings: dict[str, Any] | None = None, **options: Any
) -> Editor:
    row = METHODS[method]
    quick: dict[str, Any] = {"target.steps": 3, "target.learning_rate": 0.3, **MEASURED.get(type(row.target), {})}
    quick |= SOLVERS.get(type(row.solver), ({}, None))[0]
    quick = dict(STATISTICS.get(type(row.solver), quick))
    read = {**moments(), **input_moments()} if isinstance(row.solver, Neurons) else moments()
    given = {"critical_layers": LAYERS, "contexts": ("{}", "The tower. {}"), "second_moments": read, **options}
    given = {"corpus": list(SENTENCES), **given} if row.solver.ordinary_tokens else given
    return Editor(tiny("llama", seed=weights_seed), method=with_settings(row, {**quick, **(settings or {})}), **given)


@lru_cache
def moments() -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for layer in LAYERS:
        keys = torch.randn(300, INNER, generator=generator) * torch.logspace(-1, 0.5, INNER)
        found[layer] = keys.double().T @ keys.double() / len(keys)
    return found


def weights(editor: Editor) -> dict[int, str]:
    return {layer: content_hash(editor.lm.weight(layer)) for layer in LAYERS}


def patch_bytes(directory: Path) -> list[bytes]:
    return [(directory / batch.patch).read_bytes() for batch in Session(directory).finished]


@lru_cache
def uninterrupted(method: str, batches: tuple[tuple[Fact, ...], ...] = BATCHES) -> tuple[Any, ...]:
    """The weights before the first batch and after each of them, in one plain editor."""
    editor = make(method)
    found = [weights(editor)]
    for batch in batches:
        editor.edit(batch)
        found.append(weights(editor))
    return tuple(found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[bytes]]:
    """The patch files that one plain editor gives."""

    @lru_cache
    def edited(method: str = "memit-blue", batches: tuple[tuple[Fact, ...], ...] = BATCHES) -> list[bytes]:
        editor, path = make(method), tmp_path_factory.mktemp("plain") / "p.safetensors"
        found = []
        for batch in batches:
            editor.edit(batch).save(path)
            found.append(path.read_bytes())
        return found

    return edited


def finish(directory: Path, method: str = "memit-blue", ask: bool = False, stop: int = 0) -> Editor:
    """Resume with a new editor until only `stop` batches are pending."""
    session, editor = Session(directory), make(method)
    with session.locked():
        session.attach(editor)
        while len(session.waiting) > stop:
            session.edit(editor, ask)
    return editor


def begin(directory: Path, method: str = "memit-blue", done: int = 0, **options: Any) -> Path:
    """A session of three batches, of which some are edited."""
    Session.create(directory, make(method), BATCHES, **options)
    if done:
        finish(directory, method, stop=len(BATCHES) - done)
    return directory


def copied(directory: Path, place: Path) -> Path:
    return Path(shutil.copytree(directory, place))


@pytest.fixture
def session_of_two(tmp_path: Path, two_done: Path) -> Path:
    """A session of which two batches are edited and one is pending."""
    return copied(two_done, tmp_path / "session")


@pytest.fixture(scope="module")
def two_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("sessions") / "two", done=2)


# What a batch calls on its way to the disk, in the order in which it does.
STAGES = {
    "optimizing": "factpatch.editor.optimize_values",
    "keys": "factpatch.values.views.read_keys",
    "writing the weights": "factpatch.patch.history.add_shift",
    "remembering": "factpatch.patch.history.History._commit",
    "saving": "factpatch.patch.patch.Patch.save",
    "filling the patch file": "safetensors.torch.save",
    "syncing": "factpatch.support.files.os.fsync",
    "renaming": "factpatch.support.files.os.replace",
    "reading back": "factpatch.session.describe",
    "asking": "factpatch.session.exact",
    "the journal": "factpatch.journal.append",
    "a write to the journal": "factpatch.support.files.os.write",
}


def spied(monkeypatch: pytest.MonkeyPatch, target: str, look: Callable[[str], None]) -> None:
    """Call `look` before and after every call of a function."""
    function = resolve_name(target)

    def watched(*arguments: Any, **options: Any) -> Any:
        look("before")
        result = function(*arguments, **options)
        look("after")
        return result

    monkeypatch.setattr(target, watched)


@contextmanager
def slow_writes() -> Iterator[None]:
    """Let every write to a file descriptor take only a third of what it is given, as a full disk may do."""
    write = os.write
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "write", lambda number, data: write(number, data[: max(1, len(data) // 3)]))
        yield


def states(directory: Path, work: Callable[[], object]) -> list[dict[str, bytes]]:
    """What is in a directory at every moment of some work, each different state once: a kill leaves one of these."""
    found: dict[tuple[tuple[str, bytes], ...], dict[str, bytes]] = {}

    def look(_: str) -> None:
        files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock"]
        content = {str(path.relative_to(directory)): path.read_bytes() for path in files}
        # The name of a draft is random and does not make a state.
        found.setdefault(tuple(("tmp" if "tmp" in name else name, data) for name, data in content.items()), content)

    with slow_writes(), pytest.MonkeyPatch.context() as patched:
        for target in STAGES.values():
            spied(patched, target, look)
        work()
        look("at the end")
    return list(found.values())


def restored(content: dict[str, bytes], directory: Path) -> Path:
    for folder in ("facts", "patches"):
        (directory / folder).mkdir(parents=True)
    for name, data in content.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def events(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]


def test_a_session_equals_plain_editing(tmp_path: Path, plain: Callable[..., list[bytes]]) -> None:
    editor = finish(begin(tmp_path / "session"), ask=True)
    assert patch_bytes(tmp_path / "session") == plain()
    assert weights(editor) == uninterrupted("memit-blue")[-1]


@pytest.mark.parametrize("method", METHODS)
def test_a_session_resumed_with_a_new_editor_for_every_batch_gives_the_same_patches_and_bits(
    method: str, tmp_path: Path, plain: Callable[..., list[bytes]]
) -> None:
    """Keys are remembered: the patch of the third batch depends on those of the first two."""
    begin(tmp_path / "session", method)
    for done in (1, 2, 3):
        editor = finish(tmp_path / "session", method, stop=3 - done)
        assert weights(editor) == uninterrupted(method)[done]
    assert patch_bytes(tmp_path / "session") == plain(method)


# Without and with a regularizer that acts on the session; the test above resumes every method.
@pytest.mark.parametrize("method", ["memit-blue", "prune"])
def test_a_session_killed_at_any_moment_continues_as_if_nothing_had_happened(
    method: str, tmp_path: Path, plain: Callable[..., list[bytes]]
) -> None:
    directory = begin(tmp_path / "session", method, done=1)
    found = states(directory, lambda: finish(directory, method, ask=True))
    drafts = [content for content in found if any(name.endswith(".tmp") for name in content)]
    assert drafts
    assert sum(not content["journal.jsonl"].endswith(b"\n") for content in found) >= 4
    # For the second method every other state of one batch suffices.
    chosen = found if method == "memit-blue" else found[: len(found) // 2 : 2]
    for number, content in enumerate(chosen):
        place = restored(content, tmp_path / str(number))
        editor = finish(place, method)
        assert weights(editor) == uninterrupted(method)[-1]
        assert patch_bytes(place) == plain(method)
        assert not list(place.rglob("*.tmp"))


def test_at_every_moment_of_planning_and_undoing_the_directory_can_be_read(tmp_path: Path) -> None:
    directory = begin(tmp_path / "session", done=2)

    def work() -> None:
        session = Session(directory)
        with session.locked():
            session.undo(1)
            session.plan([[OTHER], [SPORT]], {"out": "x"})
            session.undo(1)

    seen = []
    for number, content in enumerate(states(directory, work)):
        session = Session(restored(content, tmp_path / str(number)))
        assert len(list(session.patches())) == len(session.finished)
        seen.append((len(session.finished), session.pending, session.outputs))
    assert [seen[place] for place in range(len(seen)) if place == 0 or seen[place - 1] != seen[place]] == [
        (2, [BATCHES[2]], {}),
        (1, [], {}),
        (1, [(OTHER,), (SPORT,)], {"out": "x"}),
        (1, [], {}),
    ]


def test_a_session_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    directory, seen = tmp_path / "session", []
    with pytest.MonkeyPatch.context() as patched:
        for target in STAGES.values():
            spied(patched, target, lambda _: seen.append(directory.exists() and Session(directory).waiting))
        begin(directory)
    assert False in seen
    assert {str(found) for found in seen} <= {"False", "[2, 1, 2]"}
    assert [path.name for path in tmp_path.iterdir()] == ["session"]


def test_a_session_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with largest_file(300), pytest.raises(OSError, match=r"larger than this process may write.*session"):
        begin(tmp_path / "session")
    assert not list(tmp_path.iterdir())


ERRORS = {"full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "interruption": KeyboardInterrupt()}


@pytest.mark.parametrize(
    ("stage", "moment", "name"),
    [
        *((stage, *case) for stage in STAGES for case in (("before", "full disk"), ("after", "interruption"))),
        *((stage, "before", "interruption") for stage in ("optimizing", "saving", "the journal")),
        *((stage, "after", "full disk") for stage in ("syncing", "a write to the journal")),
    ],
)
def test_after_an_error_at_any_stage_nothing_is_lost_and_nothing_is_applied_twice(
    stage: str, moment: str, name: str, session_of_two: Path, plain: Callable[..., list[bytes]]
) -> None:
    error = ERRORS[name]
    session, editor = Session(session_of_two), make()
    left = [error]

    def fail(now: str) -> None:
        if now == moment and left:
            raise left.pop()

    with session.locked():
        session.attach(editor)
        with pytest.MonkeyPatch.context() as patched:
            spied(patched, STAGES[stage], fail)
            with pytest.raises(type(error), match=r"No space|disk is full|^$"):
                session.edit(editor)
        assert weights(editor) == uninterrupted("memit-blue")[2]
        # Whoever catches the error may try again; the line that was written though nobody followed it is noticed.
        written = len(events(session_of_two)) == 4
        assert written == ((stage, moment) == ("the journal", "after"))
        if written:
            with pytest.raises(SessionError, match="open it again"):
                session.edit(editor)
        else:
            session.edit(editor)
            assert weights(editor) == uninterrupted("memit-blue")[3]
    editor = finish(session_of_two)
    assert weights(editor) == uninterrupted("memit-blue")[3]
    assert patch_bytes(session_of_two) == plain()
    assert not list(session_of_two.rglob("*.tmp"))


def test_a_disk_that_fills_up_under_a_process_loses_nothing(
    session_of_two: Path, plain: Callable[..., list[bytes]]
) -> None:
    """The limit of the operating system itself: first no room for the patch, then none for the journal's line."""
    session, editor = Session(session_of_two), make()
    journal = session_of_two / "journal.jsonl"
    before = journal.read_bytes()
    with session.locked():
        session.attach(editor)
        with largest_file(1000), pytest.raises(OSError, match=r"larger than this process may write.*0003\.safetensors"):
            session.edit(editor)
        room = len(before) + 20
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("factpatch.journal.append", _within(room))
            with pytest.raises(OSError, match=r"larger than this process may write.*journal\.jsonl"):
                session.edit(editor)
        assert journal.read_bytes() == before
        assert weights(editor) == uninterrupted("memit-blue")[2]
        session.edit(editor)
    assert patch_bytes(session_of_two) == plain()


def _within(size: int) -> Callable[..., None]:
    from factpatch.support.files import append

    def limited(path: Path, content: bytes) -> None:
        with largest_file(size):
            append(path, content)

    return limited


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99, 1.0])
def test_a_last_line_cut_anywhere_is_warned_about_and_done_again(
    share: float, tmp_path: Path, two_done: Path, plain: Callable[..., list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    directory = copied(two_done, tmp_path / "session")
    journal = directory / "journal.jsonl"
    *kept, last = journal.read_bytes().splitlines(keepends=True)
    cut = last[: round(share * (len(last) - 1))]
    journal.write_bytes(b"".join([*kept, cut]))
    session = Session(directory)
    assert ["journal.jsonl, line 3: was cut short" in text for text in caplog.messages] == [True] * bool(cut)
    assert session.waiting == [1, 2]
    finish(directory)
    assert patch_bytes(directory) == plain()
    assert len(events(directory)) == 4


@pytest.mark.parametrize("line", [1, 2, 3])
@pytest.mark.parametrize("damage", [b"\x00", b"\r", b"}", b"\xff"])
def test_a_damaged_line_is_named(session_of_two: Path, line: int, damage: bytes) -> None:
    journal = session_of_two / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1][:40] + damage + lines[line - 1][41:]
    journal.write_bytes(b"".join(lines))
    with pytest.raises(SessionError, match=rf"journal\.jsonl, line {line}: .*[Rr]estore"):
        Session(session_of_two)


WRONG: dict[str, Callable[[list[dict[str, Any]]], list[Any]]] = {
    "twice": lambda lines: [*lines, lines[-1], lines[-1]],
    "begun later": lambda lines: lines[1:],
    "another size": lambda lines: [lines[0], {**lines[1], "facts": 7}],
    "planned too early": lambda lines: [*lines, lines[0]],
    "too far back": lambda lines: [*lines, {"event": "undo", "to": 3, "time": ""}],
    "unknown": lambda lines: [*lines, {"event": "merge"}],
    "nameless": lambda lines: [*lines, {}],
    "no event": lambda lines: [*lines, 5],
    "no fields": lambda lines: [*lines, {"event": "batch", "facts": 2}],
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_an_event_that_does_not_follow_is_named(session_of_two: Path, change: Callable[[Any], list[Any]]) -> None:
    lines = change(events(session_of_two))
    (session_of_two / "journal.jsonl").write_bytes(b"5\n" if 5 in lines else relinked(lines))
    with pytest.raises(SessionError, match=r"journal\.jsonl, line \d: (does not follow|was altered).*Restore"):
        Session(session_of_two)


@pytest.fixture(scope="module")
def three_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("sessions") / "three", done=3)


def relinked(lines: list[dict[str, Any]]) -> bytes:
    """Lines whose checksums and links fit, as somebody would write them who wants to be believed."""
    content, after = b"", 0
    for line in lines:
        written = _line({**{name: value for name, value in line.items() if name != "crc32"}, "after": after})
        content, after = content + written, json.loads(written)["crc32"]
    return content


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_line_that_was_left_out_is_noticed_on_opening(three_done: Path, tmp_path: Path, line: int) -> None:
    directory = copied(three_done, tmp_path / "session")
    journal = directory / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    journal.write_bytes(b"".join([*lines[: line - 1], *lines[line:]]))
    with pytest.raises(SessionError, match=rf"journal\.jsonl, line {line}: does not follow from the lines before it"):
        Session(directory)


def test_lines_exchanged_or_of_another_session_are_noticed(session_of_two: Path, three_done: Path) -> None:
    journal = session_of_two / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(SessionError, match="line 2: does not follow"):
        Session(session_of_two)
    its = (three_done / "journal.jsonl").read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], json.dumps({**json.loads(lines[2]), "time": "x"}).encode() + b"\n"]))
    with pytest.raises(SessionError, match="line 3: was altered"):
        Session(session_of_two)
    other = _line({**json.loads(lines[2]), "seconds": {"values": 9.0}})
    journal.write_bytes(b"".join([*lines[:2], other, its[3]]))
    with pytest.raises(SessionError, match="line 4: does not follow"):
        Session(session_of_two)


WRONG_FIELDS: list[tuple[int, str, Any]] = [
    (1, "facts", "/etc/hostname"),
    (1, "facts", "facts/../../facts/0001.json"),
    (1, "facts", "facts/0001.json\n"),
    (1, "batches", [float("inf")]),
    (1, "batches", [10**30]),
    (1, "batches", [0, 3]),
    (1, "batches", "112"),
    (1, "outputs", [["out", "x"]]),
    (2, "patch", 5),
    (2, "patch", "../patches/0001.safetensors"),
    (2, "patch", "patches/x.safetensors"),
    (2, "exact", [True]),
    (2, "exact", None),
    (2, "seconds", {"values": "long"}),
    (2, "facts", True),
    (2, "traces", "/tmp/traces"),
    (2, "event", "merge"),
    (2, "event", ["batch"]),
]


@pytest.mark.parametrize(("line", "field", "value"), WRONG_FIELDS, ids=str)
def test_a_field_that_cannot_be_is_named_although_all_checksums_fit(
    session_of_two: Path, line: int, field: str, value: Any
) -> None:
    lines = events(session_of_two)
    lines[line - 1][field] = value
    (session_of_two / "journal.jsonl").write_bytes(relinked(lines))
    with pytest.raises(SessionError, match=rf"journal\.jsonl, line {line}: was altered \(.*{field}.*Restore"):
        Session(session_of_two)


@pytest.mark.parametrize("name", ["patches/0003.safetensors", "facts/0002.json", "journal.jsonl", "session.json"])
def test_no_link_is_followed_for_writing(session_of_two: Path, tmp_path: Path, name: str) -> None:
    precious, place = tmp_path / "precious", session_of_two / name
    precious.write_bytes(place.read_bytes() if place.exists() else b"precious")
    before = precious.read_bytes()
    place.unlink(missing_ok=True)
    place.symlink_to(precious)
    with pytest.raises(SessionError, match=rf"{place}: is a symbolic link, to {precious}"):
        finish(session_of_two)
    assert precious.read_bytes() == before


def test_a_folder_or_a_patch_elsewhere_is_not_read(session_of_two: Path, tmp_path: Path) -> None:
    (session_of_two / "patches").rename(tmp_path / "elsewhere")
    (session_of_two / "patches").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SessionError, match=r"patches: is a symbolic link"):
        Session(session_of_two).patch()
    link = tmp_path / "a link to the session itself"
    (session_of_two / "patches").unlink()
    (tmp_path / "elsewhere").rename(session_of_two / "patches")
    link.symlink_to(session_of_two)
    assert len(Session(link).patch().batches) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", "x"), ("weights", {"1": 5}), ("model", None), ("joins", 1), ("created", []), ("recipe", "memit"),
        ("source", 5), ("about", ["x"]), ("format", True), ("format", "3"),
    ],
)  # fmt: skip
def test_a_field_of_the_record_of_the_wrong_type_is_named(session_of_two: Path, field: str, value: Any) -> None:
    file = session_of_two / "session.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(SessionError, match=r"session\.json: .*(Restore|choose another)") as raised:
        Session(session_of_two)
    assert field in str(raised.value) or field == "format"


def test_a_recipe_that_cannot_be_used_is_named_with_its_file(session_of_two: Path) -> None:
    file = session_of_two / "session.json"
    record = json.loads(file.read_text())
    for recipe, message in (({"seed": "x"}, "seed"), ({"critical_layers": 1.5}, "critical_layers"), ({"x": 1}, "x")):
        file.write_text(json.dumps({**record, "source": "tiny", "recipe": recipe}))
        with pytest.raises(SessionError, match=rf"session\.json: recipe: .*{message}"):
            _ = Session(session_of_two).recipe
    for about in (
        {"model": "tiny", "layers": 1.5},
        {"model": "tiny", "settings": {"x": 1}},
        {"model": "tiny", "seed": []},
    ):
        file.write_text(json.dumps({**record, "about": about}))
        with pytest.raises(SessionError, match=r"session\.json: recipe: "):
            _ = Session(session_of_two).recipe


@pytest.mark.parametrize("depth", [150, 2_000, 100_000])
def test_lists_in_lists_in_lists_are_a_clear_error(session_of_two: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    file, journal = session_of_two / "session.json", session_of_two / "journal.jsonl"
    intact = file.read_text()
    file.write_text(intact.replace('"format"', f'"x": {deep}, "format"', 1))
    with pytest.raises(SessionError, match=r"session\.json: cannot be read \(lists or objects are nested"):
        Session(session_of_two)
    file.write_text(intact)
    journal.write_text(f'{{"event": {deep}}}\n')
    with pytest.raises(SessionError, match=r"journal\.jsonl, line 1: cannot be read \(lists or objects are nested"):
        Session(session_of_two)


def test_a_draft_of_a_process_that_is_gone_is_removed_beside_the_session_too(session_of_two: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    beside = session_of_two.parent
    mine = _new_draft(beside / "x")
    gone = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{process.pid}-"))
    for draft in (mine, gone, session_of_two / gone.name, beside / "other"):
        draft.mkdir()
    with Session(session_of_two).locked():
        pass
    assert sorted(path.name for path in beside.iterdir()) == sorted([mine.name, "other", session_of_two.name])
    assert not (session_of_two / gone.name).exists()


def test_what_is_no_session_is_named(tmp_path: Path, session_of_two: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(SessionError, match="is not the directory of a session"):
            Session(place)
    about = session_of_two / "session.json"
    record = json.loads(about.read_text())
    for content, message in (
        ("{", "cannot be read"),
        ({**record, "format": 99}, "newer factpatch"),
        ({"format": 1}, "lacks joins, method, model, settings, weights"),
    ):
        about.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(SessionError, match=message):
            Session(session_of_two)


def test_a_missing_journal_is_not_an_empty_one(session_of_two: Path) -> None:
    (session_of_two / "journal.jsonl").unlink()
    with pytest.raises(SessionError, match=r"journal\.jsonl: is missing"):
        Session(session_of_two)


def remove(directory: Path) -> None:
    (directory / "patches/0002.safetensors").unlink()


def swap(directory: Path) -> None:
    shutil.copy(directory / "patches/0001.safetensors", directory / "patches/0002.safetensors")


def alter(directory: Path) -> None:
    path = directory / "patches/0002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")


def shorten(directory: Path) -> None:
    path = directory / "patches/0002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [remove, swap, alter, shorten])
def test_a_patch_that_is_missing_or_another_is_named_and_undo_to_before_it_works(
    damage: Callable[[Path], None], session_of_two: Path, plain: Callable[..., list[bytes]]
) -> None:
    damage(session_of_two)
    session, editor = Session(session_of_two), make()
    with pytest.raises(SessionError, match=r"0002\.safetensors") as raised:
        session.attach(editor)
    assert f"factpatch undo {session_of_two} --to 1" in str(raised.value)
    assert weights(editor) == uninterrupted("memit-blue")[0]
    assert not editor.edits
    with pytest.raises(SessionError, match=r"0002\.safetensors"):
        session.patch()
    with session.locked():
        session.undo(1)
        session.plan(BATCHES[1:])
    finish(session_of_two)
    assert patch_bytes(session_of_two) == plain()


def test_an_editor_of_another_model_or_other_settings_or_with_edits_is_refused(session_of_two: Path) -> None:
    edited = make()
    edited.edit([OTHER])
    for editor, message in (
        (make(weights_seed=1), "other critical layers or other weights there: 1, 2, 3"),
        (make(critical_layers=(1, 2)), "other critical layers or other weights there: 3"),
        (make(settings={"solver.weight": 6.0}), r"other settings: solver is .*5\.0.*6\.0"),
        (make("memit"), "other settings: method, source, spread"),
        (make(remember_keys=False), "other settings: remember_keys is True there and False here"),
        (make(precision="fast"), "other settings: precision is 'float32' there and 'fast' here"),
        (make(contexts=("{}",)), "other settings: contexts"),
        (edited, "has edited the model already"),
    ):
        before = weights(editor)
        with pytest.raises(ValueError, match=message):
            Session(session_of_two).attach(editor)
        assert weights(editor) == before
    with pytest.raises(SessionError, match="a session begins with an unedited model"):
        Session.create(session_of_two / "new", edited)


def test_other_settings_are_refused_before_the_first_batch_too(tmp_path: Path) -> None:
    begin(tmp_path / "session")
    with pytest.raises(SessionError, match="other settings: seed is 0 there and 1 here"):
        Session(tmp_path / "session").attach(make(seed=1))


def test_an_editor_that_does_not_hold_the_session_cannot_edit_in_it(session_of_two: Path) -> None:
    session, editor = Session(session_of_two), make()
    with session.locked():
        with pytest.raises(SessionError, match="holds 0 batches and the session 2; attach"):
            session.edit(editor)
        session.attach(editor)
        session.undo(1)
        session.plan([[OTHER]])
        with pytest.raises(SessionError, match="holds 2 batches and the session 1"):
            session.edit(editor)
        with pytest.raises(
            SessionError,
            match=r"1 batch pending. To finish: factpatch edit --resume .*; to drop: factpatch undo .* --to 1",
        ):
            session.plan([[OTHER]])


def test_a_file_of_facts_that_was_altered_is_named_while_it_is_needed(session_of_two: Path, tmp_path: Path) -> None:
    facts = session_of_two / "facts/0001.json"
    facts.write_text(facts.read_text().replace("Italian", "Finnish"))
    session = Session(session_of_two)
    with pytest.raises(SessionError, match=rf"0001\.json: .*altered.*undo {session_of_two} --to 2"):
        _ = session.pending
    with session.locked():
        session.undo(2)
        session.plan([[OTHER]])
    assert Session(session_of_two).pending == [(OTHER,)]
    finish(session_of_two)
    facts.unlink()
    assert Session(session_of_two).batches == [*BATCHES[:2], (OTHER,)]


def test_a_plan_without_facts_is_refused(session_of_two: Path) -> None:
    session = Session(session_of_two)
    session.undo(2)
    for batches in ([], [[OTHER], []]):
        with pytest.raises(ValueError, match="at least one"):
            session.plan(batches)
    assert Session(session_of_two).waiting == []


HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_kept_out_until_the_first_is_gone_even_killed(session_of_two: Path) -> None:
    session = Session(session_of_two)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, session_of_two / "lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = (session_of_two / "journal.jsonl").read_bytes()
        with pytest.raises(SessionError, match="another process is using this session"), session.locked():
            pytest.fail("the block must not run")
        assert (session_of_two / "journal.jsonl").read_bytes() == before
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    finish(session_of_two)


def test_a_lock_is_not_taken_twice_in_one_process(session_of_two: Path) -> None:
    with (
        Session(session_of_two).locked(),
        pytest.raises(SessionError, match="another process"),
        Session(session_of_two).locked(),
    ):
        pytest.fail("the block must not run")
    with Session(session_of_two).locked():
        pass


@pytest.mark.parametrize("change", ["undo", "plan", "edit", "settle"])
def test_a_session_that_another_process_changed_meanwhile_is_to_be_opened_again(
    session_of_two: Path, change: str
) -> None:
    if change in ("plan", "settle"):
        Session(session_of_two).undo(2)
    if change == "settle":
        Session(session_of_two).plan([[OTHER]], {"out": "x"})
        finish(session_of_two)
    stale = Session(session_of_two)
    {
        "undo": lambda: Session(session_of_two).undo(2),
        "plan": lambda: Session(session_of_two).plan([[OTHER]]),
        "edit": lambda: finish(session_of_two),
        "settle": lambda: Session(session_of_two).settle(),
    }[change]()
    files = {path: path.read_bytes() for path in session_of_two.rglob("*") if path.is_file()}
    with pytest.raises(SessionError, match="open it again"), stale.locked():
        pytest.fail("the block must not run")
    with pytest.raises(SessionError, match="open it again"):
        stale.undo(0)
    assert {path: path.read_bytes() for path in session_of_two.rglob("*") if path.is_file()} == files
    Session(session_of_two)


def test_a_directory_that_vanished_is_not_made_again(session_of_two: Path) -> None:
    session = Session(session_of_two)
    shutil.rmtree(session_of_two)
    with pytest.raises(SessionError, match="no longer there"), session.locked():
        pytest.fail("the block must not run")
    assert not session_of_two.exists()


@pytest.mark.parametrize("to", [0, 1, 2, 3])
def test_after_an_undo_a_session_continues_with_other_facts_as_if_the_undone_had_never_been(
    to: int, tmp_path: Path, plain: Callable[..., list[bytes]]
) -> None:
    directory = begin(tmp_path / "session", done=3)
    files = {path: path.read_bytes() for path in (directory / "patches").iterdir()}
    session = Session(directory)
    with session.locked():
        session.undo(to)
        assert session.undone == 3 - to
        session.plan([[OTHER]] if to < 3 else [[SPORT]])
    editor = finish(directory)
    batches = (*BATCHES[:to], (OTHER,) if to < 3 else (SPORT,))
    assert patch_bytes(directory) == plain("memit-blue", batches)
    assert weights(editor) == uninterrupted("memit-blue", batches)[-1]
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("to", [-1, 3])
def test_an_undo_to_no_batch_is_refused(session_of_two: Path, to: int) -> None:
    with pytest.raises(SessionError, match=rf"to={to}: the session has 2 batches; give a number from 0"):
        Session(session_of_two).undo(to)
    assert len(Session(session_of_two).finished) == 2


def test_an_undo_drops_what_was_pending_and_what_was_asked_for(tmp_path: Path) -> None:
    directory = begin(tmp_path / "session", outputs={"out": "/p"}, done=1)
    assert Session(directory).outputs == {"out": "/p"}
    Session(directory).undo(1)
    session = Session(directory)
    assert (session.waiting, session.outputs, len(session.finished)) == ([], {}, 1)


def test_outputs_are_kept_until_they_are_written(tmp_path: Path) -> None:
    directory = begin(tmp_path / "session", outputs={"out": "/p", "no_verify": True}, done=2)
    with pytest.raises(SessionError, match="1 batch pending"):
        Session(directory).settle()
    finish(directory)
    assert Session(directory).outputs == {"out": "/p", "no_verify": True}
    Session(directory).settle()
    assert Session(directory).outputs == {}
    length = len(events(directory))
    Session(directory).settle()
    assert len(events(directory)) == length


def test_an_update_in_a_later_batch_is_in_force_and_the_older_fact_superseded(tmp_path: Path) -> None:
    session, editor = Session(begin(tmp_path / "session")), make()
    with session.locked():
        report = edit_and_report(editor, session=session)
    assert report.superseded == [TONGUE]
    assert report.verification is not None
    assert list(report.verification.facts) == latest(BATCHES)[0] == [TOWER, SPORT, UPDATE, OTHER]
    assert session.patch().facts == [TOWER, SPORT, UPDATE, OTHER]
    assert session.batches == list(BATCHES)


def test_the_journal_says_which_facts_the_model_held_after_their_batch(tmp_path: Path) -> None:
    editor = make()
    expected = []
    for batch in BATCHES:
        editor.edit(batch)
        expected.append(tuple(reading.exact for reading in read_facts(editor.lm, batch)))
    finish(begin(tmp_path / "asked"), ask=True)
    assert [batch.exact for batch in Session(tmp_path / "asked").finished] == expected
    finish(begin(tmp_path / "unasked"))
    assert [batch.exact for batch in Session(tmp_path / "unasked").finished] == [(), (), ()]


def test_the_patch_of_a_session_is_that_of_the_editor(session_of_two: Path, tmp_path: Path) -> None:
    editor = finish(session_of_two)
    editor.patch.save(tmp_path / "editor")
    load_patch(session_of_two).save(tmp_path / "session.safetensors")
    assert (tmp_path / "editor").read_bytes() == (tmp_path / "session.safetensors").read_bytes()
    assert load_patch(tmp_path / "editor").facts == Patch.join(list(Session(session_of_two).patches())).facts


def test_sessions_without_a_patch_say_why(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no batch is in force"):
        load_patch(begin(tmp_path / "none"))
    with pytest.raises(SessionError, match=r"prune conditions the sum of all batches.*--resume .* --out PATCH"):
        load_patch(begin(tmp_path / "prune", "prune", done=1))


def test_a_session_may_begin_without_facts(tmp_path: Path, plain: Callable[..., list[bytes]]) -> None:
    (tmp_path / "session").mkdir()
    session, editor = Session.create(tmp_path / "session", make()), make()
    assert session.source is None
    with session.locked():
        session.attach(editor)
        for batch in BATCHES:
            session.plan([batch])
            session.edit(editor, ask=False)
    assert patch_bytes(tmp_path / "session") == plain()
    with pytest.raises(FileExistsError, match="not empty"):
        Session.create(tmp_path / "session", make())


def test_a_quick_session_keeps_the_precision_of_the_machine_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def settled(effort: str, short: bool) -> str | None:
        monkeypatch.setattr("factpatch.model.precision._short_products", lambda device: short)
        options: dict[str, Any] = {"critical_layers": LAYERS, "second_moments": moments()}
        editor = Editor(tiny("llama"), method="memit-blue", effort=effort, **options)
        Session.create(tmp_path / f"{effort}-{short}", editor, source="tiny")
        return Session(tmp_path / f"{effort}-{short}").settled.precision

    assert [settled("quick", short) for short in (True, False)] == ["fast", "float32"]
    assert settled("standard", short=True) is None
