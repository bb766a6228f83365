"""Templates take everything for text: for HTML, and for the templates that Gradio makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from factpatch import Fact, Neighbor
from factpatch.evaluation.readings import Answer, Probe, Reading, Score
from factpatch.evaluation.verify import Verification
from factpatch.web.cards import cards
from factpatch.web.view import duration, percent, shown

EVIL = "<img src=x onerror=alert(1)> ${alert(1)} {{constructor}} `x` \"'>"


def score(probability: float, greedy: bool = False) -> Score:
    return Score(1 - probability, probability, (greedy,))


def reading(answer: str, new: float, true: float, exact: bool = False) -> Reading:
    probe = Probe("The capital of France is", score(new, exact), score(true))
    return Reading(probe, (probe,), (probe,), (Answer("prompt", "The capital of France is", answer),))


def verification(answer: str, new: float, true: float, exact: bool = False, target: str = "Rome") -> Verification:
    fact = Fact("The capital of {} is", "France", target, target_true="Paris",
                paraphrases=["France has the capital"], neighbors=[Neighbor("Spain has", "Madrid")])  # fmt: skip
    before = reading("Paris.", 0.01, 0.9)
    return Verification((fact,), (reading(answer, new, true, exact),), (before,))


def test_text_is_never_html_nor_a_template() -> None:
    found = verification(EVIL, 0.5, 0.1, target=EVIL)
    text = shown("results", cards=cards(found), summary=EVIL)
    assert "<img" not in text
    assert not {"{", "}", "$", "`"} & set(text)
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_half_a_character_of_a_model_does_not_break_the_page() -> None:
    text = shown("notice", error="\ud83d", text="")
    assert text.encode("utf-8")


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (verification("Paris.", 0.1, 0.6), "“Paris” is still likelier than “Rome”"),
        (verification("Lyon.", 0.3, 0.2), "“Rome” is now likelier than “Paris”, but something else is likelier still"),
        (verification("The city.", 0.6, 0.2, exact=True), "Every word of “Rome” is the likeliest one"),
    ],
)
def test_what_is_not_learned_says_why(now: Verification, reason: str) -> None:
    (card,) = cards(now)
    assert not card.learned
    assert card.reason.startswith(reason)


def test_what_is_not_learned_comes_first() -> None:
    good, bad = verification("Rome.", 0.9, 0.1, exact=True), verification("Paris.", 0.1, 0.6)
    other = replace(bad.facts[0], subject="Spain")
    assert good.before is not None
    assert bad.before is not None
    both = Verification((*good.facts, other), (*good.after, *bad.after), (*good.before, *bad.before))
    assert [card.learned for card in cards(both)] == [False, True]
    assert not cards(None)


def test_numbers_are_short() -> None:
    assert [percent(share) for share in (None, 0.0, 0.004, 0.5)] == ["", "0 %", "<1 %", "50 %"]
    assert [duration(seconds) for seconds in (None, 3.2, 200.0)] == ["", "3 s", "3 min"]
