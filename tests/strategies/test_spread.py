"""Spreads: which layers, in which order, with what share."""

from __future__ import annotations

import pytest

from factpatch.strategies import Boundary, Each, Even, First, Spread, SquareRoot, Step

SPREADS: list[Spread] = [Even(), SquareRoot(), Boundary(), Boundary(together=3), Each(), First()]


def test_even_gives_every_layer_its_part_of_what_is_left() -> None:
    assert Even().steps([3, 4, 7]) == [Step(3, 7, 1 / 3), Step(4, 7, 1 / 2), Step(7, 7, 1.0)]


def test_square_root_gives_the_root_of_it() -> None:
    assert SquareRoot().steps([3, 4, 7]) == [Step(3, 7, (1 / 3) ** 0.5), Step(4, 7, 0.5**0.5), Step(7, 7, 1.0)]


def test_boundary_writes_both_ends_toward_their_own_targets() -> None:
    assert Boundary().steps([3, 4, 5, 8]) == [Step(3, 3, 1.0), Step(8, 8, 1.0)]


def test_layers_at_either_end_can_share_its_target() -> None:
    half = [Step(4, 6, 1 / 3), Step(5, 6, 1 / 2), Step(6, 6, 1.0)]
    assert Boundary(together=3).steps([4, 5, 6, 7, 8, 9]) == [
        *half,
        Step(7, 9, 1 / 3),
        Step(8, 9, 1 / 2),
        Step(9, 9, 1),
    ]
    assert Boundary(together=3).steps([4, 5, 6, 7, 8]) == [*half, Step(7, 8, 1 / 2), Step(8, 8, 1.0)]
    assert Boundary(together=2).steps([1, 2, 3, 4, 5]) == [
        Step(1, 2, 1 / 2), Step(2, 2, 1.0), Step(4, 5, 1 / 2), Step(5, 5, 1.0),
    ]  # fmt: skip
    assert Boundary(together=3).steps([4, 5]) == Even().steps([4, 5])


def test_at_least_one_layer_takes_a_residual() -> None:
    with pytest.raises(ValueError, match="together=0"):
        Boundary(together=0)


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
