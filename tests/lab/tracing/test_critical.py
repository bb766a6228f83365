"""Averages at the published positions by hand, and proposals from planted peaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.lab.tracing.made import made_trace

from factpatch.lab.tracing.averages import LAST_SUBJECT_TOKEN, POSITIONS, Totals, averages, effects, interval
from factpatch.lab.tracing.critical import propose, proposed_size
from factpatch.lab.tracing.restoring import KINDS, scaled_window, window_around


def curve(layers: int, peak: int, width: float, facts: int = 40, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """(facts, layers): a bump with noise."""
    bump = 0.2 * np.exp(-(((np.arange(layers) - peak) / width) ** 2))
    return bump + noise * np.random.default_rng(seed).standard_normal((facts, layers))


@pytest.mark.parametrize(
    ("subject", "tokens", "expected"),
    [
        (range(1, 5), 9, [[1], [2, 3], [4], [5], [6, 7], [8]]),
        (range(2), 4, [[0], [], [1], [2], [], [3]]),
        (range(2, 3), 4, [[2], [], [2], [3], [], [3]]),
        (range(1, 3), 3, [[1], [], [2], [], [], [2]]),
    ],
)
def test_positions(subject: range, tokens: int, expected: list[list[int]]) -> None:
    assert [list(position(subject, tokens)) for position in POSITIONS.values()] == expected


def test_a_fact_counts_once_however_many_tokens_it_has_at_a_position() -> None:
    long = made_trace({"mlp": [[0.0], [0.1], [0.3], [0.5], [0.2]]}, range(4))
    short = made_trace({"mlp": [[0.0], [0.4], [0.9], [0.2]]}, range(3), corrupted=0.2)
    without = made_trace({"mlp": [[0.1], [0.2]]}, range(1))
    found = averages([long, short, without], "mlp")
    middle = found["middle subject tokens"][0]
    assert (middle.value, middle.facts, middle.missing) == (pytest.approx(0.3), 2, 1)
    assert middle.error == pytest.approx(np.std([0.2, 0.4], ddof=1) / math.sqrt(2))
    assert interval(middle) == pytest.approx((0.3 - 1.96 * middle.error, 0.3 + 1.96 * middle.error))
    assert found["further tokens"][0].value is None
    assert interval(found["further tokens"][0]) is None
    assert effects([long, short, without], "mlp", LAST_SUBJECT_TOKEN)[:, 0] == pytest.approx([0.5, 0.9, 0.1])
    totals = Totals.of([long, short])
    assert (totals.clean.value, totals.corrupted.value) == pytest.approx((0.5, 0.15))
    assert totals.total_effect.value == pytest.approx(0.35)


@pytest.mark.parametrize("peak", [4, 9, 15, 22])
def test_a_planted_peak_is_found_with_certainty(peak: int) -> None:
    found = propose(curve(30, peak, 2.5, noise=0.002), size=5)
    assert found.layers == tuple(range(peak - 2, peak + 3))
    assert found.peak == peak
    assert found.agreement is not None
    assert found.agreement > 0.9
    assert not found.alternatives
    assert found.effect.low is not None
    assert found.effect.low > 0
    assert f"layers {peak - 2} to {peak + 2}" in found.reason


def test_nothing_above_the_end_of_the_peak_is_proposed() -> None:
    steep = np.tile([0.0, 0.1, 0.2, 0.3, 0.4, 1.0, 0.45, 0.44, 0.43, 0.42], (3, 1))
    found = propose(steep, size=4)
    assert (found.peak, found.end) == (5, 5)
    assert found.layers == (2, 3, 4, 5)
    assert "of the windows of 4 layers that end there or before, layers 2 to 5 has" in found.reason
    # A peak lower than the window leaves no choice.
    low = propose(steep[:, ::-1][:, 4:], size=3)
    assert (low.end, low.layers) == (0, (0, 1, 2))
    assert "no window of 3 layers ends there or before, so the lowest one is taken, layers 0 to 2" in low.reason


def test_equals_go_to_the_lowest_and_are_all_listed() -> None:
    found = propose(np.tile([0.1, 0.3, 0.3, 0.3, 0.3], (4, 1)), size=2)
    assert found.layers == (1, 2)
    assert found.alternatives == (2, 3)
    assert "Equally good, as far as these facts show: layers 2 to 3, layers 3 to 4." in found.certainty


def test_an_uncertain_peak_has_low_agreement_and_alternatives() -> None:
    found = propose(curve(30, 10, 6, facts=6, noise=0.2), size=5)
    assert found.agreement is not None
    assert found.agreement < 0.9
    assert found.alternatives


def test_one_fact_gives_a_proposal_without_an_interval() -> None:
    found = propose(curve(30, 10, 2.5, facts=1, noise=0), size=5)
    assert found.layers == (8, 9, 10, 11, 12)
    assert found.agreement is None
    assert "one fact says nothing about others; give at least 2" in found.certainty


def test_where_nothing_helps_nothing_is_proposed() -> None:
    found = propose(-np.ones((5, 12)))
    assert found.layers == ()
    assert "nothing is proposed" in found.reason
    assert found.certainty == ""


def test_a_window_that_does_harm_is_not_proposed_even_if_one_of_its_layers_helps() -> None:
    found = propose(np.tile([-0.013, -0.023, -0.022, -0.016, -0.012, -0.004, 0.008, 0.003, 0.002], (12, 1)), size=5)
    assert found.peak == 6
    assert found.layers == ()
    assert "nothing is proposed" in found.reason


@pytest.mark.parametrize(("facts", "said"), [(2, True), (9, True), (10, False)])
def test_few_facts_do_not_sound_certain(facts: int, said: bool) -> None:
    certainty = propose(curve(30, 10, 2.5, facts=facts, noise=0.001), size=5).certainty
    assert ("So few facts do not show how sure that is" in certainty) == said


def test_the_same_facts_and_seed_give_the_same_proposal() -> None:
    given = curve(24, 7, 4, facts=8, noise=0.1)
    assert propose(given, seed=2) == propose(given, seed=2)


@pytest.mark.parametrize(("layers", "size"), [(48, 5), (32, 5), (28, 5), (30, 5), (12, 2), (4, 1), (1, 1)])
def test_shallow_models_get_fewer_layers(layers: int, size: int) -> None:
    assert proposed_size(layers) == size


def test_unusable_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size=9: propose from 1 to 4 layers"):
        propose(np.ones((2, 4)), size=9)
    with pytest.raises(ValueError, match="there are no facts"):
        propose(np.ones((0, 4)))


@pytest.mark.parametrize("window", [1, 4, 5, 10])
def test_windows_have_their_width_and_hold_their_layer(window: int) -> None:
    for layer in range(48):
        within = window_around(layer, 48, window)
        assert layer in within
        assert len(within) == window or 0 in within or 47 in within
    assert list(window_around(20, 48, window)) == list(range(20 - window // 2, 20 - window // 2 + window))
    assert scaled_window(48) == 10
    assert scaled_window(4) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_that_do_not_run_are_below_those_restored(kind: str) -> None:
    for layer in range(8):
        found = KINDS[kind].at(layer, 8, 3)
        assert found.site == KINDS[kind].site
        assert -1 <= found.start <= layer
        assert all(found.start < given < 8 for given in found.layers)
