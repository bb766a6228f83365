"""The subject's last token, for byte-level BPE and SentencePiece, with and without BOS, in awkward places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models import SENTENCES, tiny, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from factpatch import Fact
from factpatch.model.tokens import check_tokenizer, locate, target_ids
from factpatch.values.rows import optimization_rows

PROMPTS = (
    ("{} was born in", "Ada Lovelace"),
    ("{}'s mother tongue is", "Danielle Darrieux"),
    ("In {}, the language spoken is", "Rome"),
    ("The capital of the country called {}", "Finland"),
    ("They call it “{}”, and", "Eiffel Tower"),
    ("{} is", "X"),
    ("The twin city of {}: what is it?", "Rio de Janeiro (Brazil)"),
    ("{} 出生于", "东京"),
    ("Столица страны {} —", "Россия"),
    ("{} is a", "café crème"),
    ("The emoji {} means", "🗼"),
    ("Before the subject  {}  after", "two spaces"),
)


def byte_level() -> Any:
    return tiny_tokenizer()


def byte_level_with_bos() -> Any:
    return tiny_tokenizer(bos=True)


def sentencepiece_like() -> Any:
    """Metaspace pieces with byte fallback and a prepended space, as in Llama 2's tokenizer."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>"], show_progress=False)
    # Word by word: SentencePiece does not merge across a space.
    trained.train_from_iterator([f"▁{word}" for sentence in SENTENCES for word in sentence.split()], trainer)
    learned = json.loads(trained.to_str())["model"]
    vocabulary = learned["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def metaspace_words() -> Any:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    alphabet = sorted({character for prompt, subject in PROMPTS for character in prompt + subject} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>"], initial_alphabet=[*alphabet, "▁"], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


TOKENIZERS = [byte_level, byte_level_with_bos, sentencepiece_like, metaspace_words]


@pytest.mark.parametrize(("prompt", "subject"), PROMPTS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda make: make.__name__)
def test_the_located_token_is_the_first_at_which_the_whole_subject_has_been_read(
    tokenizer: Any, prompt: str, subject: str
) -> None:
    made = tokenizer()
    fact = Fact(prompt, subject, "there")
    ((ids, index),) = locate(made, [fact.text], [fact.subject_end])
    assert ids == made(fact.text)["input_ids"]
    upto = fact.text[: fact.subject_end + 1].strip()
    read = made.decode(ids[: index + 1], skip_special_tokens=True).strip()
    one_less = made.decode(ids[:index], skip_special_tokens=True).strip()
    assert read.startswith(upto)
    assert not one_less.startswith(upto)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda make: make.__name__)
def test_a_batch_gives_what_single_texts_give(tokenizer: Any) -> None:
    made = tokenizer()
    facts = [Fact(prompt, subject, "there") for prompt, subject in PROMPTS]
    together = locate(made, [fact.text for fact in facts], [fact.subject_end for fact in facts])
    assert together == [locate(made, [fact.text], [fact.subject_end])[0] for fact in facts]


def test_the_second_of_two_occurrences_can_be_the_subject() -> None:
    made = byte_level()
    fact = Fact("Rome, Rome and {} are", "Rome", "cities")
    ((ids, index),) = locate(made, [fact.text], [fact.subject_end])
    assert made.decode(ids[: index + 1]) == "Rome, Rome and Rome"


def test_a_subject_that_disappears_is_refused() -> None:
    made = tiny_tokenizer()
    made.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    fact = Fact("{} is", "a\u200b", "here")
    with pytest.raises(ValueError, match="disappears in tokenization"):
        locate(made, [fact.text], [fact.subject_end])


def test_targets_begin_with_one_space_and_have_no_special_tokens() -> None:
    made = tiny_tokenizer(bos=True)
    assert target_ids(made, "Rome") == target_ids(made, " Rome ")
    assert made.decode(target_ids(made, "Rome")) == " Rome"
    assert made.bos_token_id not in target_ids(made, "Rome")


def test_a_target_under_a_tokenizer_that_prepends_a_space_gets_no_second_one() -> None:
    made = sentencepiece_like()
    assert target_ids(made, "Rome") == made("Rome", add_special_tokens=False)["input_ids"]
    assert made.decode(target_ids(made, "Rome")).strip() == "Rome"


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("prompt", ["The capital of {} is", "They all live in {}"])
def test_a_row_ends_with_the_target_without_its_last_token(tokenizer: Any, prompt: str) -> None:
    """Read at the last positions, the NLL is then that of the target after the prompt."""
    lm = tiny("llama")
    lm.tokenizer = tokenizer()
    target = target_ids(lm.tokenizer, "Rio de Janeiro")
    assert len(target) > 1
    *rows, kl = optimization_rows(lm, [Fact(prompt, "Finland", "Rio de Janeiro")], ("{}", "Because of this. {}"))
    for row in rows:
        assert row.targets == tuple(target)
        assert list(row.ids[-len(target) + 1 :]) == target[:-1]
        assert row.subject < len(row.ids) - len(target) + 1
    assert kl.suffix == 1


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="character offsets"):
        check_tokenizer(Slow())


def test_a_tokenizer_that_closes_every_text_is_refused(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    made = tiny_tokenizer()
    end = made.eos_token
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, made.eos_token_id)]
    )
    with pytest.raises(ValueError, match="to every text"):
        check_tokenizer(made)
