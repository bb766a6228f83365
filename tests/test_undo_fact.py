"""Single facts taken back: the history is solved again without them, with the values that the others had."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, EXACT, FACTS, LAYERS, SOLVERS, make, second_moments
from tests.models import INNER
from torch import Tensor

from factpatch import METHODS, Editor, Fact, Method, Patch, Ridge, Session
from factpatch.facts import find_facts, latest
from factpatch.journal import Journal, SessionError
from factpatch.model.weights import content_hash
from factpatch.strategies import AnswerGradients, Each
from factpatch.values.optimize import TargetValues, optimize_values
from factpatch.values.reading import SubjectRows, read_keys, read_values

TONGUE, SPORT, CAPITAL, FIELD = FACTS
AGAIN = Fact(SPORT.prompt, SPORT.subject, "tennis", id="again")
TOWER = Fact("The {} is in", "Eiffel Tower", "Rome", id="tower")
BATCHES = ((TONGUE, SPORT), (CAPITAL, TOWER), (FIELD, AGAIN))
Values = dict[int, Tensor]


class Counted:
    """`optimize_values`, with a count of the facts that it was called for."""

    def __init__(self) -> None:
        self.facts = 0

    def __call__(self, lm: Any, facts: Sequence[Fact], *about: Any, **options: Any) -> TargetValues:
        self.facts += len(facts)
        return optimize_values(lm, facts, *about, **options)


def edited(method: str | Method = "memit-blue", batches: Sequence[Sequence[Fact]] = BATCHES, **options: Any) -> Editor:
    editor = make(method, **options)
    for batch in batches:
        editor.edit(batch)
    return editor


def held(editor: Editor) -> list[str]:
    return [content_hash(editor.lm.weight(layer)) for layer in LAYERS]


def by_hand(method: str, batches: Sequence[tuple[Sequence[Fact], Values]]) -> Values:
    """The weights after batches with given target values, solved with the dense formulas of the papers."""
    editor = make(method)
    lm, method_, moments = editor.lm, editor.method, second_moments()
    dense = SOLVERS[type(method_.solver)][1]
    known: dict[int, dict[tuple[str, str], Tensor]] = {layer: {} for layer in LAYERS}
    for facts, values in batches:
        subjects = SubjectRows.of(lm, facts, CONTEXTS)
        for kept in known.values():
            for fact in facts:
                kept.pop(fact.key, None)
        found: dict[int, Tensor] = {}
        for step in method_.spread.steps(LAYERS):
            keys = found[step.layer] = read_keys(lm, subjects, step.layer)
            present = read_values(lm, subjects, step.target_layer, method_.target.site)
            earlier = torch.stack([*known[step.layer].values()]) if known[step.layer] else torch.zeros(0, INNER)
            residual = step.share * (values[step.target_layer] - present)
            shift = dense(method_.solver, moments[step.layer], keys, residual, earlier.to(EXACT))
            lm.weights([step.layer])[step.layer].add_(shift)
        for layer, keys in found.items():
            known[layer] |= {fact.key: key for fact, key in zip(facts, keys, strict=True)}
    return {layer: lm.weight(layer).clone() for layer in LAYERS}


def rows(values: Any, *which: int) -> Values:
    return {layer: value[list(which)] for layer, value in values.items()}


@pytest.mark.parametrize("method", ["memit", "memit-blue", "alphaedit-blue", "pmet"])
def test_without_a_fact_the_history_is_what_the_dense_formulas_give_for_the_same_targets(method: str) -> None:
    optimize = Counted()
    editor = edited(method, optimize=optimize)
    first, second, third = (dict(edit.values) for edit in editor.edits)
    before, optimized = [edit.patch for edit in editor.edits], optimize.facts
    patches = editor.undo_fact(TOWER)
    assert optimize.facts == optimized
    assert [edit.facts for edit in editor.edits] == [(TONGUE, SPORT), (CAPITAL,), (FIELD, AGAIN)]
    assert [edit.patch for edit in editor.edits] == [before[0], *patches]
    expected = by_hand(method, [((TONGUE, SPORT), first), ((CAPITAL,), rows(second, 0)), ((FIELD, AGAIN), third)])
    for layer in LAYERS:
        torch.testing.assert_close(editor.lm.weight(layer), expected[layer], rtol=1e-8, atol=1e-10)
    # The values that stay are those of before, to the bit, so that another fact can be taken back.
    assert all(torch.equal(editor.edits[1].values[layer], second[layer][:1]) for layer in second)
    assert all(torch.equal(editor.edits[2].values[layer], third[layer]) for layer in third)


@pytest.mark.parametrize("method", METHODS)
def test_all_facts_taken_back_one_by_one_leave_the_unedited_bits(method: str) -> None:
    unedited, editor = held(make(method)), edited(method, dtype=torch.float32)
    unedited = held(make(method, dtype=torch.float32))
    one_less = edited(method, BATCHES[:2], dtype=torch.float32)
    editor.undo_fact(FIELD)
    editor.undo_fact("again")
    assert held(editor) == held(one_less)
    for fact in (CAPITAL, TONGUE, TOWER, SPORT):
        editor.undo_fact(fact)
        assert fact not in [left for edit in editor.edits for left in edit.facts]
    assert not editor.edits
    assert held(editor) == unedited


def test_the_last_batch_taken_apart_equals_the_same_batch_without_the_fact_where_the_targets_are_the_same() -> None:
    """In the first layer written, targets do not depend on what else is in the batch but for rounding."""
    editor = edited(settings={"target.steps": 1})  # δ stays 0, so the values are the present ones
    editor.undo_fact(FIELD)
    other = edited(batches=(*BATCHES[:2], (AGAIN,)), settings={"target.steps": 1})
    for layer in LAYERS:
        torch.testing.assert_close(editor.lm.weight(layer), other.lm.weight(layer), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("place", ["factpatch.editor.Editor._read_keys", "factpatch.patch.history.add_shift"])
@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize("method", ["memit-blue", "prune"])
def test_a_failure_in_the_middle_leaves_model_and_editor_as_they_were(
    method: str, calls: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli.conftest import interrupt

    editor, undisturbed = edited(method), edited(method)
    before, entries, patch = held(editor), editor.edits, editor.patch
    with monkeypatch.context() as patched:
        interrupt(patched, place, calls)
        with pytest.raises(KeyboardInterrupt):
            editor.undo_fact(TOWER)
    assert held(editor) == before
    assert editor.edits == entries
    assert editor.patch.states() == patch.states()
    for one in (editor, undisturbed):
        one.undo_fact(TOWER)
    assert held(editor) == held(undisturbed)


def test_a_replaced_fact_is_not_preserved_against_its_new_value() -> None:
    """With the old key among the preserved ones, the new value would be held off by as much as any other."""
    editor = edited(batches=(BATCHES[0],))
    values = dict(editor.edits[0].values)
    editor.edit([AGAIN])
    second = dict(editor.edits[1].values)
    expected = by_hand("memit-blue", [(BATCHES[0], values), ((AGAIN,), second)])
    for layer in LAYERS:
        torch.testing.assert_close(editor.lm.weight(layer), expected[layer], rtol=1e-8, atol=1e-10)
    editor.undo_fact("again")
    assert latest([edit.facts for edit in editor.edits])[0] == [TONGUE, SPORT]


def test_a_session_replayed_continues_with_the_bits_of_one_that_never_stopped_where_facts_were_replaced() -> None:
    whole, other = edited(), make()
    last = Fact("{} lives in", "Ada Lovelace", "Rome")
    other.replay(Patch.join([edit.patch for edit in whole.edits]))
    assert whole.edit([last]).states()[-1] == other.edit([last]).states()[-1]


@pytest.mark.parametrize("method", ["ultraedit", "stableedit"])
def test_without_a_fact_gradients_are_those_of_a_history_that_never_had_it(method: str, tmp_path: Path) -> None:
    one, never = edited(method), edited(method, ((TONGUE, SPORT), (CAPITAL,), (FIELD, AGAIN)))
    session, editor = Session.create(tmp_path / "session", make(method), BATCHES), make(method)
    with session.locked():
        session.attach(editor)
        while session.waiting:
            session.edit(editor, ask=False)
        assert held(editor) == held(one) != held(never)
        one.undo_fact(TOWER)
        session.undo_fact(editor, TOWER, ask=False)
    assert held(one) == held(editor) == held(never)
    resumed = make(method)
    Session(tmp_path / "session").attach(resumed)
    assert resumed.edit([TOWER]).batches[0].after == never.edit([TOWER]).batches[0].after


def test_a_batch_of_which_too_little_is_left_to_be_edited_again_is_refused_and_everything_stays() -> None:
    single = Fact("The capital of {} is", "Finland", "Rome")
    editor = edited("ultraedit", ((single, TONGUE), (SPORT,)))
    before, entries = held(editor), editor.edits
    with pytest.raises(ValueError, match=r"one answer token.*Edit more facts at once"):
        editor.undo_fact(TONGUE)
    assert held(editor) == before
    assert editor.edits == entries


def test_rows_of_a_replaced_fact_are_released_where_it_has_one_for_each_token() -> None:
    method = Method("mixed", AnswerGradients(), Each(), Ridge())
    editor = edited(method, (BATCHES[0],))
    (first,) = editor.edits
    assert [*dict.fromkeys(first.rows[1])] == [TONGUE, SPORT]
    stay = [row for row, fact in enumerate(first.rows[1]) if fact == TONGUE]
    assert 1 < len(stay) < len(first.keys[1]) == len(first.rows[1])
    left = first.remembered(1, {AGAIN.key}, editor.memory(1))
    assert torch.equal(left["keys"], first.keys[1][stay])


def test_facts_are_found_by_themselves_their_ids_and_their_places() -> None:
    assert find_facts(BATCHES, ["tower", "3.2", TONGUE]) == [(0, 0), (1, 1), (2, 1)]
    assert find_facts([[AGAIN], [AGAIN]], ["again"]) == [(0, 0), (1, 0)]
    other = Fact("{} is in", "Rome", "Italy", id="again")
    for names, message in (
        ([], "name at least one fact"),
        (["3.3"], "fact='3.3': no batch in force holds it. .*factpatch log --facts"),
        (["0.1"], "fact='0.1'"),
        ([other], "fact='Rome is in'"),
    ):
        with pytest.raises(ValueError, match=message):
            find_facts(BATCHES, names)
    with pytest.raises(ValueError, match=r"different questions; give the place of one: 1\.1, 2\.1"):
        find_facts([[AGAIN], [other]], ["again"])


def test_batches_that_were_replayed_need_their_values() -> None:
    whole, other = edited(), make()
    other.replay(Patch.join([edit.patch for edit in whole.edits]))
    before = held(other)
    with pytest.raises(ValueError, match=r"the target values of batch 2 are not known.*replayed"):
        other.undo_fact(TOWER)
    assert held(other) == before
    other.undo_fact(TOWER, values={index: edit.values for index, edit in enumerate(whole.edits)})
    whole.undo_fact(TOWER)
    assert held(other) == held(whole)


def test_a_subject_that_begins_a_text_is_taken_back_from_the_first_layer_too() -> None:
    settings = {"target.apart": True}
    moments = second_moments(layers=(0, *LAYERS))
    one, other = (Fact("{} is in the", name, "city") for name in ("The", "In"))

    def begun(*batches: Sequence[Fact]) -> Editor:
        # Exact mode edits no first tokens apart.
        return edited("memit-blue", batches, dtype=torch.float32, settings=settings, second_moments=moments)

    editor = begun([one, CAPITAL, other], [FIELD])
    assert editor.edits[0].rows[0] == (one, other)
    before = editor.edits[0].values
    editor.undo_fact(one)
    assert editor.edits[0].rows[0] == (other,)
    assert torch.equal(editor.edits[0].values[0], before[0][1:])
    assert torch.equal(editor.edits[0].values[1], before[1][1:])
    editor.undo_fact(other)
    assert 0 not in editor.edits[0].values
    editor.undo_fact(CAPITAL, FIELD)
    assert not editor.edits
    assert content_hash(editor.lm.weight(0)) == content_hash(begun().lm.weight(0))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A session of three batches, all edited."""
    session, editor = Session.create(tmp_path / "session", make(), BATCHES), make()
    with session.locked():
        session.attach(editor)
        while session.waiting:
            session.edit(editor, ask=False)
    return tmp_path / "session"


def reopened(directory: Path) -> tuple[Session, Editor]:
    session, editor = Session(directory), make()
    session.attach(editor)
    return session, editor


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_session_takes_a_fact_back_as_an_editor_does_and_keeps_its_history(directory: Path) -> None:
    before = files(directory)
    session, editor = reopened(directory)
    with session.locked():
        found = session.undo_fact(editor, "tower")
    whole = edited()
    whole.undo_fact(TOWER)
    assert held(editor) == held(whole)
    assert [patch.states()[-1] for patch in session.patches()] == [edit.patch.states()[-1] for edit in whole.edits]
    assert {path: content for path, content in files(directory).items() if path in before} == {
        **before,
        directory / "journal.jsonl": (directory / "journal.jsonl").read_bytes(),
    }
    assert (session.gone, found.batches) == (1, 2)
    assert [batch.patch for batch in session.finished] == [f"patches/000{n}.safetensors" for n in (1, 4, 5)]
    assert found.gone is not None
    assert found.others is not None
    assert found.gone.facts == (TOWER,)
    assert set(found.others.facts) == {TONGUE, CAPITAL, FIELD, AGAIN}
    assert found.gone.before is not None
    unedited = make()
    from factpatch import verify

    (reading,) = verify(unedited.lm, None, [TOWER]).after
    assert found.gone.before[0].answer == reading.answer
    assert json.loads(json.dumps(found.to_dict()))["batches"] == 2
    # Another process finds the same, and can take back the next one.
    session, editor = reopened(directory)
    assert held(editor) == held(whole)
    with session.locked():
        session.undo_fact(editor, "2.1", "1.2", ask=False)
    whole.undo_fact(CAPITAL, SPORT)
    assert held(editor) == held(whole)
    assert session.batches == [(TONGUE,), (FIELD, AGAIN)]
    assert held(reopened(directory)[1]) == held(whole)


def test_what_is_exact_is_asked_right_after_each_batch_that_is_solved_again(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, editor = reopened(directory)
    asked: list[int] = []

    def exact(lm: Any, facts: Sequence[Fact]) -> list[bool]:
        asked.append(len(editor.edits))
        return [True] * len(facts)

    monkeypatch.setattr("factpatch.session.exact", exact)
    with session.locked():
        session.undo_fact(editor, "1.1")
    again = len(BATCHES) - (len(BATCHES[0]) == 1)
    assert asked == [*range(1, again + 1)]


def test_pending_batches_stay_pending_and_follow(directory: Path) -> None:
    last = Fact("{} lives in", "Ada Lovelace", "Rome")
    session, editor = reopened(directory)
    with session.locked():
        session.plan([[last]])
        session.undo_fact(editor, CAPITAL, ask=False)
        assert session.pending == [(last,)]
    session, editor = reopened(directory)
    with session.locked():
        session.edit(editor, ask=False)
    whole = edited()
    whole.undo_fact(CAPITAL)
    whole.edit([last])
    assert held(editor) == held(whole)


@pytest.mark.parametrize(
    ("stage", "calls"),
    [
        ("factpatch.patch.history.add_shift", 2),
        ("factpatch.patch.patch.Patch.save", 1),
        ("factpatch.session.save_file", 1),
        ("factpatch.session.ask_bare", 3),
        ("factpatch.journal.append", 0),
        ("factpatch.support.files.os.write", 0),
    ],
)
def test_a_session_that_fails_at_any_stage_is_as_it_was(
    directory: Path, stage: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli.conftest import interrupt

    session, editor = reopened(directory)
    before, weights, patches = files(directory), held(editor), [batch.patch for batch in session.finished]
    with session.locked():
        with monkeypatch.context() as patched:
            interrupt(patched, stage, calls)
            with pytest.raises(KeyboardInterrupt):
                session.undo_fact(editor, "tower")
        assert held(editor) == weights
        assert (directory / "journal.jsonl").read_bytes() == before[directory / "journal.jsonl"]
        assert [batch.patch for batch in session.finished] == patches
        # A killed process is the same: what it left has no line. The next one writes over it.
        assert held(reopened(directory)[1]) == weights
        session.undo_fact(editor, "tower", ask=False)
    whole = edited()
    whole.undo_fact(TOWER)
    assert held(reopened(directory)[1]) == held(whole)


def test_a_session_looks_the_facts_up_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    for module in ("factpatch.session", "factpatch.editor"):
        monkeypatch.setattr(f"{module}.find_facts", lambda *given: found.append(find_facts(*given)) or found[-1])
    session, editor = reopened(directory)
    with session.locked():
        session.undo_fact(editor, "tower", ask=False)
    assert found == [[(1, 1)]]


LAST = Fact("{} lives in", "Ada Lovelace", "Rome")


def interrupted_at(step: int, action: Callable[[], Any]) -> bool:
    """Do something, but for an interruption at a step: a line of a session, its journal, an append or a history.

    Steps count from where a line is to be added to the journal. Returns whether there are so many.
    """
    files = ("factpatch/session.py", "factpatch/journal.py", "factpatch/patch/history.py", "factpatch/support/files.py")
    left, adding = step, False

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left, adding
        if not frame.f_code.co_filename.endswith(files):
            return None
        adding = adding or frame.f_code.co_name == "_append"
        if event == "line" and adding:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.fixture(scope="module")
def possible() -> dict[tuple[Any, ...], list[str]]:
    """The weights after each history that a session may have whose `undo_fact` was interrupted."""
    found = {}
    for without in (False, True):
        editor = edited()
        if without:
            editor.undo_fact(TOWER)
        for more in ([], [LAST]):
            if more:
                editor.edit(more)
            found[tuple(edit.facts for edit in editor.edits)] = held(editor)
    return found


@pytest.mark.long
def test_whatever_follows_an_interruption_anywhere_is_a_history_that_can_be(
    directory: Path, possible: dict[tuple[Any, ...], list[str]], tmp_path: Path
) -> None:
    step, endings = 0, set()
    while True:
        step += 1
        place = tmp_path / str(step)
        shutil.copytree(directory, place)
        session, editor = reopened(place)
        with session.locked():
            session.plan([[LAST]])
            if not interrupted_at(step, lambda s=session, e=editor: s.undo_fact(e, TOWER, ask=False)):
                break
        # Whoever catches the interruption may continue with the same objects, or is told to begin with new ones.
        followed = False
        with suppress(SessionError), session.locked():
            session.edit(editor, ask=False)
            followed = True
        again, editor = reopened(place)
        done = tuple(map(tuple, again.batches[: len(again.finished)]))
        assert held(editor) == possible[done], step
        assert followed == (done[-1] == (LAST,)), step
        endings.add((followed, (TOWER in done[1])))
        shutil.rmtree(place)
    # With the fact and edited upon; once the line is there, without it, and refused until the call was as good as over.
    assert endings == {(True, True), (False, False), (True, False)}


def without_values(directory: Path) -> None:
    from tests.test_session import relinked

    lines = [json.loads(line) for line in (directory / "journal.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if not name.startswith("targets")} for line in lines]
    (directory / "journal.jsonl").write_bytes(relinked(kept))


def cut(directory: Path) -> None:
    path = directory / "targets/0002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_values, r"an earlier version of factpatch edited batch 2, .*factpatch undo .* --to 1"),
        (cut, r"targets/0002\.safetensors: the targets of batch 2 are missing or were altered.*--to 1"),
    ],
)
def test_values_that_are_not_there_are_an_error_that_says_how_to_continue(
    damage: Callable[[Path], None], message: str, directory: Path
) -> None:
    damage(directory)
    session, editor = reopened(directory)
    before, content = held(editor), files(directory)
    with session.locked(), pytest.raises(SessionError, match=message):
        session.undo_fact(editor, "tower")
    assert held(editor) == before
    assert files(directory) == content


def test_a_batch_that_loses_all_facts_needs_no_values(directory: Path) -> None:
    without_values(directory)
    session, editor = reopened(directory)
    with session.locked():
        session.undo_fact(editor, FIELD, "again", ask=False)
    assert held(editor) == held(edited(batches=BATCHES[:2]))


def test_a_session_of_an_earlier_format_is_raised_when_facts_are_taken_back(directory: Path) -> None:
    record = json.loads((directory / "session.json").read_text())
    (directory / "session.json").write_text(json.dumps({**record, "format": 2}))
    journal = directory / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    from factpatch.journal import _line

    unlinked = [{name: value for name, value in line.items() if name not in ("after", "crc32")} for line in lines]
    journal.write_bytes(b"".join(map(_line, unlinked)))
    session, editor = reopened(directory)
    with session.locked():
        session.undo_fact(editor, "tower", ask=False)
    found = json.loads((directory / "session.json").read_text())
    assert (found["format"], found["began_format"]) == (4, 2)
    assert len(Journal(directory).finished) == 3


@pytest.mark.parametrize(
    ("field", "value"), [("to", 3), ("to", 9), ("gone", [[2, 2], [3, 1]]), ("gone", [[2]]), ("batches", [])]
)
def test_a_line_that_cannot_follow_is_named(directory: Path, field: str, value: Any) -> None:
    from tests.test_session import relinked

    session, editor = reopened(directory)
    with session.locked():
        session.undo_fact(editor, "tower", ask=False)
    journal = directory / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_bytes(relinked([*lines[:-1], {**lines[-1], field: value}]))
    with pytest.raises(SessionError, match=r"journal\.jsonl, line 5: .*Restore"):
        Journal(directory)
