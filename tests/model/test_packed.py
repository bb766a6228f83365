"""Rows side by side against each row alone: the same hidden states, whatever runs with and before them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models import FAMILIES, NUM_LAYERS, SENTENCES, tiny
from torch import Tensor

from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, Pool, packed_attention, run_packed
from factpatch.model.tree import Tree

EXACT = torch.float64
# Some families keep a float32 table or float32 attention scores inside a float64 model.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def texts(lm: LanguageModel) -> list[list[int]]:
    """Of different lengths, two of them equal, all with the same beginning."""
    beginning = lm.tokenizer("The capital of")["input_ids"]
    rest = [lm.tokenizer(sentence)["input_ids"] for sentence in SENTENCES[:4]]
    return [beginning + rest[0], beginning + rest[1][:4], beginning + rest[2][:4], beginning + rest[3]]


def alone(lm: LanguageModel, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return lm.body(input_ids=torch.tensor([ids]))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_side_by_side_do_not_see_each_other(family: str) -> None:
    lm = tiny(family, dtype=EXACT)
    rows = sorted(texts(lm), key=len)
    packing = Packing([PackedRow(len(row)) for row in rows], lm.dtype, lm.device)
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        found, _ = run_packed(lm, packing, Pool(), ids=torch.tensor([token for row in rows for token in row]))
    expected = torch.cat([alone(lm, row) for row in rows])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beginning_that_rows_share_is_run_once(family: str) -> None:
    lm = tiny(family, dtype=EXACT)
    rows = sorted(texts(lm), key=len)
    shared = len(lm.tokenizer("The capital of")["input_ids"])
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        first = Packing([PackedRow(shared)], lm.dtype, lm.device)
        _, pool = run_packed(lm, first, Pool(), ids=torch.tensor(rows[0][:shared]), collect=True)
        assert pool.tokens == shared
        rest = [row[shared:] for row in rows]
        packing = Packing([PackedRow(len(row), tuple(range(shared))) for row in rest], lm.dtype, lm.device)
        found, _ = run_packed(lm, packing, pool, ids=torch.tensor([token for row in rest for token in row]))
    expected = torch.cat([alone(lm, row)[shared:] for row in rows])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gptj", "gpt2"])
def test_rows_of_a_bundle_do_not_see_each_other_either(family: str) -> None:
    """Bundles of one, two and three rows, in groups of two lengths, whose prefixes agree in part."""
    lm = tiny(family, dtype=EXACT)
    read = texts(lm)[:2]
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        before = Packing([PackedRow(6), PackedRow(6)], lm.dtype, lm.device)
        _, pool = run_packed(lm, before, Pool(), ids=torch.tensor([*read[0][:6], *read[1][:6]]), collect=True)
        # Which text, how much of it was read, and how many tokens follow.
        rows = [(0, 6, 4), (0, 2, 1), (1, 5, 3), (1, 0, 1), (0, 1, 3), (1, 6, 2)]
        follow = [[7 + place + index for place in range(more)] for index, (_, _, more) in enumerate(rows)]
        packed = [PackedRow(more, tuple(range(6 * text, 6 * text + known))) for text, known, more in rows]
        packing = Packing(packed, lm.dtype, lm.device, together=[1, 2, 3])
        assert [group.length for group in packing.groups] == [4, 6]
        found, _ = run_packed(lm, packing, pool, ids=torch.tensor([token for row in follow for token in row]))
    expected = [
        alone(lm, [*read[text][:known], *row])[known:] for (text, known, _), row in zip(rows, follow, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)


@pytest.mark.parametrize("start", [-1, 0, NUM_LAYERS - 1])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "opt"])
def test_rows_can_enter_above_any_layer_with_prefixes_of_different_length(family: str, start: int) -> None:
    lm = tiny(family, dtype=EXACT)
    rows = texts(lm)[:2]
    with torch.inference_mode(), lm.quiet():
        hidden = []
        for row in rows:
            block = lm.block(max(start, 0))
            wanted = {"outputs": {0: block}} if start >= 0 else {"inputs": {0: block}}
            with captured(**wanted) as states:  # type: ignore[arg-type]
                lm.body(input_ids=torch.tensor([row]))
            hidden.append(states[0][0])
        with packed_attention(lm):
            before = Packing([PackedRow(2), PackedRow(3)], lm.dtype, lm.device)
            ids = torch.tensor([*rows[0][:2], *rows[1][:3]])
            _, pool = run_packed(lm, before, Pool(), ids=ids, collect=True)
            rest = [PackedRow(len(rows[0]) - 2, (0, 1)), PackedRow(len(rows[1]) - 3, (2, 3, 4))]
            entering = torch.cat([hidden[0][2:], hidden[1][3:]])
            packing = Packing(rest, lm.dtype, lm.device)
            found, _ = run_packed(lm, packing, pool.above(start), hidden=entering, start=start)
    expected = torch.cat([alone(lm, rows[0])[2:], alone(lm, rows[1])[3:]])
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_as_it_was_afterwards(family: str) -> None:
    lm = tiny(family)
    before = lm.model.config._attn_implementation
    expected = alone(lm, texts(lm)[0])
    with pytest.raises(KeyError, match="stop"), packed_attention(lm):
        raise KeyError("stop")
    assert lm.model.config._attn_implementation == before
    assert torch.equal(alone(lm, texts(lm)[0]), expected)


def test_pools_of_successive_passes_are_one_pool() -> None:
    one = Pool({1: torch.ones(2, 3, 4), 2: torch.ones(2, 3, 4)}, {1: torch.ones(2, 3, 4), 2: torch.ones(2, 3, 4)})
    joined = Pool.joined([one.above(1), Pool(), one.above(1)])
    assert joined.tokens == 6
    assert set(joined.keys) == set(joined.values) == {2}
    assert Pool.joined([]).tokens == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_gives_every_token_of_every_text_as_if_it_were_alone(family: str) -> None:
    lm = tiny(family, dtype=EXACT)
    rows = [tuple(text) for text in texts(lm)]
    rows += [rows[0][:3], rows[1][:5], (*rows[2], 7), (*rows[2], 8, 9), (5,)]
    tree = Tree(rows)
    distinct = {row[:end] for row in rows for end in range(1, len(row) + 1)}
    assert len(tree.ids) == len(distinct)
    with torch.inference_mode(), lm.quiet(), packed_attention(lm):
        packing = Packing(tree.rows, lm.dtype, lm.device)
        found, _ = run_packed(lm, packing, Pool(), ids=torch.tensor(tree.ids))
    for row in rows:
        places = list(tree.places[row])
        assert [tree.ids[place] for place in places] == list(row)
        torch.testing.assert_close(found[places], alone(lm, list(row)), **CLOSE)


def test_a_family_whose_attention_would_mix_the_rows_is_refused() -> None:
    lm = tiny("gptj")
    lm.architecture = replace(lm.architecture, attends=None)
    with pytest.raises(ValueError, match="Register its row with attends="), packed_attention(lm):
        run_packed(lm, Packing([PackedRow(2), PackedRow(2)], lm.dtype, lm.device), Pool(), ids=torch.arange(4))
    assert lm.model.config._attn_implementation != "factpatch-packed"
