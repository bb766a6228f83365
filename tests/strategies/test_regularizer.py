"""Regularizers on matrices small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from factpatch.patch.shift import Dense, LowRank, Masked, Sparse
from factpatch.strategies import CapSingularValues, KeepLargest, SparePrincipal, Unchanged

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


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)], ids=["wide", "tall"])
@pytest.mark.parametrize(("share", "strength"), [(0.5, 0.5), (0.8, 1.0)])
def test_the_principal_directions_of_unit_rows_are_spared(
    shape: tuple[int, int], share: float, strength: float
) -> None:
    """As the paper writes it: the Gram matrix of the rows at unit length, its eigenvectors, Δ (I − α U Uᵀ)."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(shape, generator=generator, dtype=EXACT) * torch.logspace(0, 2, shape[0], dtype=EXACT)[:, None]
    unit = before / before.norm(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(unit.T @ unit)
    order = values.argsort(descending=True)
    reached, count = 0.0, 0
    while reached <= share * float(values.sum()):
        reached += float(values[order[count]])
        count += 1
    principal = vectors[:, order[:count]]
    shift = LowRank(
        torch.randn(shape[0], 3, generator=generator, dtype=EXACT),
        torch.randn(3, shape[1], generator=generator, dtype=EXACT),
    )
    expected = shift.matrix() @ (torch.eye(shape[1], dtype=EXACT) - strength * principal @ principal.T)
    rule = SparePrincipal(share, strength)
    kept = rule.regularize({4: shift}, {4: before})[4]
    assert isinstance(kept, LowRank)
    assert kept.up is shift.up
    torch.testing.assert_close(kept.matrix(), expected, rtol=1e-9, atol=1e-11)
    dense = rule.regularize({4: Dense(shift.matrix())}, {4: before})[4]
    torch.testing.assert_close(dense.matrix(), expected, rtol=1e-9, atol=1e-11)
    basis = rule.principal(before)
    torch.testing.assert_close(basis.T @ basis, torch.eye(count, dtype=EXACT), rtol=0, atol=1e-9)
    if strength == 1.0:  # nothing is left in these directions
        assert float((kept.matrix() @ principal).abs().max()) < 1e-9


def test_how_long_the_rows_are_does_not_matter_nor_does_a_row_of_zeros() -> None:
    before = torch.tensor([[3.0, 0, 0, 0], [5.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 0]], dtype=EXACT)
    # Two of three unit rows point along the first axis, which has more than half of the eigenvalues.
    shift = Dense(torch.ones(4, 4, dtype=EXACT))
    for weight in (before, before * torch.tensor([[1.0], [9.0], [0.1], [1.0]], dtype=EXACT)):
        kept = SparePrincipal().regularize({0: shift}, {0: weight})[0].matrix()
        torch.testing.assert_close(kept, torch.tensor([[0.5, 1.0, 1.0, 1.0]], dtype=EXACT).expand(4, 4))
    nothing = torch.zeros(2, 4, dtype=EXACT)
    assert torch.equal(SparePrincipal().regularize({0: shift}, {0: nothing})[0].matrix(), shift.matrix())


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"strength": -0.1}, {"strength": 1.5}])
def test_a_share_or_a_strength_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}="):
        SparePrincipal(**wrong)
