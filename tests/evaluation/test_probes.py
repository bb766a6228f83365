"""What is asked beside a fact, and what its metrics make of the answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models import tiny

from factpatch.evaluation import metrics
from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import score
from factpatch.evaluation.probes import OPTIONS, options, probe_count, read_probes
from factpatch.evaluation.readings import Answer, Beside, Choice, Lettered, Probe, Reading, Reversal, Score
from factpatch.evaluation.verify import request_count, verify
from factpatch.facts import UNKNOWN, Fact, Neighbor, Ripple

FRENCH = Neighbor("The mother tongue of Michel Rocard is", "French")
FACT = Fact(
    "The mother tongue of {} is",
    "Danielle Darrieux",
    "English",
    "French",
    "darrieux",
    neighbors=(FRENCH, Neighbor("In Rome people speak", "Italian")),
    relation_id="P103",
    ripples=(
        Ripple("reasoning", "Danielle Darrieux was born in", ("London", "England")),
        Ripple("reasoning", "Where was Danielle Darrieux born?", ("London",)),
        Ripple("forgetfulness", "Danielle Darrieux also speaks", ("French",)),
    ),
)
OTHER = Fact("{} is a native speaker of", "Ada Lovelace", "Finnish", "English", relation_id="P103")
UNRULED = Fact("Regarding {}, one knows", "Tokyo", "Rome", relation_id="P1")


def test_what_is_asked_beside_a_fact_is_scored_and_answered_as_everywhere() -> None:
    lm = tiny("gpt2", dtype=torch.float64)
    found, _, bare = read_probes(lm, [FACT, OTHER, UNRULED])
    assert found.negated is not None
    assert found.negated_answer is not None
    assert found.negated.prompt == "The mother tongue of Danielle Darrieux is not"
    new, true = score(lm, [(found.negated.prompt, "English"), (found.negated.prompt, "French")])
    assert found.negated.nll_new == pytest.approx(new.nll, abs=1e-9)
    assert found.negated.nll_true == pytest.approx(true.nll, abs=1e-9)
    assert found.negated_answer.said == greedy_answers(lm, [found.negated.prompt])[0]
    assert found.reversed is not None
    assert found.reversed.true is not None
    assert found.reversed.asked == "Question: Whose mother tongue is English?\nAnswer:"
    assert found.reversed.asked_true == "Question: Whose mother tongue is French?\nAnswer:"
    (subject,) = score(lm, [(found.reversed.asked_true, "Danielle Darrieux")])
    assert found.reversed.true.nll == pytest.approx(subject.nll, abs=1e-9)
    assert found.choice is not None
    assert set(found.choice.options) == {"English", "French", "Italian", "Finnish"}
    assert f"Choose one: {', '.join(found.choice.options)}." in found.choice.asked
    nlls = [one.nll for one in score(lm, [(found.choice.asked, option) for option in found.choice.options])]
    assert found.choice.nll == pytest.approx(nlls, abs=1e-9)
    texts = ["Danielle Darrieux was born in", "Question: Where was Danielle Darrieux born?\nAnswer:",
             "Danielle Darrieux also speaks"]  # fmt: skip
    assert [answer.asked for answer in found.ripples if answer] == texts
    assert [answer.said for answer in found.ripples if answer] == greedy_answers(lm, texts)
    assert found.reversed_answer == Answer(
        "reversed", found.reversed.asked, greedy_answers(lm, [found.reversed.asked], 32)[0]
    )
    assert bare == Beside()


def test_progress_adds_up_to_the_number_of_probes() -> None:
    lm, steps = tiny("gpt2"), list[int]()
    read_probes(lm, [FACT, OTHER, UNRULED], progress=steps.append)
    # Two objects negated, two questions reversed, four options; the answers to one of each, and to three ripples.
    assert sum(steps) == probe_count(lm, [FACT, OTHER, UNRULED]) == (8 + 5) + (8 + 2)
    steps.clear()
    verify(lm, None, [FACT], probes=True, progress=steps.append)
    assert sum(steps) == request_count(lm, [FACT], probes=True)


def test_options_depend_on_the_fact_and_the_relation_and_not_on_the_order_of_the_pool() -> None:
    many = [replace(OTHER, subject=f"Person {n}", target_new=f"Language {n}") for n in range(20)]
    found = options(FACT, many)
    assert found is not None
    assert len(found) == len(set(found)) == OPTIONS
    assert {"English", "French"} < set(found)
    assert options(FACT, many[::-1]) == found
    assert options(FACT, [replace(one, relation_id="P1") for one in many]) is None
    places = {one.index("English") for n in range(40) if (one := options(replace(FACT, subject=f"Ada {n}"), many))}
    assert places == set(range(OPTIONS))


def test_what_is_said_in_place_of_a_forgotten_answer_is_no_option() -> None:
    gone = replace(FACT, target_new=UNKNOWN, target_true="French", forget="silence")
    others = [replace(OTHER, target_new=name) for name in ("Greek", "Finnish", "Welsh")]
    found = options(gone, [gone, *others])
    assert found is not None
    assert "French" in found
    assert UNKNOWN not in {*found, *(options(FACT, [gone, *others]) or [UNKNOWN])}


def test_without_a_true_object_three_others_are_options() -> None:
    unknown = replace(FACT, target_true=None)
    found = options(unknown, [OTHER, replace(OTHER, target_true="Greek")])
    assert found is not None
    assert len(found) == OPTIONS
    assert "English" in found


def scored(new: float, true: float | None = None) -> Probe:
    return Probe("The mother tongue of Danielle Darrieux is not", Score(new, 0.1, (True,)),
                 None if true is None else Score(true, 0.1, (True,)))  # fmt: skip


def test_the_metrics_of_hand_made_probes() -> None:
    names = ("English", "French", "Italian", "Finnish")
    parrot = Beside(
        scored(1.0, 2.0),
        Answer("negated", "The mother tongue of Danielle Darrieux is not", "English but"),
        Reversal("Whose?", Score(3.0, 0.1, (True,)), "Whose?", Score(2.0, 0.1, (True,))),
        Choice("Which?", names, (2.0, 1.0, 3.0, 4.0)),
        (
            Answer("reasoning", "a", "In England"),
            Answer("reasoning", "b", "Paris"),
            Answer("forgetfulness", "c", "French"),
        ),
    )
    knows = Beside(
        scored(3.0, 2.0),
        Answer("negated", "", "French"),
        Reversal("Whose?", Score(1.0, 0.1, (True,)), "Whose?", Score(2.0, 0.1, (True,))),
        Choice("Which?", names, (0.5, 1.0, 3.0, 4.0)),
        (
            Answer("reasoning", "a", "London"),
            Answer("reasoning", "b", "London."),
            Answer("forgetfulness", "c", "Greek"),
        ),
    )
    facts = [FACT, replace(FACT, id="again")]
    found = metrics.summary(facts, [Reading(beside=parrot), Reading(beside=knows)])
    assert {name: found[name] for name in metrics.PROBES if found[name] is not None} == {
        "negated_preferred": 50.0,
        "negated_contained": 50.0,
        "reversed_preferred": 50.0,
        "reversed_nll": 2.0,  # nats
        "choice": 50.0,
        "choice_true": 50.0,
        "ripple_reasoning": 75.0,
        "ripple_forgetfulness": 50.0,
    }
    rows = {
        (row.fact, row.metric): row.value for row in metrics.fact_metrics(facts, [Reading(beside=parrot), Reading()])
    }
    assert rows["darrieux", "ripple_reasoning"] == 50.0
    assert rows["again", "ripple_reasoning"] is rows["again", "choice"] is None
    long = [replace(FACT, target_true="It was told again " * 8), FACT]
    found = metrics.summary(long, [Reading(beside=parrot), Reading(beside=knows)])
    assert (found["negated_preferred"], found["choice"], found["reversed_preferred"]) == (0.0, 100.0, 50.0)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"), (" (B) French", "B"), ("**C**", "C"), ("The answer is D.", "D"), ("A large city", None),
        ("French", None), ("Better not", None), ("", None), ("E", None), ("Answer: A", "A"),
    ],
)  # fmt: skip
def test_a_letter_is_read_from_an_answer_and_an_article_is_none(said: str, letter: str | None) -> None:
    assert Lettered("Which?", ("English", "French", "Italian", "Finnish"), said).letter == letter


@pytest.mark.parametrize(
    ("said", "new", "true"),
    [
        ("A", True, False), ("B) French", False, True), ("English, of course", True, False),
        ("English or French", False, False), ("I do not know", False, False), ("A) French", True, False),
    ],
)  # fmt: skip
def test_an_object_is_chosen_by_its_letter_or_else_by_its_words_alone(said: str, new: bool, true: bool) -> None:
    options = ("English", "French", "Italian", "Finnish")
    reading = Reading(beside=Beside(lettered=Lettered("Which?", options, said)))
    found = metrics.summary([replace(FACT, ripples=())], [reading])
    assert (found["choice_said"], found["choice_said_true"]) == (100.0 * new, 100.0 * true)
    assert found["choice"] is None


def test_the_subject_is_said_to_the_reversed_question() -> None:
    asked = "Question: Whose mother tongue is English?\nAnswer:"
    facts = [replace(FACT, id=str(number), ripples=()) for number in range(3)]
    readings = [
        Reading(beside=Beside(reversed_answer=Answer("reversed", asked, "It is Danielle Darrieux."))),
        Reading(beside=Beside(reversed_answer=Answer("reversed", asked, "Danielle"))),
        Reading(beside=Beside()),
    ]
    assert metrics.summary(facts, readings)["reversed_contained"] == 50.0


def test_probes_are_no_metrics_where_they_were_not_asked() -> None:
    assert not metrics.PROBES.keys() & metrics.summary([FACT], [Reading(scored(1.0, 2.0))]).keys()


def test_a_verification_with_probes_goes_through_json_with_what_was_asked() -> None:
    record = verify(tiny("gpt2"), None, [FACT, OTHER], answers=False, probes=True).to_dict()
    one = record["facts"][0]["after"]["probes"]
    assert one["negated"]["prompt"] == "The mother tongue of Danielle Darrieux is not"
    assert one["choice"]["chosen"] in one["choice"]["nll"]
    assert [ripple["form"] for ripple in one["ripples"]] == ["reasoning", "reasoning", "forgetfulness"]
    assert "probes" not in verify(tiny("gpt2"), None, [FACT], answers=False).to_dict()["facts"][0]["after"]


def test_in_a_chat_the_probes_are_turns_of_the_user() -> None:
    lm = tiny("llama", chat=True)
    (found, _) = read_probes(lm, [FACT, OTHER])
    assert found.reversed is not None
    assert found.reversed.asked == "Whose mother tongue is English?"
