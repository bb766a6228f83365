"""Regularizers on matrices small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from factpatch.patch.shift import Dense, LowRank, Masked, Sparse
from factpatch.strategies import CapSingularValues, KeepLargest, Unchanged

EXACT = torch.float64


def test_keep_largest_keeps_what_changes_most_relative_to_the_weight() -> None:
    before = torch.tensor([[1.0, 10.0, 1.0, 2.0, 4.0]], dtype=EXACT)
    shift = torch.tensor([[0.1, 5.0, -0.9, 0.2, -0.2]], dtype=EXACT)
    # Relative: 0.1, 0.5, 0.9, 0.1, 0.05. The ⌊0.6 · 5⌋-th smallest is 0.1 (to rounding, that of the last weight).
    kept = KeepLargest(keep=0.4).regularize({7: Dense(shift)}, {7: before})[7].matrix()
    assert kept[0, 1] == 5.0
    assert kept[0, 2] == -0.9
    assert int((kept != 0).sum()) == 3
    assert kept[0, 4] == 0


@pytest.mark.parametrize(("keep", "count"), [(1.0, 1000), (0.4, 401), (0.2, 201), (0.001, 2)])
def test_keep_largest_counts_as_the_published_code(keep: float, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shift, before = (torch.randn(20, 50, generator=generator, dtype=EXACT) for _ in range(2))
    kept = KeepLargest(keep).regularize({0: Dense(shift)}, {0: before})[0].matrix()
    assert int((kept != 0).sum()) == count
    assert torch.equal(kept[kept != 0], shift[kept != 0])


def test_a_low_rank_shift_is_kept_as_its_factors_and_a_mask_while_that_is_smaller() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(40, 60, generator=generator, dtype=EXACT)
    for rank, kind in ((2, Masked), (30, Sparse)):
        shift = LowRank(
            torch.randn(40, rank, generator=generator, dtype=EXACT),
            torch.randn(rank, 60, generator=generator, dtype=EXACT),
        )
        kept = KeepLargest().regularize({0: shift}, {0: before})[0]
        assert isinstance(kept, kind)
        dense = KeepLargest().regularize({0: Dense(shift.matrix())}, {0: before})[0]
        assert torch.equal(kept.matrix(), dense.matrix())
        assert sum(tensor.nbytes for tensor in kept.tensors().values()) < 8 * 40 * 60 / 2


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, math.nan])
def test_keep_must_be_a_share(keep: float) -> None:
    with pytest.raises(ValueError, match="keep="):
        KeepLargest(keep)


def test_cap_leaves_small_singular_values_and_takes_the_logarithm_of_large_ones() -> None:
    before = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=EXACT))
    shift = torch.diag(torch.tensor([2.0 * math.e, 1.5, 0.1], dtype=EXACT))
    for form in (Dense(shift), LowRank(shift, torch.eye(3, dtype=EXACT))):
        kept = CapSingularValues().regularize({0: form}, {0: before})[0].matrix()
        # ln(2e) - ln 2 + 2 = 3.
        torch.testing.assert_close(kept, torch.diag(torch.tensor([3.0, 1.5, 0.1], dtype=EXACT)))


def test_cap_is_continuous_at_the_bound() -> None:
    """s_max itself stays; the published formula has the value s_max there only with this sign of the logarithms."""
    before = torch.diag(torch.tensor([2.0, 1.0], dtype=EXACT))
    for singular in (2.0, 2.0 + 1e-9):
        shift = Dense(torch.diag(torch.tensor([singular, 0.0], dtype=EXACT)))
        kept = CapSingularValues().regularize({0: shift}, {0: before})[0].matrix()
        assert abs(float(kept[0, 0]) - 2.0) < 1e-8


def test_unchanged_gives_back_the_very_shifts() -> None:
    shift = Dense(torch.ones(2, 3))
    assert Unchanged().regularize({1: shift}, {1: torch.zeros(2, 3)})[1] is shift
