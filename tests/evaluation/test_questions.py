"""How a model is asked, and what is asked in each form."""

from dataclasses import replace

import pytest
import torch
from tests.models import CHAT_TEMPLATE, tiny, tiny_model, tiny_tokenizer

from factpatch.evaluation import questions as asking
from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.questions import TURNS, answer_count, answers, asked, forms, questions
from factpatch.evaluation.readings import FORMS, Reading
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact
from factpatch.model.frame import chat_frame
from factpatch.model.language_model import LanguageModel

CLOZE = Fact("The capital of {} is", "France", "Rome")
ASKED = Fact("Which city is the capital of {}?", "France", "Rome", paraphrases=("What is it?",))
PARAPHRASED = Fact("The capital of {} is", "France", "Rome", paraphrases=("France's capital is", "Where is it? "))
GIVEN = replace(PARAPHRASED, questions=("What is France's capital? ", "France's capital: where is it"))
TRAINED = "What is the capital of France?"
UNASKED = Fact("Regarding {}, one knows", "France", "Rome")


@pytest.mark.parametrize(
    ("fact", "found"),
    [
        (CLOZE, ("What is the capital of France?",)),
        (ASKED, ("Which city is the capital of France?",)),
        (PARAPHRASED, ("Where is it?",)),
        (GIVEN, ("What is France's capital?", "France's capital: where is it")),
        (UNASKED, ()),
    ],
)
def test_questions_are_those_given_else_a_prompt_that_is_one_else_written_from_the_prompt(fact, found):
    assert questions(fact) == found


@pytest.mark.parametrize(
    ("fact", "trained", "left"),
    [
        (replace(CLOZE, questions=(TRAINED, "Where?", "what is the  capital of France?")), TRAINED, ("Where?",)),
        (replace(CLOZE, questions=(TRAINED,)), TRAINED, ()),  # which is what rules write, too
        (replace(CLOZE, questions=("Where?",)), "Where?", (TRAINED,)),
        (ASKED, ASKED.text, ("What is it?",)),
        (replace(ASKED, paraphrases=()), ASKED.text, ()),
        (CLOZE, TRAINED, ()),
    ],
)
def test_a_question_that_was_trained_is_not_asked_and_where_no_other_is_left_none_is(fact, trained, left):
    fact = replace(fact, trained=(trained,))
    assert questions(fact) == left
    texts = {one.text for one in asked([fact], {"question": True, "chat": True, "chat_later": True})[0]}
    assert texts == set(left)
    assert (fact in Verification((fact,), (Reading(),)).without_question()) == (not left)


def test_a_model_without_a_chat_template_is_asked_in_two_forms():
    lm = tiny("gpt2", dtype=torch.float64)
    facts = [CLOZE, ASKED]
    found = answers(lm, facts)
    texts = [f"Question: {question}\nAnswer:" for fact in facts for question in questions(fact)]
    assert [[answer.form for answer in of_fact] for of_fact in found] == [["prompt", "question"]] * 2
    assert [of_fact[0].said for of_fact in found] == greedy_answers(lm, [fact.text for fact in facts])
    assert [of_fact[1].asked for of_fact in found] == texts
    assert [of_fact[1].said for of_fact in found] == greedy_answers(lm, texts, 32)


def test_a_chat_model_that_is_asked_plainly_is_asked_in_its_chats_too():
    model, tokenizer = tiny_model("llama", dtype=torch.float64, chat=True), tiny_tokenizer(chat=True)
    plain = LanguageModel(model, tokenizer)
    (found,) = answers(plain, [CLOZE])
    assert tuple(answer.form for answer in found) == FORMS == tuple(forms(plain))
    (question,) = questions(CLOZE)
    for answer in found[2:]:
        frame = chat_frame(tokenizer, TURNS[answer.form])
        assert answer.asked == question
        assert answer.said == greedy_answers(plain, [question], 32, [frame])[0]
    assert len({forms(plain)[form].before for form in TURNS}) == 3
    assert forms(plain)["chat"] is plain.turn  # rendered once


def test_the_turns_of_a_chat_come_before_the_question():
    asked = {form: chat_frame(tiny_tokenizer(chat=True), TURNS[form]).wrap("Who?") for form in TURNS}
    assert asked["chat_system"].startswith(
        "<|im_start|>system\nYou are a helpful assistant who answers briefly.<|im_end|>"
    )
    assert asked["chat_later"].endswith(asked["chat"])
    assert "<|im_start|>assistant\nYou can make an omelet" in asked["chat_later"]


def test_in_a_chat_prompt_and_questions_are_turns_of_the_user():
    lm = tiny("llama", dtype=torch.float64, chat=True)
    (found,) = answers(lm, [CLOZE])
    (question,) = questions(CLOZE)
    assert [answer.form for answer in found] == ["prompt", "question", "chat_system", "chat_later"]
    assert [answer.asked for answer in found] == [CLOZE.text, question, question, question]
    assert found[1].said == greedy_answers(lm, [question], 32)[0]


@pytest.mark.parametrize(
    ("template", "left"),
    [
        ("{{ raise_exception('no') }}", ["prompt", "question"]),
        # As Gemma's and the first of Mistral's: without a system turn.
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE,
            ["prompt", "question", "chat", "chat_later"],
        ),
        # One that leaves a system turn out without a word.
        (CHAT_TEMPLATE.replace("messages %}", "messages if message.role != 'system' %}"),
         ["prompt", "question", "chat", "chat_later"]),
        # One that shows the last turn only.
        (CHAT_TEMPLATE.replace("in messages", "in messages[-1:]"), ["prompt", "question", "chat"]),
    ],
)  # fmt: skip
def test_a_form_is_missing_where_the_chat_template_has_no_place_for_its_turns(template, left):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert list(forms(LanguageModel(tiny_model("gpt2"), tokenizer))) == left


def test_every_question_is_asked_but_only_the_first_after_other_turns():
    chats = {"prompt": False, "question": False, "chat": True, "chat_system": True}
    (found,) = asked([GIVEN], chats)
    assert found == (
        ("prompt", "The capital of France is"),
        ("question", "Question: What is France's capital?\nAnswer:"),
        ("question", "Question: France's capital: where is it\nAnswer:"),
        ("chat", "What is France's capital?"),
        ("chat", "France's capital: where is it"),
        ("chat_system", "What is France's capital?"),
    )


def test_a_fact_without_a_question_is_asked_with_its_prompt_only():
    assert asked([UNASKED], dict.fromkeys(FORMS, True)) == [(("prompt", UNASKED.text),)]


def test_of_many_facts_a_bounded_number_is_asked_after_other_turns_whatever_their_order(monkeypatch):
    monkeypatch.setattr(asking, "SAMPLED", 3)
    facts = [replace(CLOZE, subject=f"Place {number}") for number in range(10)]
    chosen = {}
    for order in (facts, facts[::-1]):
        found = asked(order, dict.fromkeys(FORMS, True))
        assert all(len(group) in (3, 5) for group in found)
        chosen[id(order)] = {fact.subject for fact, group in zip(order, found, strict=True) if len(group) == 5}
    assert [len(some) for some in chosen.values()] == [3, 3]
    assert len(set(map(frozenset, chosen.values()))) == 1


def test_the_number_of_answers_is_known_beforehand():
    lm = tiny("gpt2")
    facts = [CLOZE, GIVEN, UNASKED]
    assert answer_count(lm, facts) == sum(map(len, answers(lm, facts))) == 2 + 3 + 1


def test_a_long_new_object_gets_the_room_it_needs():
    lm = tiny("gpt2", dtype=torch.float64)
    long = Fact("The capital of {} is", "Italy", "a place " * 12)
    short, other = answers(lm, [CLOZE, long])
    assert (short,) == tuple(answers(lm, [CLOZE]))
    count = len(lm.tokenizer(" " + long.target_new)["input_ids"]) + 1
    assert count > 16
    assert other[0].said == greedy_answers(lm, [long.text], count)[0]


def test_no_facts_get_no_answers():
    assert answers(tiny("gpt2"), []) == []
