"""Groups of rows and the head in chunks."""

import torch
from tests.models import tiny

from factpatch.model import batching


def test_batches_hold_every_row_once_and_stay_within_the_budget():
    lengths = [3, 9, 1, 4, 4, 9, 2, 30, 7]
    groups = batching.batches(lengths, budget=18)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert groups[0] == [7]  # longer than the budget, so alone
    assert all(len(group) * max(lengths[row] for row in group) <= 18 for group in groups[1:])


def test_no_rows_make_no_batches():
    assert batching.batches([]) == []


def test_padding_follows_the_tokens_and_is_masked():
    ids, mask = batching.padded([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_head_in_chunks_equals_the_head_at_once(monkeypatch):
    lm = tiny("gpt2", dtype=torch.float64)
    hidden = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # Three positions at a time.
    monkeypatch.setattr(batching, "HEAD_ENTRIES", 3 * 400 + 1)
    with torch.no_grad():
        chunks = list(batching.log_probability_chunks(lm, hidden))
        at_once = lm.log_probabilities(hidden)
    assert [(chunk.start, chunk.stop) for chunk, _ in chunks] == [(0, 3), (3, 6), (6, 7)]
    torch.testing.assert_close(torch.cat([table for _, table in chunks]), at_once, rtol=0, atol=1e-12)
