"""Batched greedy answers against one prompt at a time, token by token."""

import pytest
import torch
from tests.models import BOS, END, FAMILIES, tiny
from transformers import GenerationConfig

from factpatch.evaluation.generation import first_sentence, greedy_answers

PROMPTS = [
    "The capital of France is",
    "The",
    "What does the city of Vienna look like? In 1998, the twin city of Vienna was",
    "Messi plays the sport of",
    "The official language of Finland is Finnish; in Rome people speak",
    "The capital of France is",
]


def naive(lm, prompt, tokens):
    """Greedy decoding by definition: no cache, no batch, no padding."""
    ids = lm.tokenizer(prompt)["input_ids"]
    if lm.frame.chat:
        turn = [{"role": "user", "content": prompt}]
        ids = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            following = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        if following == lm.tokenizer.eos_token_id:
            break
        ids.append(following)
    return first_sentence(lm.tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_answers_equal_plain_greedy_decoding(family, bos):
    lm = tiny(family, bos=bos, dtype=torch.float64)
    answers = greedy_answers(lm, PROMPTS, max_new_tokens=12)
    assert answers == [naive(lm, prompt, 12) for prompt in PROMPTS]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_answers_in_a_chat_equal_plain_greedy_decoding_of_the_template(family, bos):
    lm = tiny(family, bos=bos, dtype=torch.float64, chat=True)
    answers = greedy_answers(lm, PROMPTS, max_new_tokens=12)
    assert answers == [naive(lm, prompt, 12) for prompt in PROMPTS]
    assert len(set(answers)) > 1


def test_the_end_of_the_turn_ends_an_answer_in_a_chat():
    lm = tiny("llama", dtype=torch.float64, chat=True)
    end = lm.tokenizer.convert_tokens_to_ids(END)
    lm.tokenizer.eos_token = BOS  # the model's generation settings know it, not the tokenizer
    assert lm.model.generation_config.eos_token_id == end
    assert greedy_answers(lm, PROMPTS[:1]) != [""]
    with torch.no_grad():
        head = lm.model.get_output_embeddings().weight
        ids = lm.tokenizer(lm.frame.wrap(PROMPTS[0]), add_special_tokens=False)["input_ids"]
        head[end] = 100 * lm.body(input_ids=torch.tensor([ids]))[0, -1]
    assert greedy_answers(lm, PROMPTS[:1]) == [""]


def test_the_models_own_generation_settings_play_no_part():
    lm = tiny("gpt2")
    expected = greedy_answers(lm, PROMPTS)
    own = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, min_length=40, suppress_tokens=list(range(200, 400))
    )
    lm.model.generation_config = own
    assert greedy_answers(lm, PROMPTS) == expected
    assert lm.model.generation_config is own


def test_an_answer_ends_with_any_of_the_models_end_tokens():
    lm = tiny("gpt2")
    prompt = PROMPTS[0]
    first = lm.model(input_ids=torch.tensor([lm.tokenizer(prompt)["input_ids"]])).logits[0, -1].argmax().item()
    second_answer = greedy_answers(lm, [prompt], max_new_tokens=1)
    lm.model.generation_config.eos_token_id = [0, first]
    said = greedy_answers(lm, [prompt], max_new_tokens=4)
    assert said == second_answer


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (" Paris. It is large.", "Paris."),
        (" Paris\nIt is large.", "Paris"),
        ("\n\nParis is large\n", "Paris is large"),
        (" St. Louis. There", "St. Louis."),
        (" J. R. R. Tolkien! He", "J. R. R. Tolkien!"),
        (" Washington, D.C. and", "Washington, D.C. and"),
        (" about 3.14 of it. And", "about 3.14 of it."),
        (' "Paris." He', '"Paris."'),
        (" Paris", "Paris"),
        ("  ", ""),
    ],
)
def test_an_answer_is_the_first_sentence_or_line(text, sentence):
    assert first_sentence(text) == sentence


def test_the_model_is_left_as_it_was():
    lm = tiny("llama")
    lm.model.train()
    own = lm.model.generation_config
    greedy_answers(lm, PROMPTS[:2], max_new_tokens=2)
    assert lm.model.training
    assert lm.model.generation_config is own


def test_no_prompts_give_no_answers():
    assert greedy_answers(tiny("gpt2"), []) == []


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        greedy_answers(tiny("gpt2"), PROMPTS, max_new_tokens=0)
    with pytest.raises(ValueError, match="prompt='' has no tokens"):
        greedy_answers(tiny("gpt2"), ["The", ""])
