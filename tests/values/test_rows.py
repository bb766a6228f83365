"""The texts of rows in a chat; their micro-batches: bounded, complete, in order."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tests.model.test_tokens import sentencepiece_like
from tests.models import BOS, END, TURN, tiny, tiny_model

from factpatch import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.values.reading import SubjectRows
from factpatch.values.rows import Row, micro_batches, optimization_rows


def row(suffix: int, prefix: int = 5, fact: int = 0) -> Row:
    return Row(fact, 0, tuple(range(prefix + suffix)), prefix, (1,), 1.0)


@pytest.mark.parametrize("tokens", [1, 7, 20, 1000])
def test_micro_batches_hold_every_row_once_in_the_order_of_their_length_and_no_more_than_allowed(tokens: int) -> None:
    lengths = [3, 1, 6, 2, 5, 5, 1, 4] * 3
    rows = [row(length, fact=index) for index, length in enumerate(lengths)]
    found = micro_batches(rows, tokens)
    ordered = [row for batch in found for row in batch]
    assert sorted(row.fact for row in ordered) == list(range(len(rows)))
    assert [row.suffix for row in ordered] == sorted(lengths)
    for batch in found:
        assert len(batch) == 1 or sum(row.suffix for row in batch) <= tokens
    for one, other in pairwise(found):
        assert sum(row.suffix for row in one) + other[0].suffix > tokens


def test_a_row_that_is_too_long_alone_is_a_batch() -> None:
    assert [len(batch) for batch in micro_batches([row(50, fact=0), row(50, fact=1)], tokens=20)] == [1, 1]


ASSISTANT = f"{END}\n{TURN}assistant\n"


@pytest.mark.parametrize("bos", [False, True])
def test_in_a_chat_prefix_and_prompt_are_the_users_turn_and_the_target_begins_the_answer(bos: bool) -> None:
    lm = tiny("llama", bos=bos, chat=True)
    user = (BOS if bos else "") + f"{TURN}user\n"
    fact = Fact("What is the capital of {}?", "Finland", "Rome, Italy")
    contexts = ("{}", "Because of this. {}")
    bare, prefixed, kl = optimization_rows(lm, [fact], contexts)
    asked = "What is the capital of Finland"
    for row, upto in ((bare, user + asked), (prefixed, f"{user}Because of this. {asked}")):
        last = row.targets[-1]
        assert lm.tokenizer.decode([*row.ids, last]) == upto + "?" + ASSISTANT + "Rome, Italy"
        assert lm.tokenizer.decode(row.ids[: row.subject + 1]) == upto
        assert lm.tokenizer.decode(row.targets) == "Rome, Italy"
        assert row.ids[-len(row.targets) + 1 :] == row.targets[:-1]
    assert lm.tokenizer.decode(kl.ids) == user + "Finland"
    assert kl.targets == ()
    subjects = SubjectRows.of(lm, [fact], contexts).rows
    assert subjects == [list(row.ids[: row.subject + 1]) for row in (bare, prefixed)]


def test_in_a_chat_a_target_of_half_characters_keeps_its_tokens() -> None:
    lm = tiny("llama", chat=True)
    row, _ = optimization_rows(lm, [Fact("What is {}?", "Tokyo", "東京")], ("{}",))
    assert lm.tokenizer.decode(row.targets) == "東京"
    assert row.ids[-len(row.targets) + 1 :] == row.targets[:-1]


def test_in_a_chat_a_tokenizer_that_puts_a_space_before_every_text_puts_none_before_the_answer() -> None:
    tokenizer = sentencepiece_like()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + '\\n' + m['content'] + '\\n' }}{% endfor %}"
        "{{ 'assistant\\n' if add_generation_prompt else '' }}"
    )
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    lm = LanguageModel(model, tokenizer, chat=True)
    row, _ = optimization_rows(lm, [Fact("What is {}?", "Finland", "Rio de Janeiro")], ("{}",))
    pieces = tokenizer.convert_ids_to_tokens([*row.ids, row.targets[-1]])
    assert "".join(pieces) == "▁user<0x0A>What▁is▁Finland?<0x0A>assistant<0x0A>Rio▁de▁Janeiro"
    assert "".join(pieces[: row.subject + 1]).endswith("Finland")
    assert "".join(pieces[-len(row.targets) :]) == "Rio▁de▁Janeiro"


@pytest.mark.parametrize("target", ["東京", "Рим", "القاهرة", "🇫🇷", "กรุงเทพ", "naïve café", "Rio de Janeiro"])
@pytest.mark.parametrize("prompt", ["The capital of {} is", "{}的首都是"])
def test_the_tokens_before_a_target_token_are_those_that_a_model_would_have_written(prompt: str, target: str) -> None:
    lm = tiny("gpt2")
    fact = Fact(prompt, "Tokyo", target)
    row, _ = optimization_rows(lm, [fact], ("{}",))
    asked = lm.tokenizer(fact.text)["input_ids"]
    assert [*row.ids, row.targets[-1]] == [*asked, *row.targets]
    joint = " " if prompt.endswith("is") else ""
    assert lm.tokenizer.decode(row.targets) == joint + target
    assert "\ufffd" not in lm.tokenizer.decode([*row.ids, row.targets[-1]])


def test_a_fact_says_itself_whether_a_space_comes_before_its_answer() -> None:
    lm = tiny("gpt2")
    for space, joint in ((None, " "), (True, " "), (False, "")):
        row, _ = optimization_rows(lm, [Fact("{} =", "x", "Rome", space=space)], ("{}",))
        assert lm.tokenizer.decode(row.targets) == joint + "Rome"


def test_tokens_that_rows_of_a_fact_share_count_once() -> None:
    def row(fact: int, *suffix: int) -> Row:
        return Row(fact, 0, (1, 2, *suffix), 2, (9,), 1.0)

    rows = [row(0, 3, 4, 5), row(0, 3, 4, 5, 6, 7), row(0, 3, 8), row(1, 3, 4, 5)]
    assert [len(batch) for batch in micro_batches(rows, 9)] == [4]  # six tokens and three
    assert [len(batch) for batch in micro_batches(rows, 8)] == [1, 3]
