"""Spreads: which layers, in which order, with what share."""

from __future__ import annotations

import pytest

from factpatch.strategies import Boundary, Each, Even, First, Spread, SquareRoot, Step

SPREADS: list[Spread] = [Even(), SquareRoot(), Boundary(), Each(), First()]


def test_even_gives_every_layer_its_part_of_what_is_left() -> None:
    assert Even().steps([3, 4, 7]) == [Step(3, 7, 1 / 3), Step(4, 7, 1 / 2), Step(7, 7, 1.0)]


def test_square_root_gives_the_root_of_it() -> None:
    assert SquareRoot().steps([3, 4, 7]) == [Step(3, 7, (1 / 3) ** 0.5), Step(4, 7, 0.5**0.5), Step(7, 7, 1.0)]


def test_boundary_writes_both_ends_toward_their_own_targets() -> None:
    assert Boundary().steps([3, 4, 5, 8]) == [Step(3, 3, 1.0), Step(8, 8, 1.0)]


def test_each_writes_every_layer_toward_its_own_target() -> None:
    assert Each().steps([3, 4]) == [Step(3, 3, 1.0), Step(4, 4, 1.0)]


def test_first_writes_one_layer() -> None:
    assert First().steps([3, 4, 5]) == [Step(3, 3, 1.0)]


@pytest.mark.parametrize("spread", SPREADS, ids=lambda spread: type(spread).__name__)
def test_one_critical_layer_is_written_once_with_the_whole_share(spread: Spread) -> None:
    assert spread.steps([6]) == [Step(6, 6, 1.0)]


@pytest.mark.parametrize("spread", SPREADS, ids=lambda spread: type(spread).__name__)
def test_shares_clear_the_residual(spread: Spread) -> None:
    left: dict[int, float] = {}
    for step in spread.steps([2, 3, 5, 6]):
        left[step.target_layer] = left.get(step.target_layer, 1.0) * (1 - step.share)
    assert all(abs(rest) < 1e-12 for rest in left.values())
