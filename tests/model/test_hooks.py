"""What hooks leave out and put in, on modules of their own; everything else about hooks is tested where it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factpatch.model.hooks import only_at, replacing


class Counting(nn.Module):
    """Twice the input, and how many tokens it was; a tuple on request."""

    def __init__(self, tuples: bool = False) -> None:
        super().__init__()
        self.tuples = tuples
        self.tokens: list[int] = []

    def forward(self, hidden_states: Tensor) -> Any:
        self.tokens.append(hidden_states.shape[:-1].numel())
        return (2 * hidden_states, None) if self.tuples else 2 * hidden_states


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 2)])
@pytest.mark.parametrize("tuples", [False, True])
@pytest.mark.parametrize("places", [[1, 4], []])
def test_a_module_runs_for_some_tokens_and_puts_out_zeros_for_the_others(
    named: bool, shape: tuple[int, ...], tuples: bool, places: list[int]
) -> None:
    module, hidden = Counting(tuples), torch.arange(10.0).reshape(shape)
    expected = torch.zeros(5, 2)
    expected[places] = 2 * hidden.reshape(5, 2)[places]
    with only_at([(module, torch.tensor(places, dtype=torch.long))]):
        for _ in range(2):
            output = module(hidden_states=hidden) if named else module(hidden)
            found = output[0] if tuples else output
            assert torch.equal(found, expected.reshape(shape))
    assert module.tokens == [len(places)] * 2
    output = module(hidden)
    assert torch.equal(output[0] if tuples else output, 2 * hidden)


def test_the_others_can_be_given() -> None:
    module, hidden = Counting(), torch.ones(1, 3, 2)
    given = torch.full((1, 2), 7.0)
    with only_at([(module, torch.tensor([0, 2]))]), replacing([(module, given)], torch.tensor([1])):
        assert module(hidden).tolist() == [[[2, 2], [7, 7], [2, 2]]]
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
