"""The search on a tiny model: it ends with a preset that an editor takes, and leaves the model as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.models import SENTENCES, tiny

from factpatch import Editor, Fact, verify
from factpatch.corpus import corpus_from
from factpatch.methods import METHODS
from factpatch.model.weights import content_hash
from factpatch.presets import Match, Preset
from factpatch.presets.written import load_preset, save_preset
from factpatch.tuning import Candidate, Workbench, tune
from factpatch.tuning.outputs import write_outputs

CORPUS = corpus_from([" ".join(SENTENCES[place:] + SENTENCES[:place]) for place in range(len(SENTENCES))])
WORDS = ("French", "Finnish", "Italian", "Rome", "Paris", "Tokyo")


def probes(count: int = 12) -> list[Fact]:
    return [
        Fact.from_dict(
            {
                "prompt": "The mother tongue of {} is",
                "subject": f"Ada {chr(65 + number)}",
                "target_new": WORDS[number % 3],
                "target_true": WORDS[3 + number % 3],
                "paraphrases": [f"Ada {chr(65 + number)} speaks"],
                "neighbors": [{"prompt": "The capital of Japan is", "target_true": "Tokyo"}],
            }
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    lm = tiny("llama")
    folder = tmp_path_factory.mktemp("tuning")
    hashes = [content_hash(lm.weight(layer)) for layer in range(lm.num_layers)]
    stages: list[str] = []
    found = tune(
        lm, probes(), CORPUS, folder / "targets", minutes=0.05, steps=3, most_perplexity=100.0,
        changed=lambda tuning, stage: stages.append(stage),
    )  # fmt: skip
    assert hashes == [content_hash(lm.weight(layer)) for layer in range(lm.num_layers)]
    assert list(dict.fromkeys(stages)) == [
        "value optimization",
        "layers and weights",
        "text for the statistics",
        "check",
    ]
    write_outputs(folder, found)
    return lm, found, folder


def test_the_preset_has_a_row_for_every_method_and_can_be_read_again(searched: tuple[Any, Any, Path]) -> None:
    lm, found, folder = searched
    preset = load_preset(folder / "preset.yaml")
    assert preset == found.preset
    assert set(preset.methods) == set(METHODS)
    assert tuple(preset.critical_layers) == found.chosen.critical_layers
    assert preset.match.fits(lm.config)
    assert preset.corpus_tokens == found.tokens


def test_an_editor_takes_the_preset_and_its_settings_are_those_of_the_trial(searched: tuple[Any, Any, Path]) -> None:
    lm, found, folder = searched
    editor = Editor(lm, preset=folder / "preset.yaml", corpus=CORPUS, progress=False)
    assert editor.critical_layers == found.chosen.critical_layers
    settings = dict(found.chosen.target)
    assert editor.method.target.steps == settings["target.steps"] == 3
    (_, checked), *_ = found.checked
    assert editor.method.solver.weight == pytest.approx(checked.settings["solver.weight"], rel=0.01)
    editor.edit(probes()[:2])
    editor.undo()


def test_facts_kept_aside_are_not_among_those_searched_on(searched: tuple[Any, Any, Path]) -> None:
    _, found, _ = searched
    assert found.trials[-1].facts <= 8
    assert {trial.facts for _, trial in found.checked} == {4}


def test_the_evidence_is_json_with_every_trial(searched: tuple[Any, Any, Path]) -> None:
    _, found, folder = searched
    record = json.loads((folder / "tuning.json").read_text("utf-8"))
    assert len(record["trials"]) == len(found.trials)
    assert record["corpus_tokens"] == found.tokens


def test_a_trial_measures_the_edit_that_an_editor_makes(tmp_path: Path) -> None:
    lm, facts = tiny("llama"), probes(3)
    bench = Workbench(lm, "memit-blue", CORPUS, facts, tmp_path)
    candidate = Candidate((1, 2), (("target.steps", 3), ("target.learning_rate", 0.5)), 0.9)
    trial = bench.measure(candidate, facts, 10 * lm.d_key)
    assert trial.error is None
    editor = Editor(
        lm, method="memit-blue", critical_layers=(1, 2), corpus=CORPUS, corpus_tokens=10 * lm.d_key,
        settings=trial.settings, progress=False,
    )  # fmt: skip
    editor.edit(facts)
    summary = verify(lm, None, facts, answers=False).summary()
    editor.undo()
    assert trial.efficacy == summary["efficacy"]["after"]
    assert trial.specificity == summary["specificity"]["after"]


def test_an_edit_that_fails_is_a_trial_with_its_reason(tmp_path: Path) -> None:
    lm = tiny("llama")
    bench = Workbench(lm, "memit-blue", CORPUS, probes(3), tmp_path)
    one = probes(1)[0]
    other = Fact.from_dict({**one.to_dict(), "target_new": "Tokyo", "id": "other"})
    before = content_hash(lm.weight(1))
    trial = bench.measure(Candidate((1, 2), (("target.steps", 2),), 0.9), [one, other], 10 * lm.d_key)
    assert trial.score == 0.0
    assert trial.error
    assert content_hash(lm.weight(1)) == before


def test_too_few_probe_facts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"11 of 11 have a true object.* needs\s+12"):
        tune(tiny("llama"), probes(11), CORPUS, tmp_path)


def test_a_short_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a longer text"):
        tune(tiny("llama"), probes(), corpus_from(["Ada Lovelace works in London."]), tmp_path)


def test_a_preset_for_another_model_is_refused(tmp_path: Path) -> None:
    preset = Preset("other", Match("llama", 30, 576), [1, 2], "nowhere", methods={"memit": {}})
    save_preset(tmp_path / "other.yaml", preset)
    with pytest.raises(ValueError, match="num_hidden_layers is 30 there and 4 in the model"):
        Editor(tiny("llama"), preset=tmp_path / "other.yaml", corpus=CORPUS)


def test_a_file_that_is_no_preset_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"model": "x", "colour": 1}), "utf-8")
    with pytest.raises(ValueError, match=r"bad\.yaml"):
        load_preset(tmp_path / "bad.yaml")


def test_a_model_without_a_preset_gets_weights_from_its_own_keys(caplog: Any) -> None:
    lm, facts = tiny("llama"), probes(2)
    editor = Editor(lm, method="memit-blue", corpus=CORPUS, settings={"target.steps": 2}, progress=False)
    with caplog.at_level("INFO", logger="factpatch"):
        patch = editor.edit(facts)
    editor.undo()
    assert "derived from the keys" in caplog.text
    assert patch.settings["solver"]["weight"] == editor.method.solver.weight
    given = Editor(
        lm, method="memit-blue", corpus=CORPUS, settings={"solver.weight": 7.0, "target.steps": 2}, progress=False
    )
    given.edit(facts)
    given.undo()
    assert given.method.solver.weight == 7.0
