"""Batched greedy answers against one prompt at a time, token by token."""

import pytest
import torch
from tests.models import BOS, END, FAMILIES, tiny
from transformers import GenerationConfig

from factpatch.evaluation.generation import Generation, first_sentence, generate_texts, greedy_answers, sentence_count
from factpatch.model import tree

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
    assert greedy_answers(lm, [prompt], max_new_tokens=4) != [""]
    lm.model.generation_config.eos_token_id = [0, first]
    assert greedy_answers(lm, [prompt], max_new_tokens=4) == [""]


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


def test_a_prompt_of_more_room_does_not_change_the_other_answers():
    lm = tiny("llama", dtype=torch.float64)
    short, long = greedy_answers(lm, PROMPTS[:1], 2), greedy_answers(lm, PROMPTS[2:3], 12)
    assert greedy_answers(lm, [PROMPTS[0], PROMPTS[2]], [2, 12]) == [*short, *long]


def test_no_prompts_give_no_answers():
    assert greedy_answers(tiny("gpt2"), []) == []


def test_unusable_arguments_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        greedy_answers(tiny("gpt2"), PROMPTS, max_new_tokens=0)
    with pytest.raises(ValueError, match="prompt='' has no tokens"):
        greedy_answers(tiny("gpt2"), ["The", ""])
    with pytest.raises(ValueError, match=r"takes \d+ tokens; .* reads 256"):
        greedy_answers(tiny("gpt2"), ["The city " * 200])


GROUPS = [PROMPTS[:3], [], [PROMPTS[1], PROMPTS[1], PROMPTS[4]]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("top_k", [1, 5])
def test_a_text_does_not_depend_on_what_is_generated_with_it(family, top_k, monkeypatch):
    lm = tiny(family, bos=True, dtype=torch.float64)
    together = generate_texts(lm, GROUPS, max_new_tokens=20, top_k=top_k, seed=3)
    alone = [generate_texts(lm, [group], max_new_tokens=20, top_k=top_k, seed=3)[0] for group in GROUPS]
    assert together == alone
    monkeypatch.setattr(tree, "TOKEN_BUDGET", 30)
    assert generate_texts(lm, GROUPS[::-1], max_new_tokens=20, top_k=top_k, seed=3)[::-1] == together


def test_sampled_texts_follow_the_seed_and_the_number_of_equal_prompts_before():
    lm = tiny("gpt2", dtype=torch.float64)
    texts = generate_texts(lm, GROUPS, max_new_tokens=20)
    assert texts == generate_texts(lm, GROUPS, max_new_tokens=20)
    assert texts != generate_texts(lm, GROUPS, max_new_tokens=20, seed=1)
    first, second, _ = texts[2]
    assert first.prompt == second.prompt
    assert first.said != second.said
    assert first == texts[0][1]  # the same prompt of another fact


def test_a_longer_text_begins_as_the_shorter_one():
    lm = tiny("gpt2", dtype=torch.float64)
    (short,), (long,) = (generate_texts(lm, [PROMPTS[:1]], max_new_tokens=count)[0] for count in (8, 20))
    assert long.said.startswith(short.said.rstrip("�"))
    assert len(long.said) > len(short.said)


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("gptj", False), ("llama", True)])
def test_greedy_texts_equal_plain_greedy_decoding(family, bos):
    lm = tiny(family, bos=bos, dtype=torch.float64)
    for prompt in PROMPTS[:2]:
        ids = lm.tokenizer(prompt)["input_ids"]
        for _ in range(12):
            with torch.no_grad():
                ids = [*ids, lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()]
        ((found,),) = generate_texts(lm, [[prompt]], max_new_tokens=12, top_k=1)
        assert found == Generation(prompt, lm.tokenizer.decode(ids, skip_special_tokens=True)[len(prompt) :])


def test_texts_continue_after_end_tokens_unless_asked_to_stop():
    lm = tiny("gpt2", dtype=torch.float64)
    first = lm.model(input_ids=torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1].argmax().item()
    lm.model.generation_config.eos_token_id = first
    ((on,),) = generate_texts(lm, [PROMPTS[:1]], max_new_tokens=8, top_k=1)
    ((stopped,),) = generate_texts(lm, [PROMPTS[:1]], max_new_tokens=8, top_k=1, stop=True)
    assert not on.empty
    assert stopped == Generation(PROMPTS[0], "")
    assert stopped.empty


def test_a_text_ends_where_the_models_positions_end():
    lm = tiny("gpt2")
    prompt = "The city of Vienna " * 28
    row = lm.tokenizer(prompt)["input_ids"]
    assert 150 < len(row) < 256
    ((text,),) = generate_texts(lm, [[prompt]], max_new_tokens=200, top_k=1)
    ids = list(row)
    while len(ids) <= 256:  # the last one is not read
        with torch.no_grad():
            ids.append(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
    assert text.text == lm.tokenizer.decode(ids, skip_special_tokens=True)


def test_a_text_in_a_chat_is_the_answer_after_a_line_break():
    lm = tiny("gpt2", dtype=torch.float64, chat=True)
    ((text,),) = generate_texts(lm, [PROMPTS[:1]], max_new_tokens=8, top_k=1)
    turn = [{"role": "user", "content": PROMPTS[0]}]
    ids = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    start = len(ids)
    for _ in range(8):
        with torch.no_grad():
            ids = [*ids, lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()]
    assert text == Generation(PROMPTS[0], "\n" + lm.tokenizer.decode(ids[start:], skip_special_tokens=True).lstrip())


def test_unusable_settings_of_texts_are_refused():
    lm = tiny("gpt2")
    for name, value in (("top_k", 0), ("max_new_tokens", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            generate_texts(lm, [["The"]], **{name: value})


@pytest.mark.parametrize(
    ("text", "sentences", "expected"),
    [
        ("北京。东京是日本的首都。", 1, "北京。"),
        ("वह है। और", 1, "वह है।"),
        ("ما هي؟ نعم", 1, "ما هي؟"),
        ("他说“好。”然后", 1, "他说“好。”"),
        ("One. Two. Three.", 2, "One. Two."),
        ("One.", 3, "One."),
    ],
)
def test_sentences_end_in_other_scripts_too(text, sentences, expected):
    assert first_sentence(text, sentences) == expected


@pytest.mark.parametrize(
    ("text", "count"), [("Rome", 1), ("One. Two.", 2), ("北京。东京。", 2), ("a\nb", 2), ("J. R. Smith", 1)]
)
def test_sentences_are_counted(text, count):
    assert sentence_count(text) == count
