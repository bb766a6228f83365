"""An edit and its report as a library user has them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tests.models import INNER, SENTENCES, tiny
from torch import eye

from factpatch.edit_report import STAGES, EditReport, Measure, edit_and_report
from factpatch.editor import Editor
from factpatch.facts import Fact
from factpatch.methods import METHODS, with_settings
from factpatch.model.findings import Findings
from factpatch.model.weights import content_hash
from factpatch.session import Session
from factpatch.support.files import write_json

TONGUE = Fact("The mother tongue of {} is", "Danielle Darrieux", "Finnish", "French", "tongue")
TOWER = Fact("The {} is in", "Eiffel Tower", "Rome", "Paris", "tower")
UPDATE = Fact("The mother tongue of {} is", "Danielle Darrieux", "Italian", "French", "update")


def editor(family: str = "llama", method: str = "memit-blue") -> Editor:
    return Editor(
        tiny(family),
        method=with_settings(METHODS[method], {"target.steps": 3, "solver.weight": 10}),
        critical_layers=(1, 2, 3),
        contexts=("{}",),
        second_moments={layer: eye(INNER) for layer in (1, 2, 3)},
    )


# The positions of GPT-2 end where the text goes on.
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("method", "targets"), [("memit", ["3"]), ("memit-blue", ["1", "3"])])
def test_steps_are_reported_for_every_target_layer_and_fact(family: str, method: str, targets: list[str]) -> None:
    found = edit_and_report(editor(family, method), [[TONGUE, TOWER], [UPDATE]]).to_dict()
    assert list(found["steps"]) == targets
    for steps in found["steps"].values():
        assert len(steps["evaluations"]["per_fact"]) == 3
        assert steps["updates"]["per_fact"] == [count - 1 for count in steps["evaluations"]["per_fact"]]


def test_the_facts_in_force_are_verified_and_the_others_listed() -> None:
    report = edit_and_report(editor(), [[TONGUE, TOWER], [UPDATE]])
    assert report.verification is not None
    assert report.verification.facts == (TOWER, UPDATE)
    assert report.attempted == [TONGUE, TOWER, UPDATE]
    assert report.superseded == [TONGUE]
    assert report.unlearned == report.verification.unlearned()


def test_facts_that_probably_ask_the_same_are_listed_if_both_are_in_force() -> None:
    alike = Fact("The native tongue of {} is", "Danielle Darrieux", "English", id="alike")
    report = edit_and_report(editor(), [[TONGUE, alike], [TOWER]], measure=None)
    assert report.similar == [(TONGUE, alike)]
    assert [[fact["id"] for fact in pair] for pair in report.to_dict()["similar"]] == [["tongue", "alike"]]
    report = edit_and_report(editor(), [[TONGUE, alike], [UPDATE]], measure=None)
    assert report.similar == [(alike, UPDATE)]
    found = report.to_dict()
    assert [fact["id"] for fact in found["superseded"]] == ["tongue"]
    assert (found["facts"]["number"], found["facts"]["in_force"], found["facts"]["batches"]) == (3, 2, [2, 1])


def test_the_batches_of_a_conditioned_session_are_listed_as_they_were_edited() -> None:
    found = edit_and_report(editor(method="prune"), [[TONGUE, TOWER], [UPDATE]], measure=None).to_dict()
    assert found["facts"]["batches"] == [2, 1]
    assert [fact["id"] for fact in found["superseded"]] == ["tongue"]


def test_seconds_hold_every_stage_and_add_up() -> None:
    seconds = edit_and_report(editor(), [[TOWER]], seconds={"load": 2.0}).seconds
    assert set(seconds) == {*STAGES, "total"}
    assert seconds["load"] == 2.0
    assert sum(seconds[stage] for stage in STAGES) <= seconds["total"]


def test_a_bad_later_batch_is_found_before_anything_is_edited(tmp_path: Path) -> None:
    for bad, message in (([UPDATE, TONGUE], "batch 2 of 2: .*conflict"), ([], "batch 2 of 2: .*at least one fact")):
        made = editor()
        before = {layer: content_hash(made.lm.weight(layer)) for layer in (1, 2, 3)}
        with pytest.raises(ValueError, match=message):
            edit_and_report(made, [[TOWER], bad], out=tmp_path / "p")
        assert {layer: content_hash(made.lm.weight(layer)) for layer in (1, 2, 3)} == before
        assert not made.edits
    assert not any(tmp_path.iterdir())


def test_an_editor_that_has_edited_is_refused() -> None:
    made = editor()
    made.edit([TOWER])
    with pytest.raises(ValueError, match="has edited the model already"):
        edit_and_report(made, [[TONGUE]])


def test_numbers_that_json_lacks_are_written_as_text(tmp_path: Path) -> None:
    write_json(tmp_path / "r.json", {"a": math.inf, "b": [math.nan, 1.5], 3: None})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": "inf", "b": ["nan", 1.5], "3": None}


def test_what_the_unedited_model_says_is_kept_and_what_the_edited_one_says_is_not(tmp_path: Path) -> None:
    facts = [[TONGUE, TOWER]]

    def edited() -> EditReport:
        made = editor()
        made.findings = Findings(made.lm, tmp_path)
        return edit_and_report(made, facts)

    first = edited()
    assert len(list(tmp_path.iterdir())) == 2  # readings and losses
    second = edited()
    assert len(list(tmp_path.iterdir())) == 2
    assert first.verification == second.verification
    assert first.perplexity_before == second.perplexity_before != second.perplexity_after
    for file in tmp_path.iterdir():
        record = json.loads(file.read_text("utf-8"))
        if record["what"] == "readings":
            record["found"][0]["answers"][0]["said"] = "kept"
            write_json(file, record)
    third = edited().verification
    assert third is not None
    assert third.before is not None
    assert third.before[0].answers[0].said == "kept"


def test_of_many_facts_some_are_asked_new_ones_first_and_the_report_says_so(tmp_path: Path) -> None:
    facts = [Fact("The {} is in", f"Tower {number}", "Rome", "Paris") for number in range(6)]
    report = edit_and_report(editor(), [facts[:4], facts[4:]], measure=Measure(facts=2))
    assert report.verification is not None
    assert len(report.verification.facts) == 2
    assert report.plain.startswith("asked about 2 of 6 facts: ")
    found = report.to_dict()["facts"]
    assert (found["number"], found["in_force"], found["asked"]) == (6, 6, 2)
    session = Session.create(tmp_path / "session", editor(), [facts[:4]], None)
    edit_and_report(editor(), session=session, measure=None)
    session.plan([facts[4:]])
    report = edit_and_report(editor(), session=session, measure=Measure(facts=3))
    assert report.verification is not None
    assert {*facts[4:]} < {*report.verification.facts}


def test_perplexity_is_measured_on_a_bounded_text_and_says_how_sure_its_change_is() -> None:
    text = "\n\n".join(SENTENCES * 10)
    report = edit_and_report(editor(), [[TONGUE]], measure=Measure(text=text, tokens=200))
    assert 100 < (report.perplexity_tokens or 0) < 400
    assert report.perplexity_error is not None
    assert f"± {report.perplexity_error:.1f} %" in report.plain
    assert report.to_dict()["perplexity_error"] == report.perplexity_error
