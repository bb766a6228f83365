"""What stands between a prompt and its answer."""

from __future__ import annotations

import pytest

from factpatch.support.joint import joint


@pytest.mark.parametrize(
    "prompt",
    [
        "The capital of France is",
        "He was born. Ina Varn",
        "She said no.",
        'The so-called "X"',
        "the Beatles'",
        "the “Wort”",
        "das „Wort“",
        "f(x) =",
        "(of Italy)",
        "5'10\"",
        "한국의 수도는",
        "the `x`",
        "Answer:",
    ],
)
def test_a_space_stands_before_an_answer(prompt: str) -> None:
    assert joint(prompt) == " "


@pytest.mark.parametrize(
    "prompt",
    [
        "中国的首都是",
        "日本の首都は",
        "答案：",
        "เมืองหลวงคือ",
        "ជា",
        "他说“",
        "彼は「",
        "print(",
        "print('",
        '{"capital": "',
        '{"capital":"',
        'say(\\"',
        "a[",
        "он сказал «",
        "sagte „",
        "(“",
        "costs $",
        "either/",
        "user@",
        "dans l'",
    ],
)
def test_nothing_stands_where_the_answer_continues_what_the_prompt_began(prompt: str) -> None:
    assert joint(prompt) == ""


def test_a_fact_may_say_so_itself() -> None:
    assert joint("print(", True) == " "
    assert joint("The", False) == ""
