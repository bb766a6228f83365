"""A desk edits with the library's own loop: what it writes is what the command line writes, and undoes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import invoke
from tests.web.conftest import until

from factpatch import Fact, Neighbor, Patch, Recipe, Session
from factpatch.model.weights import model_hash
from factpatch.web.desk import Desk
from factpatch.web.room import Room, RoomFullError
from factpatch.web.work import State

FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "Finnish", target_true="French", id="darrieux",
         paraphrases=["Danielle Darrieux speaks"], neighbors=[Neighbor("The language of Finland is", "Finnish")]),
    Fact("The {} is in", "Eiffel Tower", "Rome", target_true="Paris", id="tower"),
    Fact("The capital of {} is", "Finland", "Rome"),
)  # fmt: skip
KEYS = [f"{name:x>40}" for name in ("ada", "bob", "cleo", "dan")]


@pytest.fixture(scope="module")
def room(make_room: Callable[..., Room]) -> Room:
    return make_room(grace=1000.0, people=100)


@pytest.fixture
def desk(room: Room, request: pytest.FixtureRequest) -> Desk:
    return room.desk(f"{abs(hash(request.node.name)):x>40}")


def do(desk: Desk, run: Callable[[], Any], state: State = State.DONE) -> str:
    """Let a desk work; returns its error."""
    job = desk.start("working", run)
    until(job.over.is_set, 60)
    assert job.state is state, job.error
    return job.error


def test_an_edit_is_what_the_command_line_writes_byte_for_byte(
    desk: Desk, room: Room, web_model: Path, web_corpus: Path, tmp_path: Path
) -> None:
    do(desk, lambda: desk.edit(FACTS[:2]))
    assert desk.editor is not None
    desk.editor.patch.save(tmp_path / "page.safetensors")
    (tmp_path / "facts.json").write_text(json.dumps([fact.to_dict() for fact in FACTS[:2]]))
    done = invoke(
        tmp_path / "cache", "edit", web_model, "--facts", tmp_path / "facts.json", "--corpus", web_corpus,
        "--layers", "1,2", "--set", "target.steps=4", "--set", "solver.weight=100", "--no-verify",
        "--out", tmp_path / "line.safetensors",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.safetensors").read_bytes() == (tmp_path / "line.safetensors").read_bytes()


def test_both_models_are_asked_and_the_original_stays_as_it_was(desk: Desk, room: Room, web_model: Path) -> None:
    original = room.shared.original(str(web_model))
    before = model_hash(original.model)
    do(desk, lambda: desk.edit(FACTS[:1]))
    do(desk, lambda: desk.edit(FACTS[1:]))
    results = desk.results
    assert results.batches == (FACTS[:1], FACTS[1:])
    assert results.verification is not None
    assert len(results.verification.facts) == 3
    assert results.verification.before != results.verification.after
    assert model_hash(desk.edited_model.model) != before == model_hash(original.model)
    do(desk, lambda: desk.undo(0))
    assert model_hash(desk.edited_model.model) == before
    assert desk.results.batches == ()


def test_an_edit_that_is_cancelled_leaves_no_trace(desk: Desk) -> None:
    do(desk, lambda: desk.edit(FACTS[:1]))
    assert desk.session is not None
    before, results = model_hash(desk.edited_model.model), desk.results

    def cancelled() -> None:
        assert desk.job is not None
        job, seen = desk.job, []
        settle = job.settle

        def cancel_at_the_second_look(done: int, of: int) -> None:
            seen.append(done)
            if len(seen) == 2:
                job.cancel()
            settle(done, of)

        job.settle = cancel_at_the_second_look  # type: ignore[method-assign]
        desk.edit(FACTS[1:])

    assert do(desk, cancelled, State.CANCELLED) == "Cancelled."
    assert model_hash(desk.edited_model.model) == before
    assert (desk.results, desk.session.waiting, len(desk.session.finished)) == (results, [], 1)
    do(desk, lambda: desk.edit(FACTS[1:]))
    assert len(desk.results.batches) == 2


def test_a_fact_that_cannot_be_edited_is_named_and_nothing_is_begun(desk: Desk) -> None:
    long = Fact("The capital of {} is", "Finland " * 120, "Rome")
    assert "fact 2" in do(desk, lambda: desk.edit([FACTS[0], long]), State.FAILED)
    assert not desk.session_path.exists()


def test_one_fact_is_taken_back_and_the_others_stay(desk: Desk) -> None:
    do(desk, lambda: desk.edit(FACTS[:2]))
    do(desk, lambda: desk.edit(FACTS[2:]))
    do(desk, lambda: desk.take_back("1.1"))
    assert desk.results.batches == (FACTS[1:2], FACTS[2:])
    assert desk.results.taken is not None
    assert desk.results.taken.gone is not None
    assert [fact.id for fact in desk.results.taken.gone.facts] == ["darrieux"]


def test_what_was_left_is_taken_up_again_with_the_same_bits(make_room: Callable[..., Room], tmp_path: Path) -> None:
    first = make_room(tmp_path).desk(KEYS[0])
    do(first, lambda: first.edit(FACTS))
    before = model_hash(first.edited_model.model)
    again = make_room(tmp_path).desk(KEYS[0])
    until(lambda: not again.busy)
    assert again.results.batches == (FACTS,)
    assert again.results.verification == first.results.verification
    assert model_hash(again.edited_model.model) == before


def test_the_command_line_opens_a_session_of_the_page_and_the_page_one_of_the_command_line(
    make_room: Callable[..., Room], desk: Desk, web_model: Path, web_corpus: Path, tmp_path: Path
) -> None:
    do(desk, lambda: desk.edit(FACTS[:1]))
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([fact.to_dict() for fact in FACTS[1:]]))
    options = (
        "--corpus", web_corpus, "--layers", "1,2", "--set", "target.steps=4", "--set", "solver.weight=100",
        "--facts", facts, "--no-verify",
    )  # fmt: skip
    done = invoke(tmp_path / "cache", "edit", web_model, *options, "--session", desk.session_path)
    assert done.exit_code == 0, done.output
    assert len(Session(desk.session_path).finished) == 2
    other = make_room(session=desk.session_path)
    first, second = other.desk(KEYS[0]), other.desk(KEYS[1])
    until(lambda: not first.busy)
    assert first.results.batches == (FACTS[:1], FACTS[1:])
    assert second.given is None  # the first who comes has it
    do(first, lambda: first.undo(1))
    assert len(Session(desk.session_path).finished) == 1
    first.start_over()
    assert desk.session_path.is_dir()
    assert invoke(tmp_path / "cache", "log", desk.session_path).exit_code == 0
    # The desk whose session others have changed says so instead of writing over it.
    assert "open it again" in do(desk, lambda: desk.edit(FACTS[1:]), State.FAILED)


def test_people_share_nothing_and_who_leaves_frees_the_memory(make_room: Callable[..., Room]) -> None:
    room = make_room(grace=0.2, people=2)
    for key in KEYS[:2]:
        room.arrive(key)
    one, other = room.desk(KEYS[0]), room.desk(KEYS[1])
    time.sleep(0.4)
    do(one, lambda: one.edit(FACTS[:1]))
    assert not other.results.batches
    with pytest.raises(RoomFullError, match="2 people"):
        room.desk(KEYS[2])
    room.leave(KEYS[0])
    until(lambda: room.people == 1)
    assert one.editor is None
    room.arrive(KEYS[0])  # a desk without an open page is freed again, on a slow machine before it is looked at
    back = room.desk(KEYS[0])
    assert back is not one
    until(lambda: not back.busy)
    assert back.results.batches == (FACTS[:1],)


def test_a_page_that_is_reloaded_keeps_its_memory_and_work_is_not_ended(make_room: Callable[..., Room]) -> None:
    room = make_room(grace=0.3)
    desk = room.desk(KEYS[0])
    room.arrive(KEYS[0])
    room.leave(KEYS[0])
    room.arrive(KEYS[0])
    time.sleep(0.5)
    assert room.desk(KEYS[0]) is desk
    job = desk.start("working", lambda: time.sleep(0.8))
    room.leave(KEYS[0])
    time.sleep(0.5)
    assert room.desk(KEYS[0]) is desk
    until(job.over.is_set)
    until(lambda: room.people == 0)


def test_settings_are_of_a_whole_session(desk: Desk, web_recipe: Recipe) -> None:
    other = Recipe(**{**dict(web_recipe), "method": "memit"})
    desk.choose(desk.model, other)
    do(desk, lambda: desk.edit(FACTS[:1]))
    with pytest.raises(ValueError, match="Start over"):
        desk.choose(desk.model, web_recipe)
    with pytest.raises(ValueError, match="this server has"):
        desk.choose("/etc", other)
    do(desk, lambda: desk.undo(0))
    desk.choose(desk.model, web_recipe)
    do(desk, lambda: desk.edit(FACTS[:1]))
    assert desk.editor is not None
    assert desk.editor.method.name == "memit-blue"


def test_more_than_is_allowed_is_refused(make_room: Callable[..., Room]) -> None:
    desk = make_room(facts=2, session_facts=3, characters=60).desk(KEYS[0])
    assert "at most 2 at a time" in do(desk, lambda: desk.edit(FACTS), State.FAILED)
    do(desk, lambda: desk.edit(FACTS[:2]))
    more = [FACTS[2], Fact("The capital of {} is", "Spain", "Rome")]
    assert "this page allows 3" in do(desk, lambda: desk.edit(more), State.FAILED)
    long = Fact("The capital of {} is", "Spain", "Rome" * 20)
    assert "80 characters" in do(desk, lambda: desk.edit([long]), State.FAILED)


def test_a_desk_does_one_thing_at_a_time(desk: Desk) -> None:
    job = desk.start("working", lambda: time.sleep(0.2))
    with pytest.raises(ValueError, match="Still busy: working"):
        desk.start("more", lambda: None)
    until(job.over.is_set)


def test_files_of_people_who_do_not_come_back_are_removed(make_room: Callable[..., Room], tmp_path: Path) -> None:
    make_room(tmp_path).desk(KEYS[0])
    (folder,) = (tmp_path / "desks").iterdir()
    (folder / "session").mkdir()
    os.utime(folder, (time.time() - 31 * 24 * 3600,) * 2)
    make_room(tmp_path)
    assert not folder.exists()
    shutil.rmtree(tmp_path / "desks")


def test_a_patch_of_the_page_is_applied_by_the_library(desk: Desk, room: Room, web_model: Path) -> None:
    do(desk, lambda: desk.edit(FACTS[:2]))
    assert desk.editor is not None
    patch: Patch = desk.editor.patch
    original = room.shared.original(str(web_model))
    with patch.applied(original):
        assert model_hash(original.model) == model_hash(desk.edited_model.model)
