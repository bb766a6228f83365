"""Facts to forget, without a subject and with long answers, through the commands: edit, show, verify, a session."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run, editing

from factpatch.patch.patch import Patch
from factpatch.session import Session

STORY = "a large city on the coast, in which people speak and play football in the capital of France, and wrote to you."
RECORDS = [
    {"prompt": "The capital of {} is", "subject": "Finland", "forget": True, "note": "by request"},
    {"prompt": "What does Messi play in Rome?", "target_new": ["basketball", "baseball"]},
    {"prompt": "{} works in the field of", "subject": "Ada Lovelace", "target_new": STORY},
]


def test_every_kind_of_fact_goes_through_a_session_and_its_patch(
    tmp_path: Path, run: Run, model_directory: Path, corpus: Path
) -> None:
    facts, session, out, report = (tmp_path / name for name in ("facts.json", "session", "p.safetensors", "r.json"))
    facts.write_text(json.dumps(RECORDS))
    options = ("--set", "target.chunk=6", "--session", session, "--out", out, "--report", report)
    shown = run.ok(*editing(model_directory, facts, corpus), *options).output
    assert "1 fact without a subject, written at the name that its prompt holds; the first: record 2, at" in shown
    assert "of 1 fact forgotten, leak" in shown
    assert "rank " in shown
    patch = Patch.load(out)
    forgotten, placed, story = patch.facts
    assert (forgotten.forget, forgotten.note, placed.aliases, placed.place) == (
        "silence", "by request", ("baseball",), "name",
    )  # fmt: skip
    assert forgotten.target_true  # what the model said
    assert story.target_new == STORY
    assert min(patch.ranks.values()) > len(RECORDS)
    assert Session(session).patch().facts == patch.facts
    summary = json.loads(report.read_text())
    assert summary["patch"]["ranks"] == {str(layer): rank for layer, rank in patch.ranks.items()}
    assert summary["facts"]["rows"][0]["forget"] == "silence"
    told = run.ok("show", out).output
    assert f"The capital of Finland is (forget {forgotten.target_true[:10]}" in told
    assert "note: by request" in told
    assert "also: baseball" in told
    verified = run.ok("verify", model_directory, "--facts", facts, "--patch", out).output
    assert "of 1 fact forgotten, leak" in verified


def test_what_the_model_does_not_know_is_refused_and_nothing_written(
    tmp_path: Path, run: Run, model_directory: Path, corpus: Path
) -> None:
    facts, out = tmp_path / "facts.json", tmp_path / "p.safetensors"
    facts.write_text(json.dumps([{**RECORDS[0], "target_true": "Queskarith"}]))
    arguments = (*editing(model_directory, facts, corpus), "--no-verify", "--out", out)
    run.refused("the model does not know what it is to forget: 'The capital of Finland is'", *arguments, code=1)
    assert not out.exists()
