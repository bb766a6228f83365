"""The forms of a shift: what they are as a matrix, what they cost, how they add up and fall apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from factpatch.patch.shift import Dense, LowRank, Masked, Shift, Sparse, decomposed, shift_from_tensors, smaller, total

D_VALUE, D_KEY = 13, 21
"""Odd, so that the bits of a mask do not fill their last byte."""
DTYPES = (torch.float32, torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rank: int = 2, seed: int = 0) -> LowRank:
    return LowRank(normal(D_VALUE, rank, seed=seed), normal(rank, D_KEY, seed=seed + 100))


def mask(share: float, seed: int = 5) -> Tensor:
    return torch.rand(D_VALUE, D_KEY, generator=torch.Generator().manual_seed(seed)) < share


def forms() -> list[Shift]:
    return [
        low_rank(),
        Dense(normal(D_VALUE, D_KEY)),
        Masked.of(low_rank(), mask(0.6)),
        Masked.of(Dense(normal(D_VALUE, D_KEY)), mask(0.6)),
    ]


def test_every_form_occurs() -> None:
    assert [type(form) for form in forms()] == [LowRank, Dense, Masked, Sparse]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("dense", [False, True])
def test_a_masked_shift_is_the_shift_where_the_mask_is_true_and_zero_elsewhere(share: float, dense: bool) -> None:
    shift: Shift = Dense(normal(D_VALUE, D_KEY)) if dense else low_rank()
    kept = mask(share)
    assert torch.equal(Masked.of(shift, kept).matrix(), shift.matrix() * kept)


def test_few_entries_are_stored_as_they_are_and_many_by_their_factors() -> None:
    numbers = 2 * (D_VALUE + D_KEY)
    for share, form in ((0.1, Sparse), (0.6, Masked), (1.0, LowRank)):
        assert isinstance(Masked.of(low_rank(), mask(share)), form), share
        assert (int(mask(share).sum()) > numbers) == (form is not Sparse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", range(4))
def test_the_parts_of_a_shift_make_it_again(form: int, dtype: torch.dtype) -> None:
    shift = forms()[form].to(dtype)
    again = shift_from_tensors(shift.tensors())
    assert type(again) is type(shift)
    assert again.shape == shift.shape == (D_VALUE, D_KEY)
    assert torch.equal(again.matrix(), shift.matrix())
    assert shift.matrix().dtype == torch.float64
    assert {tensor.dtype for tensor in shift.tensors().values()} <= {dtype, torch.uint8, torch.int64}


@pytest.mark.parametrize("form", range(2, 4))
def test_a_mask_costs_a_bit_per_entry(form: int) -> None:
    shift = forms()[form].to(torch.float32)
    rest = sum(tensor.nbytes for name, tensor in shift.tensors().items() if name != "kept")
    assert shift.tensors()["kept"].nbytes == -(-D_VALUE * D_KEY // 8)
    numbers = 2 * (D_VALUE + D_KEY) if form == 2 else int(mask(0.6).sum()) + 4  # a size is two wide numbers
    assert rest == 4 * numbers


@pytest.mark.parametrize("form", range(4))
def test_what_is_not_finite_is_found(form: int) -> None:
    shift = forms()[form]
    assert shift.is_finite()
    name = {0: "up", 1: "full", 2: "down", 3: "values"}[form]
    shift.tensors()[name].view(-1)[0] = float("nan")
    assert not shift.is_finite()


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found \['up'\]"):
        shift_from_tensors({"up": torch.zeros(1, 1)})


# --- sums


@pytest.mark.parametrize("chosen", [(0,), (2,), (3,), (0, 0), (0, 1), (2, 3), (0, 1, 2, 3)])
def test_a_total_is_the_sum_of_the_matrices(chosen: tuple[int, ...]) -> None:
    shifts = [forms()[form] for form in chosen]
    expected = torch.stack([shift.matrix() for shift in shifts]).sum(0)
    torch.testing.assert_close(total(shifts).matrix(), expected, rtol=1e-13, atol=1e-13)


def test_a_total_of_factors_is_in_factors_until_the_matrix_is_smaller() -> None:
    parts = [low_rank(seed=seed) for seed in range(5)]
    found = total(parts[:3])
    assert isinstance(found, LowRank)
    assert found.up.shape == (D_VALUE, 6)
    assert 10 * (D_VALUE + D_KEY) > D_VALUE * D_KEY
    assert isinstance(total(parts), Dense)


@pytest.mark.parametrize("form", range(4))
def test_a_total_of_one_shift_is_that_shift_in_its_form(form: int) -> None:
    shift = forms()[form].to(torch.float32)
    found = total([shift])
    assert type(found) is type(shift)
    assert torch.equal(found.matrix(), shift.matrix())
    assert torch.float64 in {tensor.dtype for tensor in found.tensors().values()}


def test_factors_larger_than_the_matrix_become_the_matrix() -> None:
    assert isinstance(smaller(low_rank(8)), LowRank)
    assert isinstance(smaller(low_rank(9)), Dense)
    torch.testing.assert_close(smaller(low_rank(9)).matrix(), low_rank(9).matrix())


# --- singular values


@pytest.mark.parametrize("shift", [*forms(), low_rank(1), low_rank(D_VALUE - 1), low_rank(D_VALUE), low_rank(30)])
def test_a_decomposition_is_the_singular_value_decomposition_of_the_matrix(shift: Shift) -> None:
    left, singular, right = decomposed(shift)
    torch.testing.assert_close((left * singular) @ right, shift.matrix(), rtol=1e-12, atol=1e-12)
    for vectors in (left.T, right):
        torch.testing.assert_close(
            vectors @ vectors.T, torch.eye(len(singular), dtype=torch.float64), atol=1e-12, rtol=0
        )
    expected = torch.linalg.svdvals(shift.matrix())
    torch.testing.assert_close(singular, expected[: len(singular)], rtol=1e-10, atol=1e-12)
    assert float(expected[len(singular) :].sum()) < 1e-10


def test_factors_are_decomposed_at_their_rank() -> None:
    left, singular, right = decomposed(low_rank(3))
    assert (left.shape, singular.shape, right.shape) == ((D_VALUE, 3), (3,), (3, D_KEY))
