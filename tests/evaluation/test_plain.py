"""One sentence about an edit."""

from factpatch.evaluation.readings import Probe, Reading, Score
from factpatch.evaluation.verify import Verification, plain_summary
from factpatch.facts import Fact


def probe(nll_new, nll_true=None, matched=(False,)):
    return Probe("p", Score(nll_new, 0.2, matched), None if nll_true is None else Score(nll_true, 0.1, (False,)))


NEW, TRUE = probe(1.0, 2.0), probe(2.0, 1.0)
FACTS = (Fact("{} is", "A", "b"), Fact("{} is", "C", "d"))


def test_it_says_what_was_learned_what_moved_and_what_it_cost():
    before = (Reading(TRUE, (TRUE, TRUE), (TRUE, TRUE, NEW)), Reading(TRUE, (), (TRUE,)))
    after = (Reading(NEW, (NEW, TRUE), (TRUE, NEW, NEW)), Reading(TRUE, (), (TRUE,)))
    found = plain_summary(Verification(FACTS, after, before), (20.0, 20.24), 39.7)
    assert found == (
        "1 of 2 facts learned; 1 of 2 paraphrases agree; 1 of 3 neighbors moved; perplexity +1.2 %; editing took 40 s"
    )


def test_what_is_not_known_is_left_out():
    bare = Verification(FACTS[:1], (Reading(probe(1.0, matched=(True,)), (probe(1.0),)),))
    assert plain_summary(bare, (20.0, None)) == "1 of 1 fact learned"
    once = Verification(FACTS[:1], (Reading(NEW, (), (TRUE, NEW)),))
    assert plain_summary(once) == "1 of 1 fact learned; 1 of 2 neighbors wrong"


def test_neighbors_that_were_wrong_cannot_move():
    readings = (Reading(NEW, (), (NEW,)),)
    assert "none of 1 neighbor was right before" in plain_summary(Verification(FACTS[:1], readings, readings))
