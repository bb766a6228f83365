"""Classification by hand-worked numbers, and tasks asked in batches against one item at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.helpers import shared
from tests.models import SENTENCES, tiny

from factpatch.evaluation.capability import RESERVED, Answered, Classification, capability
from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import score
from factpatch.evaluation.tasks import TASKS, Task

pytest.importorskip("sklearn", reason="capability is measured with scikit-learn: pip install 'factpatch[evaluate]'")

CITY = Task("city", "{text}\nIs it a city?", {1: "Paris", 0: "the city of Rome", 2: "French"}, "")
ITEMS = [{"text": SENTENCES[i % len(SENTENCES)][: 20 + i], "label": (0, 1, 2)[i % 3]} for i in range(RESERVED + 7)]


def test_weighted_f1_by_hand():
    # Yes: precision 2/3, recall 2/4, F1 4/7; No: precision 1/2, recall 1/2, F1 1/2; weights 4/6 and 2/6.
    right = ["Yes", "Yes", "Yes", "Yes", "No", "No"]
    given = ["Yes", "Yes", "No", None, "No", "Yes"]
    found = Classification.of(right, given)
    assert found.f1 == pytest.approx(100 * (4 / 6 * 4 / 7 + 2 / 6 * 1 / 2))
    assert found.accuracy == pytest.approx(50)
    assert found.invalid == 1


def test_matthews_correlation_by_hand():
    # TP 3, FN 1, FP 2, TN 4: (12 - 2) / sqrt(5 * 4 * 6 * 5)
    right = ["Yes"] * 4 + ["No"] * 6
    given = ["Yes"] * 3 + ["No"] + ["Yes"] * 2 + ["No"] * 4
    assert Classification.of(right, given).mcc == pytest.approx(100 * 10 / math.sqrt(600))


def test_perfect_constant_and_opposite_answers():
    right = ["a", "b"] * 5
    assert Classification.of(right, right) == Classification(f1=100, accuracy=100, mcc=100, invalid=0)
    constant = Classification.of(right, ["a"] * 10)
    assert (constant.accuracy, constant.mcc) == (50, 0)
    assert constant.f1 == pytest.approx(100 / 3)  # half of F1 2/3
    assert Classification.of(right, right[::-1]) == Classification(f1=0, accuracy=0, mcc=-100, invalid=0)
    assert Classification.of(right, [None] * 10) == Classification(f1=0, accuracy=0, mcc=0, invalid=10)


def test_other_numbers_of_answers_are_refused():
    with pytest.raises(ValueError, match="2 and 1 answers"):
        Classification.of(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        Classification.of([], [])


def test_the_likeliest_answer_has_the_lowest_nll_and_of_equals_is_the_first():
    row = Answered(item=0, right="a", nll={"a": 2.0, "b": 1.0, "c": 1.0}, text=None, said=None, shots=0)
    assert row.likeliest == "b"
    assert replace(row, nll={"a": math.inf, "b": math.inf}).likeliest == "a"
    assert replace(row, nll={"a": 1.0, "b": math.nan}).likeliest is None


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("shots", [0, 2])
def test_answers_in_batches_equal_one_item_at_a_time(shots, chat):
    lm = tiny("llama", dtype=torch.float64, chat=chat)
    result = capability(lm, CITY, ITEMS, shots=shots)
    examples = "".join(f"{item['text']}\nIs it a city? {CITY.answers[item['label']]}\n" for item in ITEMS[:shots])
    assert [row.item for row in result.rows] == list(range(RESERVED, len(ITEMS)))
    for row in result.rows:
        prompt = f"{examples}{ITEMS[row.item]['text']}\nIs it a city?"
        for answer, nll in row.nll.items():
            assert nll == pytest.approx(score(lm, [(prompt, answer)])[0].nll, rel=1e-9)
        assert row.text == greedy_answers(lm, [prompt], max_new_tokens=5)[0]
        assert row.right == CITY.answers[ITEMS[row.item]["label"]]
        assert row.shots == shots
    assert set(result.metrics()) == {"likelihood", "generated"}


def test_what_the_model_says_is_read_as_an_answer():
    lm = tiny("gpt2")
    task = replace(CITY, answers={0: "Paris", 1: "of", 2: "city"})
    (always,) = lm.tokenizer(" city")["input_ids"]
    with torch.no_grad():
        # Every last state is the same, and the head prefers one token.
        lm.model.transformer.ln_f.weight.zero_()
        lm.model.transformer.ln_f.bias.fill_(1.0)
        lm.model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(lm.model.lm_head.weight))
        lm.model.lm_head.weight[always] = 1.0
    result = capability(lm, task, ITEMS)
    assert {row.said for row in result.rows} == {"city"}
    share = sum(row.right == "city" for row in result.rows) / len(result.rows)
    assert result.metrics()["generated"].accuracy == pytest.approx(100 * share)


def test_the_same_items_are_asked_whatever_the_number_of_examples():
    lm = tiny("gpt2")
    asked = {tuple(row.item for row in capability(lm, CITY, ITEMS, shots=n, generate=False).rows) for n in (0, 3)}
    assert asked == {tuple(range(RESERVED, len(ITEMS)))}
    assert [row.item for row in capability(lm, CITY, ITEMS, limit=2, generate=False).rows] == [RESERVED, RESERVED + 1]


def test_examples_that_do_not_fit_are_left_out():
    lm = tiny("gpt2")
    long = [{**item, "text": " ".join(SENTENCES[:2])} for item in ITEMS]
    rows = capability(lm, CITY, long, shots=8, generate=True).rows
    assert all(0 < row.shots < 8 for row in rows)
    too_long = [*ITEMS[:RESERVED], {"text": " ".join(SENTENCES * 3), "label": 1}]
    with pytest.raises(ValueError, match=r"takes \d+ tokens and its answer 5; .* reads 256"):
        capability(lm, CITY, too_long)


def test_without_generation_only_likelihoods_are_measured():
    result = capability(tiny("gpt2"), CITY, ITEMS, generate=False)
    assert set(result.metrics()) == {"likelihood"}
    record = result.to_dict()
    assert "generated" not in record
    assert record["items"] == len(record["rows"]) == 7
    assert record["rows"][0]["likeliest"] in CITY.answers.values()


def test_unusable_arguments_are_refused():
    lm = tiny("gpt2")
    for arguments, message in (
        ({"shots": 11}, "shots=11: give 0 to 10"),
        ({"shots": -1}, "shots=-1"),
        ({"limit": 0}, "limit=0"),
        ({"items": ITEMS[:RESERVED]}, "10 of city; the first 10 are examples"),
    ):
        with pytest.raises(ValueError, match=message):
            capability(lm, CITY, **{"items": ITEMS, **arguments})


@pytest.mark.slow
def test_a_real_model_tells_good_reviews_from_bad_ones():
    from factpatch.model.embedded import EmbeddedModelUnavailable
    from factpatch.model.loading import load_language_model

    items = TASKS["sst2"].load(shared("data", "glue_sst2.json"))
    try:
        lm = load_language_model("smollm2-135m")
    except EmbeddedModelUnavailable as error:
        pytest.skip(f"the embedded model cannot be had: {error}")
    result = capability(lm, TASKS["sst2"], items, limit=16, generate=False)
    assert len(result.rows) == 16
    assert result.metrics()["likelihood"].accuracy > 70
    # With examples before it, a question is answered in their words.
    assert capability(lm, TASKS["sst2"], items, limit=4, shots=2).metrics()["generated"].invalid == 0
