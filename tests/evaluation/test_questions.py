"""How a model is asked, and what is asked in each form."""

import pytest
import torch
from tests.models import tiny, tiny_model, tiny_tokenizer

from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.questions import answers, forms, question
from factpatch.evaluation.readings import FORMS
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel

CLOZE = Fact("The capital of {} is", "France", "Rome")
ASKED = Fact("Which city is the capital of {}?", "France", "Rome", paraphrases=("What is it?",))
PARAPHRASED = Fact("The capital of {} is", "France", "Rome", paraphrases=("France's capital is", "Where is it? "))


@pytest.mark.parametrize(
    ("fact", "asked"),
    [
        (CLOZE, "Complete the sentence: The capital of France is ..."),
        (ASKED, "Which city is the capital of France?"),
        (PARAPHRASED, "Where is it?"),
    ],
)
def test_a_question_is_the_prompt_a_paraphrase_or_a_task(fact, asked):
    assert question(fact) == asked


def test_a_model_without_a_chat_template_is_asked_in_two_forms():
    lm = tiny("gpt2", dtype=torch.float64)
    facts = [CLOZE, ASKED]
    found = answers(lm, facts)
    asked = [f"Question: {question(fact)}\nAnswer:" for fact in facts]
    assert [[answer.form for answer in of_fact] for of_fact in found] == [["prompt", "question"]] * 2
    assert [of_fact[0].said for of_fact in found] == greedy_answers(lm, [fact.text for fact in facts])
    assert [of_fact[1].asked for of_fact in found] == asked
    assert [of_fact[1].said for of_fact in found] == greedy_answers(lm, asked, 32)


def test_a_chat_model_that_is_asked_plainly_is_asked_in_its_chat_too():
    model, tokenizer = tiny_model("llama", dtype=torch.float64, chat=True), tiny_tokenizer(chat=True)
    plain, chat = LanguageModel(model, tokenizer), LanguageModel(model, tokenizer, chat=True)
    (found,) = answers(plain, [CLOZE])
    assert tuple(answer.form for answer in found) == FORMS == tuple(forms(plain))
    assert found[2].asked == question(CLOZE)
    assert found[2].said == greedy_answers(chat, [question(CLOZE)], 32)[0]


def test_in_a_chat_prompt_and_question_are_turns_of_the_user():
    lm = tiny("llama", dtype=torch.float64, chat=True)
    (found,) = answers(lm, [CLOZE])
    assert [answer.asked for answer in found] == [CLOZE.text, question(CLOZE)]
    assert found[1].said == greedy_answers(lm, [question(CLOZE)], 32)[0]


def test_a_chat_template_that_cannot_be_used_is_left_out():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert list(forms(LanguageModel(tiny_model("gpt2"), tokenizer))) == ["prompt", "question"]


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
