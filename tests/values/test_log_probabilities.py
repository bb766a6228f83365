"""The log-probabilities that a loss reads, and their gradient, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from factpatch.values.micro_batch import _LogProbabilities

TARGET = torch.tensor([3, 0, 3])


def plainly(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    table = torch.log_softmax(logits, dim=-1)
    return table[: len(target)].gather(1, target[:, None])[:, 0], table[len(target) :]


def loss(chosen: Tensor, rest: Tensor) -> Tensor:
    return (chosen * torch.tensor([0.5, -2.0, 0.0])).sum() + (rest.exp() * (rest + 3)).sum()


@pytest.mark.parametrize("rest", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_and_their_gradient_are_those_of_log_softmax(rest: int, dtype: torch.dtype) -> None:
    logits = torch.randn(3 + rest, 50, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 4

    def found(read: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        given = logits.clone().requires_grad_()
        chosen, others, *_ = read(given, TARGET)
        return (*torch.autograd.grad(loss(chosen, others), given), chosen.detach(), others.detach())

    for ours, theirs in zip(found(_LogProbabilities.apply), found(plainly), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=1e-7)


def test_the_table_has_no_gradient() -> None:
    logits = torch.randn(4, 50, requires_grad=True)
    chosen, rest, table = _LogProbabilities.apply(logits, TARGET)
    assert [one.requires_grad for one in (chosen, rest, table)] == [True, True, False]
    assert torch.equal(table, torch.log_softmax(logits, dim=-1))
