"""A budget: batches that cost more than it allows are taken back to the bit, and the others stay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.editors import FACTS, LAYERS, make
from tests.models import SENTENCES

from factpatch import Editor, Session
from factpatch.edit_report import edit_and_report
from factpatch.evaluation.budget import Budget, BudgetError, Meter, recorded
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.tasks import TASKS
from factpatch.model.weights import content_hash

TEXT = "\n\n".join(SENTENCES)
BATCHES = [[FACTS[0]], [FACTS[1]], list(FACTS[2:])]


def held(editor: Editor) -> list[str]:
    return [content_hash(editor.lm.weight(layer)) for layer in LAYERS]


def after(batches: list[Any]) -> Editor:
    editor = make()
    for batch in batches:
        editor.edit(batch)
    return editor


@pytest.fixture(scope="module")
def rises() -> list[float]:
    """How far perplexity has risen after each batch, in percent."""
    editor, found = make(), []
    unedited = perplexity(editor.lm, TEXT)
    for batch in BATCHES:
        editor.edit(batch)
        found.append(100 * (perplexity(editor.lm, TEXT) / unedited - 1))
    return found


@pytest.fixture
def stopping(rises: list[float]) -> tuple[int, Budget]:
    """How many batches a budget leaves that does not leave all of them, and the budget."""
    kept = max(range(len(rises)), key=lambda index: rises[index])
    most = max([0.0, *rises[:kept]])
    assert rises[kept] > most, "no batch makes this text less likely than the ones before"
    return kept, Budget(max_perplexity=most, text=TEXT)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session.create(tmp_path / "session", make(), BATCHES)


def test_a_batch_over_the_budget_is_taken_back_to_the_bit_and_the_patch_of_the_others_saved(
    stopping: tuple[int, Budget], tmp_path: Path
) -> None:
    kept, budget = stopping
    editor, out = make(), tmp_path / "p.safetensors"
    with pytest.raises(BudgetError, match=r"perplexity \+.* % \(at most \+?[\d.]+ %\)") as raised:
        edit_and_report(editor, BATCHES, budget=budget, out=out, measure=None)
    assert held(editor) == held(after(BATCHES[:kept]))
    assert raised.value.kept == len(editor.edits) == kept
    assert out.exists() == bool(kept)


def test_a_session_stops_keeps_the_facts_pending_and_continues_with_a_wider_budget(
    stopping: tuple[int, Budget], session: Session, rises: list[float]
) -> None:
    kept, budget = stopping
    editor = make()
    with session.locked(), pytest.raises(BudgetError):
        edit_and_report(editor, session=session, budget=budget, measure=None)
    assert held(editor) == held(after(BATCHES[:kept]))
    reopened = Session(session.path)
    assert (len(reopened.finished), len(reopened.waiting)) == (kept, len(BATCHES) - kept)
    assert "at most" in reopened.stopped
    *_, line = (session.path / "journal.jsonl").read_text().splitlines()
    assert json.loads(line)["spent"] == {"perplexity": pytest.approx(rises[kept], abs=1e-3)}
    assert not (session.path / f"patches/{kept + 1:04d}.safetensors").exists()
    with reopened.locked():
        edit_and_report(make(), session=reopened, budget=Budget(math.inf, text=TEXT), measure=None)
    assert reopened.stopped == ""
    found = [batch.spent["perplexity"] for batch in reopened.finished[kept:]]
    assert found == pytest.approx(rises[kept:], abs=1e-3)


def test_whoever_is_asked_may_keep_a_batch(stopping: tuple[int, Budget]) -> None:
    _, budget = stopping
    said: list[str] = []

    def keep(exceeded: str) -> bool:
        said.append(exceeded)
        return True

    editor = make()
    edit_and_report(editor, BATCHES, budget=replace(budget, keep=keep), measure=None)
    assert held(editor) == held(after(BATCHES))
    assert said
    assert all(text.startswith("perplexity +") for text in said)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_measurement_that_fails_takes_the_batch_back(error: type[BaseException], session: Session) -> None:
    class Broken(Meter):
        def check(self, lm: Any) -> Any:
            raise error

    editor = make()
    meter = Broken(Budget(), editor.lm)
    before = held(editor)
    with session.locked(), pytest.raises(error):
        session.edit(editor, meter=meter)
    assert held(editor) == before
    assert len(Session(session.path).waiting) == len(BATCHES)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the accuracy that the next measurements find."""
    pytest.importorskip("sklearn")
    found = [50.0]

    class Result:
        def metrics(self) -> dict[str, Any]:
            return {"likelihood": type("C", (), {"accuracy": found[0]})}

    monkeypatch.setattr("factpatch.evaluation.budget.capability", lambda *given, **options: Result())

    def setting(accuracy: float) -> None:
        found[0] = accuracy

    return setting


def test_capability_is_the_share_of_the_unedited_accuracy(asked: Callable[[float], None]) -> None:
    budget = Budget(min_capability=0.9, tasks=[(TASKS["sst2"], [])])
    meter = Meter(budget, make().lm)
    asked(45.0)
    assert meter.check(make().lm) == {"capability": pytest.approx(0.9)}
    asked(44.0)
    with pytest.raises(BudgetError, match=r"capability 0\.880 of the unedited model's \(at least 0\.9\)"):
        meter.check(make().lm)
    asked(0.0)
    with pytest.raises(ValueError, match="answers no item rightly"):
        Meter(budget, make().lm)


def test_what_is_not_finite_exceeds_every_limit_and_is_none_in_a_record() -> None:
    meter = Meter(Budget(max_perplexity=1e9, text=TEXT), make().lm)
    assert "perplexity +nan %" in meter.exceeded({"perplexity": math.nan})
    assert recorded({"perplexity": math.inf, "capability": 0.98765432}) == {"perplexity": None, "capability": 0.9877}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_perplexity": -1.0}, "max_perplexity=-1.0: give percent"),
        ({"max_perplexity": math.nan}, "max_perplexity=nan"),
        ({"min_capability": 1.5}, "min_capability=1.5: give a share"),
        ({"min_capability": 0.5}, "give both"),
        ({"tasks": [(TASKS["sst2"], [])]}, "give both"),
    ],
)
def test_limits_out_of_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**fields)
