"""Facts that do not hold are edited again: by an editor, in a session that is interrupted, and with a report."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import pytest
from tests.editors import FACTS as USUAL
from tests.editors import make

from factpatch.edit_report import edit_and_report
from factpatch.editor import Editor
from factpatch.evaluation.budget import Budget, BudgetError
from factpatch.evaluation.verify import read_facts
from factpatch.facts import Fact, Forget
from factpatch.model.weights import content_hash
from factpatch.patch.patch import Patch
from factpatch.session import Session

# Answers of one token, of which a tiny model learns one.
FACTS = tuple(
    replace(fact, target_new=token, space=False) for fact, token in zip(USUAL, ("ia", "Y", "ar", "ays"), strict=True)
)
BATCHES = (FACTS[:2], FACTS[2:])
WEAK = {"target.steps": 6, "target.learning_rate": 1.0, "target.clamp": 5.0, "solver.weight": 50.0}


def weak(method: str = "memit-blue") -> Editor:
    return make(method, settings=WEAK)


def held(editor: Editor) -> set[Fact]:
    readings = read_facts(editor.lm, FACTS, answers=False)
    return {fact for fact, reading in zip(FACTS, readings, strict=True) if reading.exact}


def weights(editor: Editor) -> list[str]:
    return [content_hash(editor.lm.weight(layer)) for layer in editor.edited_layers]


def edited() -> Editor:
    editor = weak()
    for batch in BATCHES:
        editor.edit(batch)
    return editor


def test_what_is_lost_is_what_is_not_exact_in_batches_of_the_largest_size() -> None:
    editor = edited()
    assert 0 < len(held(editor)) < len(FACTS)
    lost = editor.lost()
    assert list(chain.from_iterable(lost)) == [fact for fact in FACTS if fact not in held(editor)]
    assert [len(batch) for batch in lost] == [2, 1]
    assert make().lost() == []


def test_mending_edits_what_is_lost_as_later_batches() -> None:
    editor, by_hand = edited(), edited()
    before, lost = weights(editor), editor.lost()
    patches = editor.mend()
    for batch in lost:
        by_hand.edit(batch)
    assert [list(patch.facts) for patch in patches] == [list(batch) for batch in lost]
    assert weights(editor) == weights(by_hand) != before
    for _ in patches:
        editor.undo()
    assert weights(editor) == before


def test_a_replaced_fact_and_one_to_forget_are_not_lost() -> None:
    editor = weak()
    old = Fact("The capital of {} is", "Finland", "Rome")
    new = Fact("The capital of {} is", "Finland", "Paris")
    gone = Forget("{} plays the sport of", "Messi")
    editor.edit([old])
    editor.edit([new])
    editor.edit([gone])
    assert list(chain.from_iterable(editor.lost())) == [new]


def test_a_session_interrupted_while_it_mends_gives_the_same_patches(tmp_path: Path) -> None:
    def files(directory: Path) -> list[bytes]:
        return [(directory / batch.patch).read_bytes() for batch in Session(directory).finished]

    def mended(directory: Path, rounds: int, stop: int = 99) -> None:
        session, editor = Session(directory), weak()
        with session.locked():
            session.attach(editor)
            edit, left = session.edit, [stop]

            def once(*about: object, **options: object) -> object:
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
                return edit(*about, **options)  # type: ignore[arg-type]

            session.edit = once  # type: ignore[method-assign, assignment]
            session.mend(editor, session.outputs.get("mend", rounds), ask=False)

    whole, cut = (Session.create(tmp_path / name, weak(), BATCHES).path for name in ("whole", "cut"))
    mended(whole, 2)
    assert len(files(whole)) > len(BATCHES)
    for stop in range(6):  # each time one batch further
        try:
            mended(cut, 2, stop=1)
        except KeyboardInterrupt:
            assert len(files(cut)) == stop + 1
    mended(cut, 2)
    assert files(cut) == files(whole)


def test_taking_a_mended_fact_back_takes_all_of_its_edits(tmp_path: Path) -> None:
    session, editor = Session.create(tmp_path / "session", weak(), BATCHES), weak()
    with session.locked():
        session.attach(editor)
        session.mend(editor, 1)
        again = next(fact for fact in session.batches[2] if fact in BATCHES[0])
        place = f"3.{1 + session.batches[2].index(again)}"
        taken = session.undo_fact(editor, place)
    assert again not in chain.from_iterable(session.batches)
    assert taken.gone is not None
    assert taken.gone.facts == (again,)
    assert taken.others is not None
    assert again not in taken.others.facts
    assert Session(session.path).gone == 1


def test_a_batch_of_mending_that_exceeds_the_budget_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, plain = weak(), weak()
    edit_and_report(plain, BATCHES, measure=None)
    costs, kept = chain([10.0], repeat(20.0)), iter([True, True, False])
    monkeypatch.setattr("factpatch.evaluation.budget.perplexity", lambda lm, text: next(costs))
    budget = Budget(max_perplexity=5, keep=lambda exceeded: next(kept))
    with pytest.raises(BudgetError):
        edit_and_report(editor, BATCHES, measure=None, out=tmp_path / "p", mend=1, budget=budget)
    assert weights(editor) == weights(plain)
    assert len(Patch.load(tmp_path / "p").batches) == len(BATCHES)


def test_the_patch_is_saved_where_editing_again_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor, plain = weak(), edited()
    edit, calls = editor.edit, []

    def fails(facts: tuple[Fact, ...]) -> Patch:
        calls.append(facts)
        if len(calls) > len(BATCHES):
            raise FloatingPointError("the shift of layer 1 is not finite")
        return edit(facts)

    monkeypatch.setattr(editor, "edit", fails)
    with pytest.raises(FloatingPointError):
        edit_and_report(editor, BATCHES, measure=None, out=tmp_path / "p", mend=1)
    assert weights(editor) == weights(plain)
    assert Patch.load(tmp_path / "p").states() == plain.patch.states()


@pytest.mark.parametrize("kept", [False, True])
def test_a_report_says_what_was_edited_again(kept: bool, tmp_path: Path) -> None:
    session = Session.create(tmp_path / "session", weak(), BATCHES) if kept else None
    editor = weak()
    if session is None:
        report = edit_and_report(editor, BATCHES, mend=3)
    else:
        with session.locked():
            report = edit_and_report(editor, session=session, mend=3)
    plain = edit_and_report(weak(), BATCHES)
    assert report.attempted == plain.attempted == list(FACTS)
    assert report.superseded == plain.repeated == []
    assert report.repeated
    assert set(report.patch.facts) == set(FACTS)
    assert report.to_dict()["facts"]["in_force"] == len(FACTS)
    assert len(report.to_dict()["repeated"]) == len(report.repeated)
    assert len(report.patch.batches) == len(BATCHES) + 3 * 2


def test_a_regularizer_of_the_whole_session_covers_what_is_edited_again() -> None:
    editor = weak("prune")
    before = weights(editor)
    for batch in BATCHES:
        editor.edit(batch)
    edited_once = weights(editor)
    patches = editor.mend()
    assert patches
    ended, patch = weights(editor), editor.patch
    for _ in patches:
        editor.undo()
    assert weights(editor) == edited_once != ended
    editor.reset()
    assert weights(editor) == before
    patch.apply(editor.lm.model)
    assert weights(editor) == ended
