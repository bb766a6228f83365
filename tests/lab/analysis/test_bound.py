"""The bound on the error of a shift: on random numbers, against dense formulas, and for what an editor writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tests.editors import EXACT, SOLVERS, second_moments
from tests.lab.analysis.tiny import FACTS, LAYERS, same, state, tiny_study
from torch import Tensor

from factpatch.lab.analysis.bound import (
    DISTANCE,
    EARLIER,
    SIZE,
    batch_sizes,
    bound,
    holds,
    in_words,
    panels,
    sides,
    solve_for,
)
from factpatch.lab.analysis.edits import Alone
from factpatch.lab.analysis.findings import Findings
from factpatch.lab.analysis.study import SPREADS, undone
from factpatch.strategies import NullSpace, Ridge, Solver, Step
from factpatch.strategies.least_squares import EarlierKeys
from factpatch.values.reading import SubjectRows, read_keys

TRIED: Sequence[Solver] = (Ridge(3.0), NullSpace(threshold=0.4, l2=0.5))
D_KEY, D_VALUE = 64, 32


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=EXACT)


@pytest.mark.parametrize("solver", TRIED, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("earlier", [0, 7])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("seed", range(5))
def test_the_bound_holds_and_its_sides_are_those_of_the_dense_formulas(
    seed: int, spread: str, earlier: int, solver: Solver
) -> None:
    facts, layers = 1 + 4 * seed, [2, 3, 5, 6, 7]
    moment, keys = second_moments(seed, LAYERS)[LAYERS[0]], random(facts, D_KEY, seed=seed)
    before = random(earlier, D_KEY, seed=100 + seed)
    exact, last = random(facts, D_VALUE, seed=200 + seed), 3 * random(facts, D_VALUE, seed=300 + seed)
    memory = EarlierKeys(solver.prepare(moment))
    memory.follow([{"keys": before}] if earlier else [])
    solved = solve_for(memory, keys)
    _, dense = SOLVERS[type(solver)]
    expected = dense(solver, moment, keys, torch.eye(facts, dtype=EXACT), before)
    torch.testing.assert_close(solved, expected, rtol=1e-8, atol=1e-10)
    for place, step in enumerate(SPREADS[spread].steps(layers)):
        found = sides(exact, last, step.share, solved)
        left = len(layers) - place
        error = torch.linalg.matrix_norm(exact.T @ solved - step.share * last.T @ solved, 2)
        assert found["error"] == pytest.approx(float(error), rel=1e-9)
        # The paper's L − l, and what takes its place for the square root.
        factor = left - 1 if spread == "even" else math.sqrt(left) - 1
        norms = [float(torch.linalg.matrix_norm(one, 2)) for one in (exact - last, step.share * last, solved)]
        assert found["bound"] == pytest.approx((norms[0] + factor * norms[1]) * norms[2], rel=1e-9)
        assert holds(found["error"], found["bound"])
        assert found["ratio"] == pytest.approx(found["error"] / found["bound"], rel=1e-12)


def test_a_longer_direct_residual_in_the_same_direction_reaches_the_bound() -> None:
    last, solved = random(1, D_VALUE, seed=0), random(1, D_KEY, seed=1)
    for spread in SPREADS.values():
        for step in spread.steps([1, 2, 3]):
            found = sides(1.5 * last, last, step.share, solved)
            assert found["error"] == pytest.approx(found["bound"], rel=1e-12)
            assert holds(found["error"], found["bound"])


def test_an_error_above_the_bound_is_detected() -> None:
    assert not holds(1.001, 1.0)


@pytest.mark.parametrize("method", ["memit", "alphaedit", "pmet"])
def test_the_shifts_are_those_that_an_editor_writes(method: str) -> None:
    """The direct and the distributed edit of one layer, without and with earlier keys."""
    study = tiny_study(method)
    for earlier, batch in ((0, FACTS[:2]), (2, FACTS[2:])):
        layer, last = LAYERS[0], LAYERS[-1]
        share = study.share("sqrt", layer)
        shifts, exact = {}, {}
        solved = torch.empty(0)
        for target, part in ((layer, 1.0), (last, share)):
            with undone(study.editor.with_spread(Alone(Step(layer, last, 0.5)))) as editor:
                if earlier:
                    editor.edit(FACTS[:earlier])
                editor._method = replace(editor.method, spread=Alone(Step(layer, target, part)))
                memory = editor.memory(layer)
                memory.follow([edit.traces[layer] for edit in editor.edits])
                solved = solve_for(memory, read_keys(study.lm, SubjectRows.of(study.lm, batch, editor.contexts), layer))
                exact[target] = editor.target_values(batch, target).delta
                shifts[target] = editor.edit(batch).batches[-1].shifts[layer].matrix()
        found = sides(exact[layer], exact[last], share, solved)
        error = float(torch.linalg.matrix_norm(shifts[layer] - shifts[last], 2))
        assert found["error"] == pytest.approx(error, rel=1e-7)
        assert found["relative"] == pytest.approx(error / float(torch.linalg.matrix_norm(shifts[layer], 2)), rel=1e-7)


@pytest.fixture(scope="module")
def findings() -> Findings:
    study = tiny_study()
    before = state(study)
    found = bound(study)
    assert same(study, before)
    return found


def test_the_bound_holds_wherever_it_is_measured(findings: Findings) -> None:
    by_measure = {
        name: [row.value for row in findings.numbers if row.measure == name] for name in ("error", "bound", "apart")
    }
    assert all(holds(*pair) for pair in zip(by_measure["error"], by_measure["bound"], strict=True))
    assert f"The bound holds in {len(by_measure['error'])} of {len(by_measure['error'])} cases." in in_words(findings)
    # Of five facts there are batches of 1, 2 and 5, and two of 2 in a sequence.
    assert findings.among("part") == [DISTANCE, SIZE, EARLIER]
    assert findings.among("size", part=SIZE) == [1, 2, 5]
    assert findings.among("earlier", part=EARLIER) == [0, 2]
    assert findings.among("last", part=DISTANCE) == list(LAYERS)


def test_at_its_own_layer_a_residual_has_no_error(findings: Findings) -> None:
    near = [row for row in findings.numbers if row.place.distance == 0]
    assert {row.value for row in near if row.measure in ("error", "bound", "apart", "kept_back")} == {0.0}
    assert {row.value for row in near if row.measure == "ratio"} == {None}
    assert {row.place.layer for row in near} == set(LAYERS)


def test_before_any_edit_a_sequence_gives_what_a_batch_of_that_size_does(findings: Findings) -> None:
    for spread in SPREADS:
        where = {"layer": LAYERS[0], "spread": spread}
        first = findings.of_facts("error", part=EARLIER, earlier=0, **where)
        among = findings.of_facts("error", part=SIZE, size=2, **where)
        assert first == {"facts 3 to 4": pytest.approx(among["facts 3 to 4"], rel=1e-6)}
        # Without earlier keys both are the same.
        alone = findings.of_facts("amplification_alone", part=EARLIER, earlier=0, **where)
        assert alone == findings.of_facts("amplification", part=EARLIER, earlier=0, **where)


def test_earlier_keys_make_a_difference(findings: Findings) -> None:
    where = {"part": EARLIER, "earlier": 2, "layer": LAYERS[0], "spread": "even"}
    alone, along = (findings.of_facts(f"amplification{suffix}", **where) for suffix in ("_alone", ""))
    assert alone.keys() == along.keys() == {"facts 3 to 4"}
    assert alone["facts 3 to 4"] != pytest.approx(along["facts 3 to 4"], rel=1e-4)


def test_too_few_facts_for_a_second_batch_are_named() -> None:
    found = bound(tiny_study(facts=FACTS[:1]))
    assert found.notes[0].startswith("1 facts make no second batch of 2")
    assert in_words(found)[0].startswith("The bound holds in ")
    assert panels(found)


def test_sizes_of_batches() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(50) == [1, 2, 5, 10, 20, 50]
    assert batch_sizes(120) == [1, 2, 5, 10, 20, 50, 100, 120]
