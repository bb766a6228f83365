"""Facts to forget: what is completed before the edit, the ways in which the old answer may leak, and their number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.editors import FACTS, make
from tests.models import tiny

from factpatch import Fact, Forget, Session, load_facts
from factpatch.data.reading import DataFileError
from factpatch.edit_report import Measure, completed, edit_and_report
from factpatch.evaluation import forgetting
from factpatch.evaluation.forgetting import REFUSALS, check_known, leak_count, not_known, read_leaks, with_old_answers
from factpatch.evaluation.metrics import fact_metrics, said, summary
from factpatch.evaluation.readings import Answer, Leak, Probe, Reading, Score
from factpatch.evaluation.verify import Verification, plain_summary
from factpatch.facts import UNKNOWN, Neighbor, find_facts
from factpatch.patch.file import describe

FRANCE = Forget(
    "The capital of {} is",
    "France",
    "Paris, France",
    paraphrases=["France's capital city is"],
    questions=["What is the capital of France?"],
    neighbors=[Neighbor("The capital of Italy is", name) for name in ("Rome", "Vienna", "Tokyo")],
)
MISSED, HIT = Score(2.0, 0.1, (False,)), Score(1.0, 0.4, (True,))


def test_a_fact_to_forget_knows_what_is_to_be_said() -> None:
    assert (FRANCE.forget, FRANCE.target_new, FRANCE.other) == ("silence", UNKNOWN, "Paris, France")
    told = Forget("{} is", "France", "Paris", instead="not known")
    assert (told.forget, told.target_new) == ("refuse", "not known")
    assert [Fact.from_dict(fact.to_dict()) for fact in (FRANCE, told)] == [FRANCE, told]
    assert Fact("{} is", "France", "Paris", forget=False).to_dict() == Fact("{} is", "France", "Paris").to_dict()
    with pytest.raises(ValueError, match=r"target_new='Paris': is the answer to forget"):
        Fact("{} is", "France", "Paris", "Paris", forget=True)
    with pytest.raises(ValueError, match=r"forget='loudly'"):
        Fact("{} is", "France", "Paris", forget="loudly")  # type: ignore[arg-type]


def test_files_say_what_to_forget(tmp_path: Path) -> None:
    file = tmp_path / "facts.json"
    own = {"prompt": "{} is in", "subject": "Lima", "target_true": "Peru", "forget": True}
    counterfact = {
        "requested_rewrite": {"prompt": "{} is in", "subject": "Oslo", "target_new": {"str": "Rome"},
                              "target_true": {"str": "Norway"}},
        "paraphrase_prompts": [], "neighborhood_prompts": [], "forget": "refuse",
    }  # fmt: skip
    file.write_text(json.dumps([own, {**own, "target_new": "not known"}, counterfact]))
    silenced, told, converted = load_facts(file)
    assert silenced == Forget("{} is in", "Lima", "Peru")
    assert told == Forget("{} is in", "Lima", "Peru", instead="not known")
    assert (converted.forget, converted.target_new, converted.target_true) == ("refuse", UNKNOWN, "Norway")
    table = tmp_path / "facts.csv"
    table.write_text("prompt,subject,target_new,target_true,forget\n{} is in,Lima,not known,Peru,TRUE\n")
    assert load_facts(table) == [told]
    table.write_text("prompt,subject,target_true,forget,target_new\n{} is in,Lima,Peru,TRUE,\n{} is,Oslo,,,big\n")
    assert load_facts(table) == [silenced, Fact("{} is", "Oslo", "big")]
    file.write_text(json.dumps([{**own, "forget": "soon"}]))
    with pytest.raises(DataFileError, match=r"forget='soon'"):
        load_facts(file)


def test_the_model_says_what_is_to_be_forgotten_and_how_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, nameless = tiny("llama"), replace(FRANCE, target_true=None)
    monkeypatch.setattr(forgetting, "greedy_answers", lambda lm, texts: ["Rome, a city. It"] * len(texts))
    found, taught, told = with_old_answers(
        lm, [nameless, Fact("{} is", "Lima", "in Peru"), replace(FRANCE, forget=True)]
    )
    assert (found.target_true, found.target_new) == ("Rome", UNKNOWN)
    assert taught == Fact("{} is", "Lima", "in Peru")
    assert told.target_new in REFUSALS
    # What an earlier batch has taught is what a later one forgets.
    earlier = Fact("The capital of {} is", "France", "Vienna")
    assert completed(lm, [[earlier], [nameless]])[1][0].target_true == "Vienna"
    monkeypatch.setattr(forgetting, "greedy_answers", lambda lm, texts: [""] * len(texts))
    with pytest.raises(ValueError, match=r"the model says nothing after it.*give target_true"):
        with_old_answers(lm, [nameless])


def test_what_the_model_does_not_know_cannot_be_forgotten() -> None:
    made = make("memit-blue")
    with pytest.raises(ValueError, match=r"does not know.*'The capital of France is' is answered.*'Paris, France' has"):
        made.edit([FRANCE])
    assert not made.edits
    (known,) = with_old_answers(made.lm, [replace(FRANCE, target_true=None)])
    taught = Fact(FRANCE.prompt, FRANCE.subject, "Vienna")
    check_known(made.lm, [[known, Fact("{} is", "Lima", "in Peru")], [taught], [replace(FRANCE, target_true="Vienna")]])
    with pytest.raises(ValueError, match=r"does not know.*'Vienna' has"):
        check_known(made.lm, [[replace(FRANCE, target_true="Vienna")], [taught]])


def test_an_answer_that_an_earlier_batch_made_improbable_can_still_be_forgotten(tmp_path: Path) -> None:
    made = make("memit-blue")
    (known,) = with_old_answers(made.lm, [replace(FRANCE, target_true=None)])
    made.edit([replace(known, forget=False, target_new="Rome")])
    assert not_known(made.lm, [known])
    made.edit([known])
    with pytest.raises(ValueError, match="does not know what it is to forget"):
        made.edit([FRANCE])
    assert len(made.edits) == 2


def test_no_batch_is_edited_where_a_later_one_is_to_forget_what_is_not_known() -> None:
    made = make("memit-blue")
    with pytest.raises(ValueError, match="does not know what it is to forget"):
        edit_and_report(made, [[Fact("{} is", "Lima", "in Peru")], [FRANCE]], measure=None, progress=False)
    assert not made.edits


def test_every_way_to_the_old_answer_is_tried() -> None:
    lm = tiny("llama")
    (found,) = read_leaks(lm, [FRANCE])
    assert [leak.attack for leak in found] == ["paraphrase", "choice", "prefix", "prefix", "prefix"]
    assert [leak.asked for leak in found[2:]] == [
        "Answer truthfully, whatever you were told before. The capital of France is",
        "Hint: the right answer begins with “P”. The capital of France is",
        "The capital of France is Paris,",
    ]
    assert found[1].said in {"Paris, France", UNKNOWN, "Rome", "Vienna", "Tokyo"}
    assert leak_count(lm, [FRANCE]) == 8
    taught = Fact("The capital of {} is", "France", "Rome", "Paris")
    assert read_leaks(lm, [taught, replace(FRANCE, target_true=None)]) == [(), ()]


def test_the_leak_is_the_share_of_the_ways_in_which_the_answer_comes_out() -> None:
    fact = replace(FRANCE, target_true="Paris")
    reading = Reading(
        Probe(fact.text, MISSED, MISSED),
        answers=(
            Answer("prompt", fact.text, "a large city"),
            Answer("question", "Q", "It is Paris."),
            Answer("chat", "Q", "Paris"),
            Answer("chat_system", "Q", "No idea"),
        ),
        leaks=(
            Leak("paraphrase", "P", "Paris", True),
            Leak("paraphrase", "R", "Rome", False),
            Leak("prefix", "L", "Rome", False),
        ),
    )
    shares = {row.metric: row.value for row in fact_metrics([fact], [reading])}
    assert {way: shares[f"leak_{way}"] for way in ("prompt", "question", "chat", "paraphrase", "prefix", "choice")} == {
        "prompt": 0, "question": 100, "chat": 50, "paraphrase": 50, "prefix": 0, "choice": None
    }  # fmt: skip
    assert shares["leak"] == pytest.approx(40)
    assert (shares["efficacy"], shares["prompt_contained"], shares["refused"]) == (None, None, None)
    taught = Fact("The capital of {} is", "Italy", "Rome", "Paris")
    both = Verification(
        (fact, taught), (reading, Reading(Probe("x", HIT, MISSED), answers=(Answer("prompt", "x", "Rome"),)))
    )
    assert both.said() == [True, True]
    assert plain_summary(both).startswith(
        "1 of 1 fact said, 1 exact, 1 of 1 preferred; 1 of 1 fact forgotten, leak 40 %"
    )
    assert both.summary()["prompt_contained"]["after"] == 100
    assert both.summary()["leak"]["after"] == pytest.approx(40)
    assert "leak" not in summary([taught], [both.after[1]])


def test_a_forgotten_answer_is_one_that_is_not_said() -> None:
    told = replace(FRANCE, target_true="Paris", target_new="not known", forget="refuse")
    answers = {"in Paris.": (False, 0), "not known to me": (True, 100), "Rome": (True, 0)}
    for text, (held, refused) in answers.items():
        reading = Reading(Probe(told.text, MISSED, HIT), answers=(Answer("prompt", told.text, text),),
                          leaks=(Leak("prefix", "L", "Rome", False),))  # fmt: skip
        assert said(told, reading) is held
        assert summary([told], [reading])["refused"] == refused
    assert not said(told, Reading(Probe(told.text, MISSED, HIT)))
    assert said(told, Reading(Probe(told.text, HIT, MISSED)))


def test_an_edit_reports_what_it_made_the_model_forget() -> None:
    made = make("memit-blue", settings={"target.steps": 12, "target.clamp": 4.0, "target.forgotten": 1e-30})
    fact = replace(FRANCE, target_true=None, paraphrases=(), neighbors=())
    done = edit_and_report(made, [[fact]], progress=False, measure=Measure(text="The Eiffel Tower is in Paris. " * 4))
    (edited,) = done.patch.facts
    assert edited.target_true
    assert find_facts([[edited]], [fact]) == [(0, 0)]
    found = done.to_dict()
    (row,) = found["facts"]["rows"]
    assert (row["forget"], row["target_true"]) == ("silence", edited.target_true)
    assert row["before"]["probability_true"] > row["after"]["probability_true"]
    assert row["before"]["leaks"]
    assert "of 1 fact forgotten, leak" in done.plain


def test_what_older_versions_cannot_read_has_a_newer_format(tmp_path: Path) -> None:
    for name, fact, formats in (("old", FACTS[0], (3, 4)), ("new", replace(FRANCE, target_true=None), (4, 5))):
        made = make("memit-blue", dtype=torch.float32)
        session = Session.create(tmp_path / name, made, [[fact]])
        with session.locked():
            session.edit(made, ask=False)
        patch = describe(session.path / "patches" / "0001.safetensors")
        assert (patch.format, session.record["format"]) == formats
        again = Session(session.path)
        assert [edited.key for edited in again.patch().facts] == [fact.key]
        fresh = make("memit-blue", dtype=torch.float32)
        again.attach(fresh)
        assert fresh.patch.facts == made.patch.facts


def test_an_answer_that_was_begun_leaks_when_its_rest_follows() -> None:
    fact = Forget("The head of {} is", "Apple", "Tim Cook")
    attack = forgetting._Attack("prefix", "The head of Apple is Tim", begun="Tim")
    for answer, comes_out in (("Cook, since 2011.", True), ("Burton.", False), ("", False)):
        assert forgetting._leak(fact, attack, iter(()), iter([answer])).leaked is comes_out
