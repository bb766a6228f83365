"""Runs on a tiny model: measured once, the same after any interruption, refused where they do not fit."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from tests.cli.conftest import FACTS, QUICK, interrupt, invoke, numbers, small_run

pytest.importorskip("pyarrow", reason="needs the extra `runs`")

from factpatch.data import load_facts
from factpatch.evaluation.verify import verify
from factpatch.lab.runs.config import ConfigError, config_from
from factpatch.lab.runs.directory import RunDirectory
from factpatch.lab.runs.measures import UNTOUCHED
from factpatch.lab.runs.outcomes import in_a_sentence
from factpatch.lab.runs.results import read_results
from factpatch.lab.runs.rows import load_rows
from factpatch.model.loading import load_language_model
from factpatch.session import Session, load_patch

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def finished(
    model_directory: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The configuration of a run of one method that is finished, and its directory."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "facts.json").write_text(json.dumps(FACTS), "utf-8")
    config = small_run(model_directory, folder / "facts.json", corpus)
    config.update(methods=config["methods"][:1], evaluate={"perplexity": False, "generation": False})
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    done = invoke(folder / "cache", "run", folder / "config.yaml", "--out", folder / "out")
    assert done.exit_code == 0, done.output
    return config, folder / "out"


@pytest.fixture
def through(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> dict[str, Any]:
    """The configuration of a finished run, a copy of which is `out`."""
    config, directory = finished
    shutil.copytree(directory, tmp_path / "out")
    return deepcopy(config)


def test_a_run_measures_every_method_before_during_and_after_the_edits(
    begin: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    result = begin(config)
    assert result.exit_code == 0, result.output
    assert "pruned" in result.output
    results = read_results(tmp_path / "out")
    assert results.labels == ["memit", "memit-blue", "pruned"]
    rows = results.rows
    efficacy = rows[rows["metric"] == "efficacy"]
    # Three facts before, each once after its batch; at the end not the one that was replaced.
    assert len(efficacy[efficacy["label"] == ""]) == 3
    assert list(efficacy[(efficacy["label"] == "memit") & (efficacy["when"] == "written")]["batch"]) == [1, 1, 2]
    assert list(efficacy[(efficacy["label"] == "memit") & (efficacy["when"] == "end")]["place"]) == [1, 2]
    assert set(rows[rows["metric"] == "perplexity"]["when"]) == {"before", "end"}
    for suffix in (".md", ".tex", ".csv"):
        assert "memit-blue" in (tmp_path / "out" / f"table{suffix}").read_text("utf-8")
    texts = (tmp_path / "out" / "rows" / "three" / "0" / "memit" / "measured" / "end.facts.jsonl").read_text("utf-8")
    assert {json.loads(line)["fact"] for line in texts.splitlines()} == {"tower", "darrieux-again"}


def test_a_question_that_one_method_trains_is_asked_of_none(begin: Any, config: dict[str, Any], tmp_path: Path) -> None:
    written, other = "What is the mother tongue of Danielle Darrieux?", "What does Danielle Darrieux speak?"
    facts = [{**FACTS[0], "questions": [written, other]}, {**FACTS[1], "questions": ["Where is the Eiffel Tower?"]}]
    (tmp_path / "asked.json").write_text(json.dumps(facts), "utf-8")
    own = {"name": "memit", "label": "own", "settings": {**QUICK, "target.contexts": ["prompt", "own_question"]}}
    config.update(
        methods=[own, config["methods"][0]],
        datasets=[{"facts": str(tmp_path / "asked.json"), "name": "asked"}],
        evaluate={"perplexity": False},
    )
    assert begin(config).exit_code == 0
    files = sorted((tmp_path / "out").rglob("*.facts.jsonl"))
    assert len(files) == 5  # before, and for each method right after the batch and at the end
    for file in files:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        asked = {(line["fact"], line["asked"]) for line in lines if line["form"] == "question"}
        assert asked == {("darrieux", f"Question: {other}\nAnswer:")}, file


def test_a_run_ends_with_the_same_numbers_after_several_interruptions(
    begin: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["methods"] = config["methods"][1:]
    assert begin(config, "whole").exit_code == 0
    expected = numbers(tmp_path / "whole")
    # Three times, each at another place, and always in what is left.
    places = (
        "factpatch.lab.runs.measures.write_rows",
        "factpatch.values.shared.optimize_values",
        "factpatch.journal.append",
    )
    for place in places:
        with monkeypatch.context() as patched:
            interrupt(patched, place, calls=2)
            assert begin(config).exit_code == 130
    result = begin(config)
    assert result.exit_code == 0, result.output
    assert numbers(tmp_path / "out") == expected


def test_the_model_after_the_last_batch_is_measured_once(
    begin: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(lm: Any, tokenizer: Any, facts: Any, **options: Any) -> Any:
        asked.append(len(facts))
        return verify(lm, tokenizer, facts, **options)

    monkeypatch.setattr("factpatch.lab.runs.measures.verify", counted)
    config["methods"] = config["methods"][1:2]
    assert begin(config).exit_code == 0
    # Before, after the first batch of two and, at the end, once for the last batch and for all that are in force.
    assert asked == [3, 2, 2]

    folder = tmp_path / "out" / "rows" / "three" / "0" / "memit-blue"
    lm = load_language_model(config["model"])
    load_patch(folder).apply(lm.model)
    direct = verify(lm, None, load_facts(config["datasets"][0]["facts"])[2:])
    written = load_rows(folder / "measured" / "written.0002.facts.parquet")
    known = [row for row in written if row.metric != UNTOUCHED]
    assert [(row.fact, row.metric, row.value) for row in known] == [tuple(row) for row in direct.rows()]
    assert {(row.when, row.batch, row.place, row.edits) for row in written} == {("written", 2, 2, 3)}
    said = (folder / "measured" / "written.0002.facts.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["said"] for line in said] == [answer.said for answer in direct.after[0].answers]


def test_specificity_is_also_measured_without_neighbors_that_are_edited_themselves(
    begin: Any, config: dict[str, Any], facts_file: Path, tmp_path: Path
) -> None:
    facts = json.loads(facts_file.read_text("utf-8"))
    # The only neighbor of this fact is the question of another one.
    facts[0]["neighbors"] = [{"prompt": "the Eiffel Tower is in", "target_true": "Paris"}]
    facts[1].update(prompt="{} is in", subject="The Eiffel Tower")
    facts_file.write_text(json.dumps(facts[:2]), "utf-8")
    config["methods"] = config["methods"][:1]
    assert begin(config).exit_code == 0
    rows = read_results(tmp_path / "out").rows
    first = rows[(rows["place"] == 0) & (rows["when"] == "end")].set_index("metric")["value"]
    assert first["specificity"] in (0.0, 100.0)
    assert math.isnan(first["specificity_untouched"])
    # A fact without neighbors has neither.
    second = rows[(rows["place"] == 1) & (rows["when"] == "end")].set_index("metric")["value"]
    assert second[["specificity", "specificity_untouched"]].isna().all()


def test_a_method_that_fails_is_recorded_and_the_others_continue(
    begin: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["methods"] = [{"name": "alphaedit", "settings": {"solver.threshold": 1e-30}}, config["methods"][0]]
    result = begin(config)
    assert result.exit_code == 0, result.output
    results = read_results(tmp_path / "out")
    assert list(results.failed) == ["alphaedit on three, seed 0"]
    assert "alphaedit on three, seed 0" in result.output
    table = (tmp_path / "out" / "table.csv").read_text("utf-8")
    assert "memit" in table


def test_a_fact_that_a_later_one_replaced_is_not_asked_about_at_the_end(
    through: dict[str, Any], tmp_path: Path
) -> None:
    rows = read_results(tmp_path / "out").rows
    asked = {when: set(rows["fact"][rows["when"] == when].dropna()) for when in ("before", "written", "end")}
    everything = {"darrieux", "tower", "darrieux-again"}
    assert asked == {"before": everything, "written": everything, "end": {"tower", "darrieux-again"}}


def test_capability_is_measured_every_so_many_edits(begin: Any, config: dict[str, Any], tmp_path: Path) -> None:
    items = [{"sentence": f"text {place}", "label": place % 2} for place in range(12)]
    (tmp_path / "glue_cola.json").write_text(json.dumps(items), "utf-8")
    config.update(methods=config["methods"][:1], batch_size=1)
    config["evaluate"] = {
        "perplexity": False, "generation": False,
        "capability": {"data": str(tmp_path), "tasks": ["cola"], "every": 2},
    }  # fmt: skip
    assert begin(config).exit_code == 0
    rows = read_results(tmp_path / "out").rows
    rows = rows[rows["metric"] == "cola.generated.f1"]
    assert sorted(zip(rows["when"], rows["edits"], strict=True)) == [("before", 0), ("end", 3), ("written", 2)]


def test_time_spent_on_shared_targets_before_is_recorded(
    begin: Any, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["evaluate"] = {"perplexity": False, "generation": False}
    config["methods"] = [config["methods"][0], config["methods"][2]]  # memit, and prune, which conditions in the end
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.journal.append", calls=7)
        begin(config)
    assert begin(config).exit_code == 0
    results = read_results(tmp_path / "out")
    memit, pruned = results.records
    assert memit["shared_seconds"] == 0
    assert pruned["shared_seconds"] == pytest.approx(memit["seconds"]["values"], rel=0.2)
    assert "value targets that had been optimized before" in in_a_sentence(results, "pruned", "three", [])


def test_conflicting_facts_are_an_error_before_anything_is_done(
    begin: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    config.update(batch_size=3, methods=config["methods"][:1])
    result = begin(config)
    assert result.exit_code == 2
    assert "distinct" in result.output
    config["datasets"][0]["distinct"] = True
    assert begin(config).exit_code == 0
    assert len(read_results(tmp_path / "out").rows["fact"].dropna().unique()) == 2


def test_records_that_are_no_facts_are_skipped_on_request(
    begin: Any, config: dict[str, Any], facts_file: Path, tmp_path: Path
) -> None:
    facts_file.write_text(json.dumps([{"prompt": "{} and {}", "subject": "x", "target_new": "y"}, *FACTS]), "utf-8")
    config.update(methods=config["methods"][:1], evaluate={"perplexity": False, "generation": False})
    assert begin(config).exit_code == 2
    config["datasets"][0]["skip_unusable"] = True
    result = begin(config)
    assert result.exit_code == 0, result.output
    assert "1 record cannot be used and was skipped" in result.output
    assert len(read_results(tmp_path / "out").rows["fact"].dropna().unique()) == 3


def test_a_run_of_an_older_factpatch_with_fewer_fields_is_found_again(
    begin: Any, through: dict[str, Any], tmp_path: Path
) -> None:
    about = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    del about["config"]["datasets"][0]["skip_unusable"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(about), "utf-8")
    assert begin(through).exit_code == 0


def test_drafts_of_a_killed_process_are_removed(begin: Any, through: dict[str, Any], tmp_path: Path) -> None:
    name = ".factpatch-0123456789abcdef.tmp"
    (tmp_path / "out" / name).touch()
    folder = tmp_path / "out" / "rows" / "three" / "0"
    (folder / "memit" / "row.json").unlink()
    (folder / "memit" / "measured" / name).touch()
    (folder / name / "patches").mkdir(parents=True)  # a session that was about to begin
    assert begin(through).exit_code == 0
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_a_second_process_is_kept_out_and_changes_nothing(begin: Any, through: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "out"):
        out = tmp_path / name
        before = sorted(out.rglob("*"))
        with FileLock(out / "lock"):
            result = begin(through, name)
        assert result.exit_code in (1, 2), name
        assert "another process is using this run" in result.output
        assert {*out.rglob("*")} - {*before} <= {out / "lock"}
    assert begin(through).exit_code == 0


def test_a_finished_run_does_nothing_more(begin: Any, through: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factpatch.lab.runs.runner.load_language_model", None)
    assert begin(through).exit_code == 0


def test_a_directory_of_other_settings_is_refused_with_the_difference(
    begin: Any, through: dict[str, Any], tmp_path: Path
) -> None:
    before = numbers(tmp_path / "out")
    result = begin({**through, "batch_size": 1})
    assert result.exit_code == 2
    assert "batch_size is 2 there and 1 here" in result.output
    assert numbers(tmp_path / "out") == before


def test_altered_facts_are_noticed(begin: Any, through: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out" / "facts" / "three.0.json").write_text("[]", "utf-8")
    result = begin(through)
    assert result.exit_code == 1
    assert "altered" in result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["memitt"]}, "memitt"),
        ({"methods": ["memit", "memit"]}, "given twice"),
        ({"methods": [{"name": "memit", "settings": {"solver.wight": 1}}]}, "wight"),
        ({"methods": []}, "methods"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"methods": [{"name": "memit", "label": "a\x1bb"}]}, "holds a control character or a hidden one"),
        ({"methods": [{"name": "memit", "label": "a\u202eb"}]}, "holds a control character or a hidden one"),
        ({"methods": [{"name": "memit", "label": "a\nb"}]}, "holds a control character or a hidden one"),
        ({"facts": 3}, "facts is 3: there is no such field"),
        ({"methods": [{"name": "memit", "efort": "quick"}]}, "there is no such field. Did you mean 'effort'?"),
        (
            {"evaluate": {"curve": {"facs": 3}}},
            "there is no such field. Did you mean 'facts'? Known: at, facts, generation",
        ),
        ({"evaluate": {"text": {"sampling": "beam"}}}, "evaluate.text.sampling"),
        ({"datasets": [{"facts": "a.json", "name": "a/b"}]}, "name of a folder"),
    ],
)
def test_a_wrong_field_is_named(config: dict[str, Any], change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"^config: ") as error:
        config_from({**config, **change})
    assert said in str(error.value)


def test_too_few_facts_are_an_error_before_anything_is_done(begin: Any, config: dict[str, Any], tmp_path: Path) -> None:
    config["datasets"][0]["limit"] = 30
    result = begin(config)
    assert result.exit_code == 2
    assert "has 3 facts" in result.output
    assert not (tmp_path / "out" / "run.json").exists()


def test_datasets_and_seeds_are_edited_each_by_itself(begin: Any, config: dict[str, Any], tmp_path: Path) -> None:
    facts = [
        {**FACTS[0], "id": None, "prompt": prompt, "subject": subject}
        for prompt in ("The mother tongue of {} is", "{} speaks")
        for subject in ("Danielle Darrieux", "Ada Lovelace", "Steve Jobs", "Messi")
    ]
    (tmp_path / "many.json").write_text(json.dumps(facts), "utf-8")
    method = config["methods"][1]
    settings = {**method.get("settings", {}), "target.contexts": ["prompt", "prefixes"]}
    config.update(
        methods=[{**method, "settings": settings}],
        datasets=[
            {"facts": str(tmp_path / "many.json"), "name": "drawn", "sample": True, "limit": 3},
            {"facts": str(tmp_path / "many.json"), "name": "first", "limit": 2, "batch_size": 1},
        ],
        seeds=[0, 1],
        evaluate={"perplexity": False, "generation": False},
    )
    result = begin(config)
    assert result.exit_code == 0, result.output
    directory = RunDirectory(tmp_path / "out")
    plans = {(plan.dataset.name, plan.seed): plan for plan in directory.plans()}
    there = load_facts(tmp_path / "many.json")
    assert plans["first", 0].facts == plans["first", 1].facts == tuple(there[:2])
    for seed in (0, 1):
        drawn = plans["drawn", seed].facts
        assert drawn == tuple(random.Random(seed).sample(there, 3))
        session = Session(plans["drawn", seed].directory)
        assert [fact for batch in session.batches for fact in batch] == list(drawn)
        assert [batch.facts for batch in session.finished] == [2, 1]
        assert [batch.facts for batch in Session(plans["first", seed].directory).finished] == [1, 1]
    assert plans["drawn", 0].facts != plans["drawn", 1].facts
    # A seed also draws the published contexts, so that the same facts give other weights.
    first, second = (load_patch(plans["first", seed].directory).batches[0].after for seed in (0, 1))
    assert first != second
    rows = read_results(tmp_path / "out").rows
    ends = rows[(rows["when"] == "end") & (rows["metric"] == "efficacy")]
    assert ends.groupby(["dataset", "seed"]).size().to_dict() == {
        ("drawn", 0): 3, ("drawn", 1): 3, ("first", 0): 2, ("first", 1): 2,
    }  # fmt: skip
    for name in ("drawn", "first"):
        assert any(line.strip() == name for line in result.output.splitlines())
    assert "drawn Efficacy" in (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "first Efficacy" in (tmp_path / "out" / "table.md").read_text("utf-8")


def test_batches_that_somebody_has_undone_are_edited_again(begin: Any, through: dict[str, Any], tmp_path: Path) -> None:
    line = tmp_path / "out" / "rows" / "three" / "0" / "memit"
    before, batches = numbers(tmp_path / "out"), len(Session(line).finished)
    session = Session(line)
    with session.locked():
        session.undo(to=1)
    (line / "row.json").unlink()
    for file in (line / "measured").glob("end*"):
        file.unlink()
    result = begin(through)
    assert result.exit_code == 0, result.output
    assert len(Session(line).finished) == batches
    assert numbers(tmp_path / "out") == before


def test_a_recipe_that_cannot_be_used_begins_no_run(begin: Any, config: dict[str, Any], tmp_path: Path) -> None:
    result = begin({**config, "dtype": "float23"})
    assert result.exit_code == 2
    assert "dtype='float23': no such dtype" in result.output
    assert not (tmp_path / "out").exists()
