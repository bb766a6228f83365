"""Prompts as questions, rule by rule."""

import pytest

from factpatch.evaluation.wording import negated_prompt, reversed_question, written_question
from factpatch.facts import Fact
from factpatch.support.words import is_question


def written(prompt: str, target: str = "Rome") -> str | None:
    return written_question(Fact(prompt, "Ada", target))


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("The capital of {} is", "What is the capital of Ada?"),
        (" {} was born in", "Where was Ada born?"),
        ("The language used by {} was", "What was the language used by Ada?"),
        ("Official language of {} is", "What is the official language of Ada?"),
        ("{}'s profession is an", "What is Ada's profession?"),
        ("{}’s capital,", "What is Ada’s capital?"),
        ("{}, whose position is that of", "What is Ada's position?"),
        ("In {}, the language spoken is", "What is the language spoken in Ada?"),
        ("The prime minister of the {} is", "Who is the prime minister of the Ada?"),
        ("The sport that {} plays is", "What is the sport that Ada plays?"),
        ("The company that produced {} was", "What was the company that produced Ada?"),
        ("The headquarter of {} is located in", "Where is the headquarter of Ada?"),
    ],
)
def test_a_relation_noun_asks_what_it_is_or_where(prompt: str, question: str) -> None:
    assert written(prompt) == question


@pytest.mark.parametrize("prompt", ["The author of {} is", "{}'s author is", "{}, whose author is"])
def test_a_noun_for_people_asks_who(prompt: str) -> None:
    assert str(written(prompt)).startswith("Who is ")


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("{} was born in", "Where was Ada born?"),
        ("{} passed away at", "Where did Ada pass away?"),
        ("{}'s life ended in", "Where did Ada's life end?"),
        ("{} is originally from", "Where is Ada from?"),
        ("{} can be found in", "Where can Ada be found?"),
        ("{} took up work in", "Where did Ada take up work?"),
        ("King {} died in", "Where did King Ada die?"),
        ("{}, which is located in", "Where is Ada located?"),
        ("{}, founded in", "Where was Ada founded?"),
        ("The {} is in", "Where is the Ada?"),
        ("The famous {} stands in", "Where does the famous Ada stand?"),
    ],
)
def test_a_preposition_of_place_asks_where(prompt: str, question: str) -> None:
    assert written(prompt) == question


@pytest.mark.parametrize("date", ["1911", "3 May 1911"])
def test_a_preposition_of_time_asks_when_if_the_new_object_is_a_date(date: str) -> None:
    assert written("{} was founded in", date) == "When was Ada founded?"
    assert written("{} was released on", date) == "When was Ada released?"
    assert written("{} was released on", "CBS") == "On which channel was Ada released?"


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("{} works in the field of", "In which field does Ada work?"),
        ("{} speaks the language", "Which language does Ada speak?"),
        ("{} is a part of the continent of", "Which continent is Ada a part of?"),
        ("{} professionally plays the sport", "Which sport does Ada play?"),
        ("The law in {} declares the language", "Which language does the law in Ada declare?"),
        ("{} has a citizenship from", "Which country is Ada a citizen of?"),
        ("{} is a citizen of", "Which country is Ada a citizen of?"),
        ("{}, speaker of", "Which language is Ada a speaker of?"),
        ("{} writes in", "In which language does Ada write?"),
        ("In {}, they understand", "Which language do people understand in Ada?"),
    ],
)
def test_a_noun_or_a_verb_that_names_the_kind_asks_which(prompt: str, question: str) -> None:
    assert written(prompt) == question


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("{} was created by", "Who created Ada?"),
        ("{} was written by", "Who wrote Ada?"),
        ("{}, a product developed by", "Who developed Ada?"),
        ("{} is owned by", "Who is Ada owned by?"),
        ("{} works for", "Who does Ada work for?"),
        ("{} is married to", "Who is Ada married to?"),
    ],
)
def test_makers_and_employers_are_asked_for_with_who(prompt: str, question: str) -> None:
    assert written(prompt) == question


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("{} plays", "What does Ada play?"),
        ("{} worked as a", "What did Ada work as?"),
        ("{}, playing the", "What does Ada play?"),
        ("{} was named after", "What was Ada named after?"),
        ("{} is affiliated with the", "What is Ada affiliated with?"),
        ("{} is known for performing", "What is Ada known for performing?"),
        ("{} specializes in", "What does Ada specialize in?"),
        ("{} is a member of", "What is Ada a member of?"),
    ],
)
def test_other_verbs_ask_what(prompt: str, question: str) -> None:
    assert written(prompt) == question


def test_a_prompt_that_holds_a_question_gives_it() -> None:
    assert written("What does {} play? They play") == "What does Ada play?"
    assert written("Which family is {} a part of?") == "Which family is Ada a part of?"


@pytest.mark.parametrize(
    "prompt",
    [
        "{} is",
        "{} is a",
        "{}, by",
        "{} owner",
        "{} xyzzed the",
        "Some say. {} lives in",
        "La capitale de {} est",
        "{}的首都是",
    ],
)
def test_a_prompt_without_a_rule_gets_no_question(prompt: str) -> None:
    assert written(prompt) is None


def test_a_question_ends_in_a_question_mark() -> None:
    assert [is_question(text) for text in ("Who? ", "誰？", "من؟", "Who", "")] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("prompt", "negated"),
    [
        ("The capital of {} is", "The capital of Ada is not"),
        ("{} works in the field of", "Ada does not work in the field of"),
        ("{} passed away in", "Ada did not pass away in"),
        ("{}'s life ended in", "Ada's life did not end in"),
        ("{} can be found in", "Ada cannot be found in"),
        ("{} professionally plays the sport", "Ada does not professionally play the sport"),
        ("{}, who works for", "Ada, who does not work for"),
        ("In {}, an official language is", "In Ada, an official language is not"),
        ("{}, developed by", None),
        ("What does {} play? They play", None),
        ("{}的首都是", None),
    ],
)
def test_a_prompt_is_negated_at_its_verb(prompt: str, negated: str | None) -> None:
    assert negated_prompt(Fact(prompt, "Ada", "Rome")) == negated


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("The mother tongue of {} is", "Whose mother tongue is Rome?"),
        ("{}'s area of work is", "Whose area of work is Rome?"),
        ("The headquarter of {} is in", "Whose headquarter is in Rome?"),
        ("{} was born in", "Who was born in Rome?"),
        ("{}, who works for", "Who works for Rome?"),
        ("{} is located in", "What is located in Rome?"),
        ("{}, founded in", "What was founded in Rome?"),
        ("The {} is in", "What is in Rome?"),
        ("{} is a", None),
        ("The language used by {} is", None),
        ("In {}, people speak", None),
        ("What is {}?", None),
    ],
)
def test_a_prompt_is_reversed_to_a_question_about_its_subject(prompt: str, question: str | None) -> None:
    assert reversed_question(Fact(prompt, "Ada", "x"), "Rome") == question
