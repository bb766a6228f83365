"""The search on a tiny model: it ends with a preset that an editor takes, and leaves the model as it was."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tests.models import SENTENCES, tiny, tiny_model, tiny_tokenizer

from factpatch import Editor, Fact, verify
from factpatch.evaluation.readings import Answer
from factpatch.lab.tuning import Candidate, Trial, Tuning, Workbench, search, tune
from factpatch.lab.tuning.candidates import SHARES
from factpatch.lab.tuning.directory import preset_from
from factpatch.lab.tuning.targets import CLAMPS, LEARNING_RATES, attempts, usual_settings
from factpatch.methods import METHODS
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import content_hash
from factpatch.presets.preset import Match, Preset, load_preset, preset_for, save_preset
from factpatch.statistics.corpus import corpus_from
from factpatch.strategies import NullSpace
from factpatch.support.files import plain
from factpatch.values.contexts import ASKED

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


QUICK: dict[str, Any] = {"layers": [(1, 2)], "minutes": 60.0, "steps": 3, "most_perplexity": 100.0}
"""One window, two target settings, three shares: six candidates, and time for all."""


@dataclass
class Searched:
    """A search of a tiny model, and what was measured in it."""

    lm: LanguageModel
    found: Tuning
    folder: Path
    measured: list[tuple[Candidate, frozenset[str]]]
    """The subjects of every trial."""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    lm = tiny("llama")
    folder = tmp_path_factory.mktemp("tuning") / "tuned"
    hashes = [content_hash(lm.weight(layer)) for layer in range(lm.num_layers)]
    stages: list[str] = []
    measured: list[tuple[Candidate, frozenset[str]]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTPATCH_CACHE", str(folder.parent / "cache"))
        record_trials(patched, measured)
        found = tune(
            lm, probes(), CORPUS, folder, changed=lambda tuning, stage: stages.append(stage), **QUICK
        )  # fmt: skip
    assert hashes == [content_hash(lm.weight(layer)) for layer in range(lm.num_layers)]
    assert list(dict.fromkeys(stages)) == [
        "value optimization",
        "layers and weights",
        "text for the statistics",
        "check",
    ]
    return Searched(lm, found, folder, measured)


def record_trials(patched: pytest.MonkeyPatch, measured: list[tuple[Candidate, frozenset[str]]]) -> None:
    """Record the subjects of every trial that is made."""
    measure = Workbench.measure

    def recorded(self: Workbench, candidate: Candidate, facts: Sequence[Fact], tokens: int) -> Trial:
        measured.append((candidate, frozenset(fact.subject for fact in facts)))
        return measure(self, candidate, facts, tokens)

    patched.setattr(Workbench, "measure", recorded)


def test_the_preset_has_a_row_for_every_method_and_can_be_read_again(searched: Searched) -> None:
    lm, found, folder = searched.lm, searched.found, searched.folder
    assert found.chosen is not None
    preset = load_preset(folder / "preset.yaml")
    assert preset == found.preset
    assert set(preset.methods) == set(METHODS)
    assert tuple(preset.critical_layers) == found.chosen.critical_layers
    assert preset.match.fits(lm.config)
    assert preset.corpus_tokens == found.tokens
    assert not preset.shipped_corpus  # the text was another one


def test_an_editor_takes_the_preset_and_its_settings_are_those_of_the_trial(searched: Searched) -> None:
    lm, found, folder = searched.lm, searched.found, searched.folder
    assert found.chosen is not None
    editor = Editor(lm, preset=folder / "preset.yaml", corpus=CORPUS, progress=False)
    assert editor.critical_layers == found.chosen.critical_layers
    settings = dict(found.chosen.target)
    assert editor.method.target.steps == settings["target.steps"] == 3
    (_, checked), *_ = found.checked
    assert editor.method.solver.weight == pytest.approx(checked.settings["solver.weight"], rel=0.01)
    editor.edit(probes()[:2])
    editor.undo()


def test_facts_kept_aside_are_not_among_those_searched_on(searched: Searched) -> None:
    found = searched.found
    assert [what for what, _ in found.checked] == ["chosen", "without a search"]
    assert {trial.facts for _, trial in found.checked} == {4}
    aside = searched.measured[-1][1]
    assert len(aside) == 4
    on_searched = [subjects for _, subjects in searched.measured if subjects != aside]
    assert len(on_searched) >= len(found.trials)
    assert len(frozenset.union(*on_searched)) == found.facts == 8
    assert all(aside.isdisjoint(subjects) for subjects in on_searched)


def test_the_usual_settings_are_the_first_of_every_choice(searched: Searched) -> None:
    _, usual = searched.found.checked[1]
    # The order counts: trials are kept by it, also those of earlier versions.
    rates = {"target.learning_rate": LEARNING_RATES[0], "target.clamp": CLAMPS[0], "target.steps": 3}
    assert usual.candidate == Candidate((1, 2), tuple(rates.items()), SHARES[0])


def test_the_evidence_is_json_with_every_trial_and_its_conditions(searched: Searched) -> None:
    found = searched.found
    record = json.loads((searched.folder / "tuning.json").read_text("utf-8"))
    assert len(record["trials"]) == len(found.trials)
    assert record["corpus_tokens"] == found.tokens
    assert (record["tried"], record["candidates"]) == (6, 6)
    assert record["about"]["corpus"] == CORPUS.identity
    assert record["about"]["facts"]["count"] == 12
    assert "Candidates tried: 6 of 6." in (searched.folder / "preset.yaml").read_text("utf-8")


def test_a_model_with_a_chat_template_is_read_and_asked_in_chats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))
    lm = LanguageModel(tiny_model("llama", chat=True), tiny_tokenizer(chat=True))
    found = tune(lm, probes(), CORPUS, tmp_path / "tuned", **{**QUICK, "minutes": 0.0})
    (_, checked), *_ = found.checked
    assert checked.said is not None
    assert f", said {checked.said:.1f})" in (tmp_path / "tuned" / "preset.yaml").read_text("utf-8")
    editor = Editor(lm, preset=tmp_path / "tuned" / "preset.yaml", corpus=CORPUS, progress=False)
    target = editor.method.optimized
    assert (target.contexts, target.shortest, target.stride, target.steps) == (ASKED, True, 0.3, 3)
    assert len(editor.contexts) == 4
    assert Trial.from_dict(json.loads(json.dumps(checked.to_dict()))) == checked
    given = replace(checked, efficacy=90.0, generalization=90.0, specificity=90.0, said=30.0)
    assert (given.score, replace(given, said=None).score) == (pytest.approx(60), pytest.approx(90))


def test_what_is_said_is_the_share_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(lm: Any, facts: Sequence[Fact], only: Sequence[str]) -> list[tuple[Answer, ...]]:
        assert tuple(only) == ("question", "chat")
        right, wrong = (Answer("question", "?", fact.target_new) for fact in facts), Answer("chat", "?", "Nothing.")
        return [(one, wrong) for one in right]

    monkeypatch.setattr("factpatch.lab.tuning.trial.answers", answered)
    lm = LanguageModel(tiny_model("llama", chat=True), tiny_tokenizer(chat=True))
    row = METHODS["memit-blue"]
    bench = Workbench(lm, replace(row, target=replace(row.optimized, contexts=ASKED)), CORPUS, probes(2))
    assert bench.said(probes(12)) == pytest.approx(50)
    assert Workbench(lm, row, CORPUS, probes(2), contexts=["{}"]).said(probes(2)) is None


def test_a_repeated_search_measures_nothing_again(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(searched.folder.parent / "cache"))
    measured: list[tuple[Candidate, frozenset[str]]] = []
    record_trials(monkeypatch, measured)
    again = tune(searched.lm, probes(), CORPUS, searched.folder, **QUICK)
    assert measured == []
    assert again.trials == searched.found.trials
    assert again.checked == searched.found.checked
    assert again.preset == searched.found.preset
    with pytest.raises(ValueError, match="holds a search with other settings: seed is 0 there and 1 here"):
        tune(searched.lm, probes(), CORPUS, searched.folder, seed=1, **QUICK)


def test_a_search_that_begins_anew_keeps_a_preset_and_its_evidence_together(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(searched.folder.parent / "cache"))
    before = {name: (searched.folder / name).read_bytes() for name in ("preset.yaml", "tuning.json")}

    def interrupted(tuning: Tuning, stage: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(searched.lm, probes(), CORPUS, searched.folder, changed=interrupted, **QUICK)
    assert before == {name: (searched.folder / name).read_bytes() for name in before}


def test_without_time_only_what_a_preset_requires_is_measured(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(searched.folder.parent / "cache"))
    found = tune(searched.lm, probes(), CORPUS, tmp_path / "tuned", **{**QUICK, "minutes": 0.0})
    assert [len(made) for made in (found.attempts, found.trials, found.statistics, found.checked)] == [1, 1, 1, 1]
    assert (found.tried, found.candidates) == (1, 3)
    assert "the time sufficed for 1 of 3 candidates" in caplog.text
    assert found.preset is not None
    assert "1 of 3 candidates tried" in found.preset.source


def test_facts_that_cannot_be_used_are_left_out_before_the_facts_are_split(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FACTPATCH_CACHE", str(searched.folder.parent / "cache"))
    again = replace(probes()[0], target_new="Tokyo", id="again")
    long = replace(probes()[1], subject="Ada " * 400, id="long")
    near = replace(probes(13)[12], paraphrases=("Ada " * 400,), id="near")
    found = tune(searched.lm, [again, *probes(), long, near], CORPUS, tmp_path / "tuned", **{**QUICK, "minutes": 0.0})
    assert {trial.error for trial in found.trials} == {None}
    (_, checked), *_ = found.checked
    assert (checked.facts, checked.error) == (4, None)
    assert caplog.text.count("left out: ") == 3
    with pytest.raises(ValueError, match="11 of 13 can be edited and asked; a search needs at least 12"):
        tune(searched.lm, [*probes(11), long, near], CORPUS, tmp_path / "other", **QUICK)
    assert not (tmp_path / "other").exists()


def test_an_attempt_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def optimize(lm: Any, facts: Any, layer: int, target: Any, contexts: Any) -> Any:
        if target.learning_rate == 1.0:
            raise FloatingPointError("the loss is not finite")
        return SimpleNamespace(loss=torch.tensor([target.learning_rate + 1]), evaluations=torch.tensor([3]))

    bench: Any = SimpleNamespace(lm=None, method=METHODS["memit-blue"], contexts=(), optimize=optimize)
    found = attempts(bench, (1,), probes(2), 3, math.inf)
    assert [made.settings["target.learning_rate"] for made in found] == [0.1, 0.25, 0.5]
    assert (
        "target.learning_rate=1.0, target.clamp=0.75, target.steps=3 is left out: the loss is not finite" in caplog.text
    )


def test_an_edit_after_which_perplexity_is_not_a_number_is_a_failed_trial(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Workbench(searched.lm, "memit-blue", CORPUS, probes(2), contexts=("{}",))
    monkeypatch.setattr("factpatch.lab.tuning.trial.perplexity", lambda *given: math.nan)
    settings = tuple(usual_settings(bench.method, 2).items())
    trial = bench.measure(Candidate((1, 2), settings, 0.75), probes(2), 640)
    assert (trial.error, trial.perplexity) == ("perplexity is not a number", math.inf)


def test_excluded_subjects_are_not_probed_in_whatever_case() -> None:
    mine = [replace(fact, subject=fact.subject.upper()) for fact in probes(2)]
    left = search.probes(probes(14), mine)
    assert [fact.subject for fact in left] == [fact.subject for fact in probes(14)[2:]]
    with pytest.raises(ValueError, match=r"0 of 2 have .* and are not excluded \(2 are\)"):
        search.probes(probes(2), mine)


def test_a_model_that_the_shipped_text_is_not_meant_for_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus=None: .* needs a text for its statistics"):
        tune(tiny("llama"), probes(), None, tmp_path / "tuned")


def test_a_preset_says_that_the_shipped_text_is_good_enough_if_it_was_used(
    searched: Searched, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, chosen = searched.lm, searched.found.chosen
    assert chosen is not None
    bench = Workbench(lm, "memit-blue", CORPUS, probes(3))
    bench.read(range(lm.num_layers), 640)
    known = replace(preset_for(lm), shipped_corpus=True)
    shipped: list[bool] = []
    for corpus, preset in ((CORPUS, known), (corpus_from(None), known), (corpus_from(None), preset_for(lm))):
        monkeypatch.setattr("factpatch.lab.tuning.directory.preset_for", lambda lm, preset=preset: preset)
        bench.corpus = corpus
        shipped.append(preset_from(bench, chosen, 640, "here").shipped_corpus)
    assert shipped == [False, True, False]


def test_methods_with_the_same_solver_and_layers_look_at_their_spectra_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Workbench(tiny("llama"), "memit-blue", CORPUS, probes(3))
    asked: list[tuple[NullSpace, int]] = []
    scaled = NullSpace.scaled

    def counted(solver: NullSpace, moments: Any, *rest: Any) -> NullSpace:
        asked.append((solver, len(moments)))
        return scaled(solver, moments, *rest)

    monkeypatch.setattr(NullSpace, "scaled", counted)
    rows = preset_from(bench, Candidate((1, 2, 3), (), 0.75), 640, "here").methods
    assert sorted(count for _, count in asked) == [2, 3]  # with BLUE and without it
    assert rows["alphaedit"] == rows["alphaedit-sphere"]
    assert rows["alphaedit"] != rows["alphaedit-blue"]


def test_a_trial_measures_the_edit_that_an_editor_makes() -> None:
    lm, facts = tiny("llama"), probes(3)
    bench = Workbench(lm, "memit-blue", CORPUS, facts)
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


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("memory does not suffice"),
        torch.linalg.LinAlgError("did not converge"),
        FloatingPointError("NaN"),
    ],
)
@pytest.mark.parametrize("stage", ["resolve", "_edited"])
def test_the_error_of_an_edit_is_the_reason_of_its_trial(
    error: Exception, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("llama")
    bench = Workbench(lm, "memit-blue", CORPUS, probes(2))

    def failing(*given: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(bench, stage, failing)
    trial = bench.measure(Candidate((1, 2), (("target.steps", 2),), 0.9), probes(2), 10 * lm.d_key)
    assert (trial.error, trial.score) == (str(error), 0.0)


def test_a_trial_is_read_as_it_was_written(searched: Searched) -> None:
    for trial in (searched.found.trials[0], replace(searched.found.trials[0], perplexity=math.inf)):
        assert Trial.from_dict(json.loads(json.dumps(plain(trial.to_dict())))) == trial


def test_an_edit_that_fails_is_a_trial_with_its_reason() -> None:
    lm = tiny("llama")
    bench = Workbench(lm, "memit-blue", CORPUS, probes(3))
    one = probes(1)[0]
    other = Fact.from_dict({**one.to_dict(), "target_new": "Tokyo", "id": "other"})
    before = content_hash(lm.weight(1))
    trial = bench.measure(Candidate((1, 2), (("target.steps", 2),), 0.9), [one, other], 10 * lm.d_key)
    assert trial.score == 0.0
    assert trial.error
    assert content_hash(lm.weight(1)) == before


def test_too_few_probe_facts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"11 of 11 have a true object.* needs at least\s+12"):
        tune(tiny("llama"), probes(11), CORPUS, tmp_path / "tuned")


def test_long_answers_and_objects_that_are_true_measure_nothing(tmp_path: Path) -> None:
    given = probes(13)
    given[0] = replace(given[0], target_new="a tale told again " * 8)
    given[1] = replace(given[1], target_true=given[1].target_new)
    with pytest.raises(ValueError, match=r"11 of 13 have a true object other than the new one, no long answer"):
        tune(tiny("llama"), given, CORPUS, tmp_path / "tuned")


def test_a_short_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give a longer text"):
        tune(tiny("llama"), probes(), corpus_from(["Ada Lovelace works in London."]), tmp_path / "tuned")


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
