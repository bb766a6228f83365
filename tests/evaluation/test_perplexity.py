"""Perplexity against the mean of plain forward passes."""

import math

import pytest
import torch
from tests.models import SENTENCES, tiny

from factpatch.evaluation.perplexity import BLOCK, TextLoss, held_out_text, perplexity, text_loss, windows
from factpatch.model import batching

TEXT = " ".join(SENTENCES[:4]) + "\n\n" + SENTENCES[4] + "\n" + SENTENCES[5] + "\n \n\n" + SENTENCES[6]
DOCUMENTS = [" ".join(SENTENCES[:4]), SENTENCES[4] + "\n" + SENTENCES[5], SENTENCES[6]]


def naive(lm, window):
    losses = []
    for document in DOCUMENTS:
        ids = lm.tokenizer(document)["input_ids"]
        for first in range(0, len(ids), window):
            part = ids[first : first + window]
            with torch.no_grad():
                logs = torch.log_softmax(lm.model(input_ids=torch.tensor([part])).logits[0], -1)
            losses += [-logs[row, part[row + 1]].item() for row in range(len(part) - 1)]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("window", [2, 7, 256])
@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_perplexity_is_exp_of_the_mean_nll_per_predicted_token(family, bos, window, monkeypatch):
    lm = tiny(family, bos=bos, dtype=torch.float64)
    monkeypatch.setattr(batching, "HEAD_ENTRIES", 5 * 400)
    assert perplexity(lm, TEXT, window) == pytest.approx(naive(lm, window), rel=1e-9)


def test_a_model_without_preference_has_the_vocabulary_as_perplexity():
    lm = tiny("llama")
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.zero_()
    assert perplexity(lm, TEXT) == pytest.approx(400)


def test_the_default_text_is_the_one_the_package_ships():
    lm = tiny("gpt2")
    assert perplexity(lm, window=64) == perplexity(lm, held_out_text(), window=64)


def test_unusable_arguments_are_refused():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="window=1:"):
        perplexity(lm, TEXT, window=1)
    with pytest.raises(ValueError, match="no document has two tokens"):
        perplexity(lm, " \n\n ")
    with pytest.raises(ValueError, match="at most 256 tokens; give window=256"):
        perplexity(lm, " ".join(SENTENCES * 3), window=512)


def test_a_bounded_text_is_the_beginning_of_every_window():
    lm = tiny("llama")
    whole, some = text_loss(lm, TEXT, window=16), text_loss(lm, TEXT, window=16, tokens=30)
    lengths = [len(row) - 1 for row in windows(lm.tokenizer, TEXT, 16)]
    kept = [len(row) - 1 for row in windows(lm.tokenizer, TEXT, 16, 30)]
    assert len(kept) == len(lengths)
    assert 20 < len(some.nll) == sum(kept) <= 30 + len(kept)
    begins = [sum(lengths[:row]) for row in range(len(lengths))]
    expected = [whole.nll[begin + token] for begin, length in zip(begins, kept, strict=True) for token in range(length)]
    assert some.nll == pytest.approx(expected, rel=1e-4)
    assert text_loss(lm, TEXT, tokens=10**6) == text_loss(lm, TEXT)
    with pytest.raises(ValueError, match="tokens=0: give at least 1"):
        text_loss(lm, TEXT, tokens=0)


def test_the_error_of_a_change_is_that_of_its_blocks():
    before = TextLoss(tuple(float(token % 7) for token in range(4 * BLOCK)))
    moved = TextLoss(tuple(nll + 0.01 * (index // BLOCK) for index, nll in enumerate(before.nll)))
    ratio = moved.perplexity / before.perplexity
    deviation = math.sqrt(sum((0.01 * block - 0.015) ** 2 for block in range(4)) / 3)
    assert moved.error(before) == pytest.approx(100 * deviation / 2 * ratio)
    assert before.error(before) == 0
    assert TextLoss(before.nll[:BLOCK]).error(TextLoss(before.nll[:BLOCK])) is None
    assert TextLoss((math.inf,) * 2 * BLOCK).error(TextLoss(before.nll[: 2 * BLOCK])) is None
