from __future__ import annotations

from typing import Any

import pytest
from tests.helpers import shared

from factpatch.data import demo_facts, load_facts
from factpatch.evaluation.overlap import edited_neighbors
from factpatch.facts import Fact, Neighbor


def fact(subject: str, *neighbors: str, **changes: Any) -> Fact:
    fields = {"prompt": "The capital of {} is", "target_new": "Oslo", **changes}
    return Fact(subject=subject, neighbors=[Neighbor(text, "x") for text in neighbors], **fields)


PERU = fact("Peru", relation_id="P36", paraphrases=["Peru is governed from"])


@pytest.mark.parametrize("prompt", ["The capital of Peru is", "the capital  of Peru is:", "Peru is governed from"])
def test_a_neighbor_that_asks_another_facts_question_is_edited_with_or_without_a_relation(prompt: str) -> None:
    for relation in (None, "P36", "P17"):
        chile = fact("Chile", "The capital of Spain is", prompt, relation_id=relation)
        assert edited_neighbors([chile, PERU]) == [(None, PERU), ()]


def test_another_wording_of_the_run_for_the_same_relation_counts() -> None:
    worded = fact("Egypt", prompt="{} has its capital in", relation_id="P36")
    generated = fact("Cuba", relation_id="P36", generation_prompts=["Who rules in the capital of Cuba? It is"])
    neighbors = ("Peru has its capital in", "Who rules in the capital of Peru? It is", "Peru lies in")
    chile = fact("Chile", *neighbors, relation_id="P36")
    assert edited_neighbors([chile, PERU, worded, generated])[0] == (PERU, PERU, None)


def test_another_wording_takes_the_same_relation_and_the_same_subject() -> None:
    worded = fact("Egypt", prompt="{} has its capital in", relation_id="P36")
    other = fact("Chile", "Peru has its capital in", relation_id="P17")
    longer = fact("Spain", "Upper Peru has its capital in", "The capital of Peru City is", relation_id="P36")
    assert edited_neighbors([other, longer, PERU, worded]) == [(None,), (None, None), (), ()]


def test_a_neighbor_may_be_edited_by_its_own_fact() -> None:
    own = fact("Chile", "Chile is governed from", relation_id="P36", paraphrases=["Chile is governed from"])
    assert edited_neighbors([own]) == [(own,)]


def test_the_fact_that_is_edited_first_is_named_and_facts_keep_their_order() -> None:
    again = fact("Peru", target_new="Rome")
    chile = fact("Chile", "The capital of Peru is")
    assert edited_neighbors([chile, again, PERU]) == [(again,), (), ()]
    assert edited_neighbors([PERU, chile]) == [(), (PERU,)]
    assert edited_neighbors([]) == []


def test_names_that_differ_in_a_sign_only_are_two_subjects() -> None:
    c = fact("C", prompt="{} was made by")
    assert edited_neighbors([c, fact("Java", "C++ was made by", "C was made by", prompt="{} was made by")])[1] == (
        None,
        c,
    )


def test_demo_facts_do_not_edit_each_others_neighbors() -> None:
    assert {found for row in edited_neighbors(demo_facts()) for found in row} == {None}


def test_published_neighbors_are_edited_the_more_the_more_facts_there_are() -> None:
    facts = load_facts(shared("data", "counterfact_dev.json"), limit=400)
    counts = [sum(found is not None for row in edited_neighbors(facts[:n]) for found in row) for n in (50, 200, 400)]
    assert 0 <= counts[0] < counts[1] < counts[2]
    for one, row in zip(facts, edited_neighbors(facts), strict=True):
        for neighbor, found in zip(one.neighbors, row, strict=True):
            assert found is None or found.subject.casefold() in neighbor.prompt.casefold()
