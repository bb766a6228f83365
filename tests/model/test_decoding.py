"""Sampling by noise against the distribution it must follow."""

import numpy as np
import pytest
import torch
from tests.models import tiny

from factpatch.model.decoding import TopK, continuations, end_tokens


@pytest.mark.parametrize("k", [1, 3, 9])
def test_noise_samples_the_most_probable_tokens_in_proportion(k):
    draws, vocabulary = 40_000, 6
    scores = torch.log_softmax(torch.tensor([0.1, 2.0, -1.0, 1.5, 0.7, -3.0], dtype=torch.float64), -1)
    noise = torch.from_numpy(np.random.default_rng(0).gumbel(size=(draws, 1, k)))
    picked = TopK(noise)(scores.expand(draws, -1), range(draws), 0)
    best = scores.topk(min(k, vocabulary))
    expected = torch.zeros(vocabulary, dtype=torch.float64).scatter(0, best.indices, torch.softmax(best.values, -1))
    found = torch.bincount(picked, minlength=vocabulary) / draws
    # Five standard errors of a share.
    assert torch.all((found - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt())


def test_equal_rows_are_continued_one_by_one():
    lm = tiny("gpt2", dtype=torch.float64)
    row = tuple(lm.tokenizer("The capital of")["input_ids"])
    asked = []

    def pick(scores, rows, step):
        asked.extend(rows)
        return torch.tensor([10 + index for index in rows])

    assert continuations(lm, [row, row, (5,)], [2, 3, 1], pick=pick) == [[10] * 2, [11] * 3, [12]]
    assert sorted(asked) == [0, 0, 1, 1, 1, 2]


def test_rows_leave_when_they_are_done_or_end(monkeypatch):
    lm = tiny("llama", dtype=torch.float64)
    widths = []
    body = type(lm).body
    monkeypatch.setattr(type(lm), "body", lambda self, **inputs: widths.append(inputs) or body(self, **inputs))
    plan = {0: [7, 8, 9], 1: [7, 3, 9], 2: [7, 8, 9]}

    found = continuations(
        lm,
        [(1, 2), (1, 4), (5,)],
        [3, 3, 3],
        pick=lambda scores, rows, step: torch.tensor([plan[row][step] for row in rows]),
        done=lambda new: new == [7, 8],
        ends={3},
    )
    assert found == [[7, 8], [7], [7, 8]]
    assert [inputs["input_ids"].shape[1] for inputs in widths] == [4, 3]


def test_end_tokens_are_those_of_the_model_and_of_its_tokenizer():
    lm = tiny("gpt2")
    own = lm.tokenizer.eos_token_id
    assert end_tokens(lm) == {own}
    lm.model.generation_config.eos_token_id = [11, 12]
    assert end_tokens(lm) == {own, 11, 12}
    lm.model.generation_config.eos_token_id = None
    assert end_tokens(lm) == {own}
