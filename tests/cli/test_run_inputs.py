"""What a run reads besides the model: checked before anything is measured, read once, and the same when it resumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.cli.conftest import interrupt, numbers

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from factpatch.data.references import ReferenceTexts
from factpatch.lab.runs.execute import PACKAGES


@pytest.fixture
def small(config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """One method, and a text of its own to measure perplexity on."""
    text = shutil.copy(config["corpus"], tmp_path / "text.txt")
    return {**config, "methods": config["methods"][:1], "evaluate": {"perplexity": str(text), "generation": False}}


@pytest.fixture
def stopped(begin: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration of a run that was interrupted after its first batch."""
    with monkeypatch.context() as patched:
        interrupt(patched, "factpatch.journal.append", calls=2)
        assert begin(small).exit_code == 130
    return small


def edit_about(directory: Path, **changes: Any) -> None:
    file = directory / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def test_a_run_does_not_continue_with_other_contents_of_a_file(
    begin: Any, stopped: dict[str, Any], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    original = text.read_bytes()
    text.write_bytes(original + b"One more.")
    before = numbers(tmp_path / "out")
    result = begin(stopped)
    assert result.exit_code == 1
    assert "its inputs have changed since the run began: evaluate.perplexity" in result.output
    assert numbers(tmp_path / "out") == before
    text.write_bytes(original)
    assert begin(stopped).exit_code == 0
    # What is measured already can be drawn up without the files that it was measured with.
    text.unlink()
    assert begin(stopped).exit_code == 0


def test_a_run_does_not_continue_with_other_weights(begin: Any, stopped: dict[str, Any], tmp_path: Path) -> None:
    """Not even if they are none that an edit writes."""
    original, copy = Path(stopped["model"]), tmp_path / "copy"
    shutil.copytree(original, copy)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    file = tmp_path / "out" / "run.json"
    about = json.loads(file.read_text("utf-8"))
    about["config"]["model"] = str(copy)
    file.write_text(json.dumps(about), "utf-8")
    result = begin({**stopped, "model": str(copy)})
    assert result.exit_code == 1
    assert "has other weights than when the run began" in result.output


def test_files_may_be_elsewhere_if_they_hold_the_same(
    begin: Any, stopped: dict[str, Any], facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moved").mkdir()
    for file in (tmp_path / "text.txt", facts_file):
        file.rename(tmp_path / "moved" / file.name)
    monkeypatch.chdir(tmp_path / "moved")
    stopped["evaluate"]["perplexity"] = "text.txt"
    stopped["datasets"][0]["facts"] = "facts.json"
    result = begin(stopped)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("other", ["facts", "text", "no text"])
def test_other_files_are_other_settings_even_of_a_finished_run(
    begin: Any, small: dict[str, Any], facts_file: Path, tmp_path: Path, other: str
) -> None:
    assert begin(small).exit_code == 0
    if other == "facts":
        records = json.loads(facts_file.read_text("utf-8"))
        records[0]["target_new"] = "Italian"
        (tmp_path / "other.json").write_text(json.dumps(records), "utf-8")
        small["datasets"][0]["facts"] = str(tmp_path / "other.json")
    else:
        (tmp_path / "other.txt").write_text("Other words.", "utf-8")
        small["evaluate"]["perplexity"] = False if other == "no text" else str(tmp_path / "other.txt")
    result = begin(small)
    assert result.exit_code == 2
    assert "holds a run with other settings" in result.output
    assert ("three.0.json" if other == "facts" else "evaluate.perplexity") in result.output


def test_a_run_continues_with_other_versions_only_on_request_and_records_them(
    begin: Any, stopped: dict[str, Any], tmp_path: Path
) -> None:
    versions = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["versions"]
    edit_about(tmp_path / "out", versions={**versions, "torch": "1.0"})
    result = begin(stopped)
    assert result.exit_code == 1
    assert "torch is '1.0' there" in result.output
    assert begin(stopped, "out", "--other-versions").exit_code == 0
    about = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert about["later_versions"] == [versions]
    # From now on both belong to the run.
    (tmp_path / "out" / "rows" / "three" / "0" / "memit" / "row.json").unlink()
    assert begin(stopped).exit_code == 0


def test_a_run_that_an_older_factpatch_began_continues(begin: Any, stopped: dict[str, Any], tmp_path: Path) -> None:
    about = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    del about["inputs"], about["config"]["datasets"][0]["skip_unusable"]
    versions = {name: about["versions"][name] for name in ("factpatch", "torch", "transformers", "numpy")}
    about.update(versions=versions, python="3.10.0")
    (tmp_path / "out" / "run.json").write_text(json.dumps(about), "utf-8")
    result = begin(stopped)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("evaluate", "said"),
    [
        ({"perplexity": "gone.txt"}, "evaluate.perplexity: gone.txt: No such file"),
        ({"text": {"references": "gone"}}, "evaluate.text.references: attribute_snippets: "),
        ({"capability": {"data": "gone", "tasks": ["cola"]}}, "evaluate.capability.data: cola: gone/glue_cola.json"),
        ({"capability": {"data": "gone", "tasks": ["kola"]}}, "unknown task 'kola'"),
        ({"drift": {"prompts": "gone.json"}}, "evaluate.drift.prompts: gone.json"),
    ],
)
def test_a_missing_file_is_named_before_the_directory_is_made(
    begin: Any, small: dict[str, Any], tmp_path: Path, evaluate: dict[str, Any], said: str
) -> None:
    result = begin({**small, "evaluate": evaluate})
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"sentence": "A", "label": 1}] * 10, "has 10 items; the first 10 are examples"),
        ([{"sentence": "A", "label": 7}] * 20, "is no item of cola"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_the_model_is_loaded(
    begin: Any,
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: list[dict[str, Any]],
    said: str,
) -> None:
    (tmp_path / "glue_cola.json").write_text(json.dumps(records), "utf-8")
    small["evaluate"]["capability"] = {"data": str(tmp_path), "tasks": ["cola"]}
    monkeypatch.setattr("factpatch.lab.runs.runner.load_language_model", None)
    result = begin(small)
    assert result.exit_code == 1
    assert said in result.output


def test_a_package_that_is_not_installed_is_named_with_its_extra_before_the_model_is_loaded(
    begin: Any, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "no_such_package", "no-such-package")
    monkeypatch.setattr("factpatch.lab.runs.runner.load_language_model", None)
    result = begin(small)
    assert result.exit_code == 1
    assert "a run needs no-such-package; pip install 'factpatch[runs]'" in result.output


@pytest.mark.parametrize("measure", ["perplexity", "hidden_states"])
def test_a_wrong_input_is_not_a_failure_of_the_method(
    begin: Any, small: dict[str, Any], tmp_path: Path, measure: str
) -> None:
    if measure == "perplexity":
        (tmp_path / "text.txt").write_text("a", "utf-8")
    else:
        known = {"prompt": "The city is", "template": "The {} is", "subject": "city", "attribute": "Rome"}
        (tmp_path / "same.json").write_text(json.dumps([known] * 3), "utf-8")
        small["evaluate"]["drift"] = {"prompts": str(tmp_path / "same.json")}
    result = begin(small)
    assert result.exit_code == 1
    assert f"{measure} of the unedited model" in result.output
    assert not list((tmp_path / "out").rglob("row.json"))


def test_reference_texts_are_read_once_for_all_methods(
    begin: Any, config: dict[str, Any], facts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(facts_file.read_text("utf-8"))
    for fact in facts:
        fact.update(relation_id="P103", target_new_id="Q1", generation_prompts=["The tower is", "They speak"])
    facts_file.write_text(json.dumps(facts), "utf-8")
    records = [{"relation_id": "P103", "target_id": "Q1", "samples": [{"text": "the tower and the city of Paris"}]}]
    (tmp_path / "attribute_snippets.json").write_text(json.dumps(records), "utf-8")
    words = {word: place for place, word in enumerate(("the", "tower", "city", "of", "paris", "is", "they", "speak"))}
    (tmp_path / "tfidf_vocab.json").write_text(json.dumps(words), "utf-8")
    np = pytest.importorskip("numpy")
    np.save(tmp_path / "idf.npy", np.ones(len(words)))
    read = []

    def counted(path: Any, *given: Any) -> ReferenceTexts:
        read.append(path)
        return load(path, *given)

    load = ReferenceTexts.load
    monkeypatch.setattr(ReferenceTexts, "load", counted)
    config["evaluate"]["text"]["references"] = str(tmp_path)
    result = begin(config)
    assert result.exit_code == 0, result.output
    assert len(read) == 1
    found = [row for row in numbers(tmp_path / "out") if "consistency" in row]
    # Two facts before, and the one of them that is in force at the end of three methods.
    assert len(found) == 5
    assert all(0 < float(row[-1]) <= 100 for row in found)
