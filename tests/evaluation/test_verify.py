"""Readings of facts, before and after."""

import json
from dataclasses import replace

import pytest
import torch
from tests.editors import CONTEXTS
from tests.lab.analysis.tiny import FACTS
from tests.models import tiny, tiny_model, tiny_tokenizer

from factpatch.data.formats import fact_from_zsre
from factpatch.evaluation import metrics
from factpatch.evaluation import questions as asking
from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import Score, score
from factpatch.evaluation.readings import Answer, Probe, Reading
from factpatch.evaluation.verify import Verification, exact, plain_summary, read_facts, request_count, usable, verify
from factpatch.facts import UNKNOWN, Fact, Neighbor
from factpatch.model.language_model import LanguageModel
from factpatch.model.replicas import Replicas
from factpatch.pool import Local

FULL = Fact(
    prompt="The mother tongue of {} is",
    subject="Danielle Darrieux",
    target_new="English",
    target_true="French",
    id="0",
    paraphrases=("Danielle Darrieux speaks", "Where Danielle Darrieux is from, people speak"),
    neighbors=(
        Neighbor("The mother tongue of Michel Rocard is", "French"),
        Neighbor("In Rome people speak", "Italian"),
    ),
)
BARE = Fact(prompt="What does {} look like?", subject="Tokyo", target_new="a large city")


def made(nll_new, nll_true=None, matched=(False,), prompt="p", true_matched=(False,)):
    true = None if nll_true is None else Score(nll_true, 0.1, true_matched)
    return Probe(prompt, Score(nll_new, 0.2, matched), true)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_reading_holds_what_single_scores_say(family):
    lm = tiny(family, dtype=torch.float64)
    full, bare = read_facts(lm, [FULL, BARE])

    new, true = score(lm, [(FULL.text, "English"), (FULL.text, "French")])
    assert full.nll_new == pytest.approx(new.nll, abs=1e-9)
    assert full.nll_true == pytest.approx(true.nll, abs=1e-9)
    assert full.probability_new == pytest.approx(new.probability)
    assert full.probability_true == pytest.approx(true.probability)
    assert full.preferred is (new.nll < true.nll)
    assert [probe.prompt for probe in full.paraphrases] == list(FULL.paraphrases)
    assert [probe.prompt for probe in full.neighbors] == [neighbor.prompt for neighbor in FULL.neighbors]
    own = score(lm, [("In Rome people speak", "English"), ("In Rome people speak", "Italian")])
    assert full.neighbors[1].nll_new == pytest.approx(own[0].nll, abs=1e-9)
    assert full.neighbors[1].nll_true == pytest.approx(own[1].nll, abs=1e-9)

    assert bare.probability_true is None
    assert bare.nll_true is None
    assert bare.paraphrases == ()
    assert bare.preferred is None
    assert bare.exact is score(lm, [(BARE.text, BARE.target_new)])[0].greedy
    assert [full.answer, bare.answer] == greedy_answers(lm, [FULL.text, BARE.text])


def test_answers_are_left_out_on_request():
    assert [reading.answer for reading in read_facts(tiny("gpt2"), [FULL, BARE], answers=False)] == [None, None]


def test_progress_adds_up_to_the_number_of_requests():
    lm = tiny("gpt2")
    steps = []
    read_facts(lm, [FULL, BARE], answers=False, progress=steps.append)
    assert sum(steps) == request_count(lm, [FULL, BARE], answers=False) == 11
    read_facts(lm, [FULL, BARE], progress=steps.append)
    assert sum(steps) - 11 == request_count(lm, [FULL, BARE]) == 11 + 4


def said(text, form="prompt"):
    return Answer(form, "asked", text)


BEFORE = (
    Reading(
        made(3.0, 1.0), (made(3.0, 1.0), made(1.0, 2.0)), (made(2.0, 1.0), made(2.0, 1.0)), (said("The French. "),)
    ),
    Reading(made(2.0, matched=(False, False, True)), answers=(said("big"),)),
)
AFTER = (
    Reading(
        made(1.0, 3.0, matched=(True,)),
        (made(1.0, 3.0, matched=(True,)), made(1.0, 2.0, matched=(False,))),
        (made(2.0, 1.0, true_matched=(True, False)), made(1.0, 2.0)),
        (said("English, not French"), said("the mother tongue of danielle Darrieux is English.", "question")),
    ),
    Reading(made(2.0, matched=(True, True, True)), answers=(said("a large  city"), said("small", "question"))),
)


def test_summary_of_a_hand_made_verification():
    summary = Verification((FULL, BARE), AFTER, BEFORE).summary()
    expected = {
        "efficacy": (0.0, 100.0),
        "generalization": (50.0, 100.0),
        "specificity": (100.0, 50.0),
        "score": (0.0, metrics.harmonic_mean([100, 100, 50])),
        "strict_efficacy": (0.0, 100.0),
        "strict_generalization": (0.0, 50.0),
        "strict_specificity": (0.0, 0.0),
        "token_efficacy": (pytest.approx(100 / 6), 100.0),
        "token_generalization": (0.0, 50.0),
        "token_specificity": (0.0, 25.0),
        "prompt_exact": (0.0, 50.0),
        "prompt_exact_true": (100.0, 0.0),
        "prompt_contained": (0.0, 100.0),
        "prompt_contained_true": (100.0, 100.0),
        "question_exact": (None, 50.0),
        "question_exact_true": (None, 0.0),
        "question_contained": (None, 50.0),
        "question_contained_true": (None, 0.0),
    }
    expected |= {
        f"{form}_{match}{ending}": (None, None)
        for form in ("chat", "chat_system", "chat_later")
        for match in ("exact", "contained")
        for ending in ("", "_true")
    }
    assert summary == {name: {"before": before, "after": after} for name, (before, after) in expected.items()}


def test_a_fact_is_said_if_the_free_answer_holds_it_whatever_is_preferred():
    preferred = Reading(made(1.0, 2.0), answers=(said("French"),))
    exact = Reading(made(1.0, matched=(True, True)), answers=(said("a large city in Japan"),))
    verification = Verification((FULL, BARE), (preferred, exact))
    assert verification.said() == [False, True]
    assert verification.unlearned() == [FULL]
    assert plain_summary(verification) == "1 of 2 facts said, 1 exact, 1 of 1 preferred"
    found = [row["after"] for row in verification.to_dict()["facts"]]
    assert [(one["said"], one["exact"], one["preferred"]) for one in found] == [
        (False, False, True),
        (True, True, None),
    ]


def test_without_answers_a_fact_is_said_if_greedy_decoding_would_give_it():
    held = Reading(made(3.0, 2.0, matched=(True,))), Reading(made(1.0, matched=(True, True)))
    missed = Reading(made(1.0, 2.0)), Reading(made(1.0, matched=(True, False)))
    assert Verification((FULL, BARE), held).unlearned() == []
    assert Verification((FULL, BARE), missed).unlearned() == [FULL, BARE]


@pytest.mark.parametrize("same", ["English", "english", " English"])
def test_a_true_object_that_equals_the_new_one_counts_as_unknown(same):
    fact = replace(FULL, target_true=same, neighbors=(Neighbor("People speak", "english"), FULL.neighbors[1]))
    (reading,) = read_facts(tiny("gpt2"), [fact])
    assert reading.preferred is None
    assert [probe.prefers_new for probe in reading.paraphrases] == [None, None]
    assert reading.neighbors[0].prefers_true is None
    assert reading.neighbors[1].prefers_true is not None
    summary = Verification((fact,), (reading,)).summary()
    assert summary["efficacy"]["after"] is None
    assert summary["prompt_contained_true"]["after"] is None
    assert summary["strict_efficacy"]["after"] is not None


def test_metrics_without_probes_are_none():
    summary = Verification((BARE,), (Reading(made(1.0)),)).summary()
    known = {name for name, pair in summary.items() if pair != {"before": None, "after": None}}
    assert known == {"strict_efficacy", "token_efficacy"}
    assert summary["token_efficacy"]["after"] == 0.0


def test_verify_takes_a_model_with_its_tokenizer_or_a_language_model():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    plain = verify(model, tokenizer, [FULL, BARE])
    assert plain == verify(tiny("gpt2"), None, [FULL, BARE])
    assert plain.before is None


def test_verify_asks_every_probe_in_a_chat_and_reports_the_bare_prompts():
    model, tokenizer = tiny_model("gpt2", dtype=torch.float64, chat=True), tiny_tokenizer(chat=True)
    found = verify(model, tokenizer, [FULL, BARE], chat=True)
    lm = LanguageModel(model, tokenizer, chat=True)
    assert found == verify(lm, None, [FULL, BARE])
    reading = found.after[0]
    for probe, prompt in (
        (reading.rewrite, FULL.text),
        (reading.paraphrases[1], FULL.paraphrases[1]),
        (reading.neighbors[0], FULL.neighbors[0].prompt),
    ):
        assert probe.prompt == prompt
        assert probe.nll_new == pytest.approx(score(lm, [(prompt, "English")])[0].nll, abs=1e-9)
    assert [reading.answer for reading in found.after] == greedy_answers(lm, [FULL.text, BARE.text])
    assert "<|im_start|>" not in json.dumps(found.to_dict())
    plain = verify(model, tokenizer, [FULL, BARE])
    assert abs(plain.after[0].nll_new - reading.nll_new) > 1e-3


def test_verify_puts_an_earlier_verification_on_the_before_side():
    lm = tiny("gpt2")
    before = verify(lm, None, [FULL, BARE])
    lm.weight(1).mul_(-1)
    after = verify(lm, None, [FULL, BARE], before=before)
    assert after.before == before.after
    assert after.after != before.after
    assert after.summary()["efficacy"]["before"] == before.summary()["efficacy"]["after"]


def test_verify_refuses_an_earlier_verification_of_other_facts():
    lm = tiny("gpt2")
    before = verify(lm, None, [FULL, BARE], answers=False)
    with pytest.raises(ValueError, match="2 facts instead of 1"):
        verify(lm, None, [FULL], before=before)
    with pytest.raises(ValueError, match="its fact 0, 'The mother tongue"):
        verify(lm, None, [BARE, FULL], before=before)


def test_verify_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match=r"facts=\[\]"):
        verify(tiny("gpt2"), None, [])
    with pytest.raises(ValueError, match="tokenizer=None"):
        verify(tiny_model("gpt2"), None, [FULL])
    with pytest.raises(ValueError, match="a LanguageModel is taken as it is; leave tokenizer out"):
        verify(tiny("gpt2"), tiny_tokenizer(), [FULL])


def test_a_record_goes_through_json():
    lm = tiny("gpt2")
    record = verify(lm, None, [FULL, BARE], before=verify(lm, None, [FULL, BARE])).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["facts"][0]["prompt"] == FULL.text
    assert len(record["facts"][0]["after"]["neighbors"]) == 2
    assert record["facts"][1]["after"]["probability_true"] is None
    assert record["facts"][0]["before"] == record["facts"][0]["after"]


def test_zsre_facts_are_scored_by_token_accuracy():
    record = {
        "src": "Where does Messi play?",
        "subject": "Messi",
        "answers": ["in the city of Paris"],
        "rephrase": "In which city does Messi play?",
        "loc": "nq question: where is the Eiffel Tower",
        "loc_ans": "pe pe Paris",  # which begins as this random model continues
    }
    fact = fact_from_zsre(record, 0)
    lm = tiny("llama", dtype=torch.float64)
    summary = verify(lm, None, [fact], answers=False).summary()
    for name, prompt, target in (
        ("token_efficacy", fact.text, fact.target_new),
        ("token_generalization", fact.paraphrases[0], fact.target_new),
        ("token_specificity", "nq question: where is the Eiffel Tower?", "pe pe Paris"),
    ):
        # As published: each token of the target after the prompt and the target's tokens before it.
        start = len(lm.tokenizer(prompt)["input_ids"])
        ids = lm.tokenizer(f"{prompt} {target}")["input_ids"]
        with torch.no_grad():
            best = [
                lm.model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].argmax() for end in range(start, len(ids))
            ]
        hits = [int(token) == wanted for token, wanted in zip(best, ids[start:], strict=True)]
        assert summary[name]["after"] == pytest.approx(100 * sum(hits) / len(hits))
    assert 0 < summary["token_specificity"]["after"] < 100
    assert summary["efficacy"]["after"] is summary["generalization"]["after"] is None
    assert summary["prompt_contained_true"]["after"] is None


NEW, TRUE = made(1.0, 2.0), made(2.0, 1.0)
PAIR = (Fact("{} is", "A", "b"), Fact("{} is", "C", "d"))


def test_it_says_what_is_said_what_moved_and_what_it_cost():
    before = (Reading(TRUE, (TRUE, TRUE), (TRUE, TRUE, NEW)), Reading(TRUE, (), (TRUE,)))
    after = (Reading(NEW, (NEW, TRUE), (TRUE, NEW, NEW)), Reading(TRUE, (), (TRUE,)))
    found = plain_summary(Verification(PAIR, after, before), (20.0, 20.24), 39.7)
    assert found == (
        "0 of 2 facts exact, 1 of 2 preferred; 1 of 2 paraphrases agree; 1 of 3 neighbors moved; perplexity +1.2 %; "
        "editing took 40 s"
    )


def test_what_is_not_known_is_left_out():
    bare = Verification(PAIR[:1], (Reading(made(1.0, matched=(True,)), (made(1.0),)),))
    assert plain_summary(bare, (20.0, None)) == "1 of 1 fact exact; 0 of 1 paraphrase agrees"
    once = Verification(PAIR[:1], (Reading(NEW, (), (TRUE, NEW)),))
    assert plain_summary(once) == "0 of 1 fact exact, 1 of 1 preferred; 1 of 2 neighbors wrong"


def test_neighbors_that_were_wrong_cannot_move():
    readings = (Reading(NEW, (), (NEW,)),)
    assert "none of 1 neighbor was right before" in plain_summary(Verification(PAIR[:1], readings, readings))


def test_a_neighbor_with_the_new_answer_is_neither_right_nor_wrong():
    both = Probe("D is", Score(1.0, 0.4, (True,)), None)
    once = Verification(PAIR[:1], (Reading(NEW, (), (TRUE, both)),))
    assert plain_summary(once) == "0 of 1 fact exact, 1 of 1 preferred; 0 of 1 neighbor wrong"
    readings = (Reading(NEW, (), (TRUE, both)),)
    assert "0 of 1 neighbor moved" in plain_summary(Verification(PAIR[:1], readings, readings))


def test_beside_a_fact_to_forget_a_neighbor_has_moved_where_it_was_exact_and_is_not():
    gone = Fact("{} is", "A", UNKNOWN, "b", forget="silence")
    kept, lost = (Probe("C is", Score(9.0, 0.01, (False,)), Score(1.0, 0.5, (exact,))) for exact in (True, False))
    found = Verification((gone,), (Reading(NEW, (), (kept, lost)),), (Reading(NEW, (), (kept, kept)),))
    assert "1 of 2 neighbors moved" in plain_summary(found)
    assert "1 of 2 neighbors wrong" in plain_summary(Verification((gone,), found.after))
    assert found.summary()["specificity"] == {"before": None, "after": None}
    assert found.summary()["strict_specificity"] == {"before": 100.0, "after": 50.0}
    (record,) = found.to_dict()["facts"]
    assert record["after"]["preferred"] is None
    assert "said" not in record["after"]
    assert record["after"]["forgotten"] in (True, False)


def test_beside_a_long_answer_what_is_exact_counts_and_not_what_is_likelier_per_token():
    long = Fact("The story of {} is", "A", "it was told again " * 8, "b")
    kept, lost = (Probe("C is", Score(0.2, 1e-9, (False,)), Score(1.0, 0.4, (exact,))) for exact in (True, False))
    again = Probe("A has this story:", Score(0.2, 1e-9, (False, True)), Score(1.0, 0.4, (True,)))
    found = Verification((long,), (Reading(NEW, (again,), (kept, kept, lost)),), (Reading(NEW, (again,), (kept,) * 3),))
    assert plain_summary(found) == "0 of 1 fact exact; 0 of 1 paraphrase agrees; 1 of 3 neighbors moved"
    told = found.summary()
    assert all(told[metric]["after"] is None for metric in ("efficacy", "generalization", "specificity", "score"))
    assert told["strict_specificity"] == {"before": 100.0, "after": pytest.approx(200 / 3)}
    assert found.to_dict()["facts"][0]["after"]["preferred"] is None


def test_a_fact_to_forget_is_exact_where_its_old_answer_is_not() -> None:
    lm = tiny("llama")
    likeliest = {
        fact: lm.tokenizer.decode(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        for fact in FACTS
        for ids in (lm.tokenizer(fact.text).input_ids,)
    }
    fact, word = next((fact, word) for fact, word in likeliest.items() if word.strip() == word)
    known = replace(fact, target_new=UNKNOWN, target_true=word, forget="silence", space=False)
    assert exact(lm, [replace(fact, target_new=word, target_true=None, space=False)]) == [True]
    assert exact(lm, [known, replace(known, target_true="Tokyo")]) == [False, True]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_facts_that_cannot_be_edited_or_asked_are_left_out_and_named(family: str) -> None:
    lm = tiny(family)
    again = replace(FACTS[0], id="again", target_new="Finnish")
    long = Fact("The capital of {} is", "Finland " * 300, "Rome")
    paraphrased = replace(FACTS[1], id="paraphrased", prompt="{} does", paraphrases=("Messi " * 300,))
    near = replace(FACTS[1], id="near", prompt="{} is", neighbors=(Neighbor("Rome " * 300, "Paris"),))
    kept, reasons = usable(lm, [*FACTS, again, long, paraphrased, near], CONTEXTS)
    assert tuple(kept) == FACTS
    assert len(reasons) == 4
    assert reasons[0].startswith("left out: again: 'The mother tongue of Danielle Darrieux is'")
    assert "an earlier fact asks the same" in reasons[0]
    assert all("tokens" in reason for reason in reasons[1:])
    with pytest.raises(ValueError, match="none of the 1 facts can be edited; the first is left out"):
        usable(lm, [long], CONTEXTS)


@pytest.mark.parametrize("probes", [False, True])
def test_shards_ask_what_is_asked_of_all_facts_at_once(probes, monkeypatch):
    """Of many facts few are asked after other turns, and all facts give options to a choice."""
    monkeypatch.setattr(asking, "SAMPLED", 2)
    lm = LanguageModel(tiny_model("llama", chat=True), tiny_tokenizer(chat=True))
    names, objects = ("Finland", "Tokyo", "Messi", "Rome", "Vienna", "Paris"), ("English", "French", "Finnish", "Rome")
    facts = [Fact("The mother tongue of {} is", name, objects[place % 4]) for place, name in enumerate(names)]
    counts = {"whole": [], "shards": []}
    whole = verify(lm, None, facts, probes=probes, progress=counts["whole"].append)
    shards = verify(lm, None, facts, probes=probes, progress=counts["shards"].append, replicas=Replicas(lm, Local()))
    for one, other in zip(whole.after, shards.after, strict=True):
        assert [(answer.form, answer.asked) for answer in one.answers] == [
            (answer.form, answer.asked) for answer in other.answers
        ]
        assert (one.beside and one.beside.choice.options) == (other.beside and other.beside.choice.options)
    assert sum("chat_later" in {answer.form for answer in reading.answers} for reading in shards.after) == 2
    assert sum(counts["whole"]) == sum(counts["shards"]) == request_count(lm, facts, probes=probes)
