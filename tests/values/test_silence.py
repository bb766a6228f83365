"""An answer that is to be forgotten, with nothing in its place: its loss, its stop, and what is written of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.editors import CONTEXTS, FACTS, make
from tests.models import tiny

from factpatch import Fact, Forget
from factpatch.evaluation import forgetting
from factpatch.evaluation.probabilities import Request, score
from factpatch.strategies import HiddenState, Silence
from factpatch.values.optimize import optimize_values
from factpatch.values.views import views_of


@pytest.fixture(autouse=True)
def _knows_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds no answer probable."""
    monkeypatch.setattr(forgetting, "KNOWN", 0.0)


OLD = [Forget(fact.prompt, fact.subject, fact.target_new) for fact in FACTS]
TARGET = Silence(steps=40, learning_rate=0.3, clamp=4.0, forgotten=1e-4, kl_factor=0.0, weight_decay=0.0)


def chance(lm: object, fact: Fact) -> float:
    return score(lm, [Request(fact.text, str(fact.target_true))])[0].probability  # type: ignore[arg-type]


def test_the_loss_is_the_excess_of_each_text_over_the_bound() -> None:
    target = Silence(forgotten=math.exp(-3))
    chosen = torch.tensor([-1.0, -1.5, -4.0, -0.25])  # texts of two, one and one token
    told, missed = target.told(chosen, chosen > -2, torch.tensor([0.25, 0.25, 0.5, 1.0]), torch.tensor([0, 0, 1, 2]))
    torch.testing.assert_close(told, torch.tensor([0.125, 0.125, 0.0, 2.75]))  # 3 - 2.5 by halves, nothing, 3 - 0.25
    assert missed.tolist() == [True, True, False, True]


def test_it_stops_where_the_answer_is_improbable_in_every_context() -> None:
    lm = tiny("llama", dtype=torch.float64)
    found = optimize_values(lm, OLD, 1, TARGET, CONTEXTS)
    stopped = found.evaluations < TARGET.steps
    assert bool(stopped.any())
    assert bool((found.loss[stopped] == 0).all())
    assert bool((found.delta.norm(dim=-1)[stopped & (found.updates > 0)] > 0).all())
    # What is improbable already stays as it is.
    known = optimize_values(lm, OLD, 1, replace(TARGET, forgotten=0.999), CONTEXTS)
    assert known.evaluations.tolist() == [1] * len(OLD)
    assert not bool(known.delta.any())


def test_a_view_apart_takes_the_facts_with_nothing_in_their_place() -> None:
    facts = [FACTS[0], OLD[1], FACTS[2], Forget(FACTS[3].prompt, FACTS[3].subject, "mathematics", instead="unknown")]
    main, _ = views_of(tiny("llama"), facts, CONTEXTS, HiddenState(steps=7), apart=False)
    assert [(view.rows, type(view.target), view.target.steps) for view in main.parts] == [
        ((0, 2, 3), HiddenState, 7),
        ((1,), Silence, 7),
    ]
    assert list(main.facts) == facts


@pytest.mark.parametrize("method", ["memit-blue", "alphaedit", "pmet"])
def test_it_is_edited_beside_others_and_undone(method: str) -> None:
    made = make(method, settings={"target.clamp": 4.0, "target.forgotten": 1e-10, "target.steps": 20})
    alone = make(method, settings={"target.clamp": 4.0, "target.forgotten": 1e-10, "target.steps": 20})
    before = {layer: weight.clone() for layer, weight in made.lm.weights(made.written_layers).items()}
    chances = [chance(made.lm, fact) for fact in OLD]
    made.edit([*OLD[:2], *FACTS[2:]])
    if method == "memit-blue":  # the others' solvers reach little of a random model
        assert all(chance(made.lm, fact) < then for fact, then in zip(OLD[:2], chances, strict=False))
    alone.edit(FACTS[2:])
    first = min(made.edits[-1].values)
    torch.testing.assert_close(made.edits[-1].values[first][2:], alone.edits[-1].values[first])
    assert made.patch.facts == [*OLD[:2], *FACTS[2:]]
    made.undo_fact(OLD[0])
    assert made.patch.facts == [OLD[1], *FACTS[2:]]
    made.undo()
    assert all(torch.equal(weight, before[layer]) for layer, weight in made.lm.weights(made.written_layers).items())


def test_a_gradient_needs_an_answer() -> None:
    with pytest.raises(ValueError, match=r"forget='silence' of .*give target_new"):
        make("ultraedit").edit(OLD[:1])


def test_a_silence_takes_no_margin_over_and_stands_where_its_target_does() -> None:
    target = HiddenState(steps=7, enough_margin=1.0, turns=2)
    silence = Silence.like(target)
    assert (silence.steps, silence.turns, silence.enough_margin) == (7, 2, 0.0)  # a margin is how far an answer leads
    assert (silence.sites, silence.inside) == (HiddenState.sites, HiddenState.inside)
    inner = Silence.like(target.inner)
    assert (inner.sites, inner.inside, inner.steps) == (("mlp",), True, 7)
    lm = tiny("gemma2")
    found = optimize_values(lm, OLD, 1, Silence.like(replace(TARGET, steps=3).inner), CONTEXTS)
    assert bool(torch.isfinite(found.values).all())
