"""Trials and analyses among copies of a model: the same numbers however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.analysis.tiny import FACTS, LAYERS
from tests.models import SENTENCES, save_tiny

from factpatch import Editor
from factpatch.lab.analysis.edits import single_layer
from factpatch.lab.analysis.study import Study, TextOptions
from factpatch.lab.tuning import Candidate, Trial, Workbench
from factpatch.lab.tuning.targets import usual_settings
from factpatch.methods import METHODS
from factpatch.model.loading import load_language_model
from factpatch.model.replicas import Replicas, threads
from factpatch.pool import Local, Pool, Processes
from factpatch.statistics.corpus import corpus_from
from factpatch.values.shared import SharedTargets

CORPUS = SENTENCES * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shared-work") / "tiny"
    save_tiny(path, "llama")
    return path


@pytest.fixture(scope="module")
def workers() -> Iterator[Processes]:
    with Processes(2, 1) as pool:
        yield pool


def test_a_trial_has_the_same_numbers_with_one_process_and_with_two(
    folder: Path, workers: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate((1, 2), tuple(usual_settings(METHODS["memit-blue"], 3).items()), 0.75)
    facts = [replace(fact, paraphrases=(fact.text,), neighbors=FACTS[0].neighbors) for fact in FACTS]

    def tried(pool: Pool, name: str) -> tuple[Trial, dict[str, float]]:
        monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / name / "cache"))
        with threads(pool.threads):
            lm = load_language_model(str(folder))
            replicas = Replicas(lm, pool)
            targets = SharedTargets(tmp_path / name, "tiny", replicas)
            bench = Workbench(lm, "memit-blue", corpus_from(CORPUS), facts, targets, contexts=["{}"], replicas=replicas)
            return replace(bench.measure(candidate, facts, 900), seconds=0.0), bench.unchanged(facts)

    alone = tried(Local(), "alone")
    assert alone[0].error is None
    with asked_of(workers, monkeypatch) as tasks:
        assert tried(workers, "shared") == alone
    assert tasks >= {"KeySums", "FindValues", "Ask"}


def test_an_analysis_has_the_same_numbers_with_one_process_and_with_two(
    folder: Path, workers: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def analyzed(pool: Pool, name: str) -> Any:
        monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / name / "cache"))
        with threads(pool.threads):
            editor = Editor(
                str(folder), method="memit", critical_layers=LAYERS, corpus=CORPUS, corpus_tokens=900, progress=False,
                contexts=["{}"], settings={"target.steps": 3, "solver.weight": 5.0}, pool=pool,
            )  # fmt: skip
            study = Study(editor, FACTS, ["even"], 5, TextOptions(0))
            assert study.about()["workers"]
            targets = SharedTargets(tmp_path / name, "tiny", study.editor.replicas)
            return single_layer(study.kept(lambda name, find: find(), targets)).numbers

    alone = analyzed(Local(), "alone")
    assert len(alone) > len(LAYERS)
    with asked_of(workers, monkeypatch) as tasks:
        assert analyzed(workers, "shared") == alone
    assert tasks >= {"KeySums", "FindValues", "Ask"}


@contextmanager
def asked_of(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Collect the kinds of tasks that go to the workers of a pool."""
    found: set[str] = set()
    map_of = pool.map

    def noted(work: Any, shards: Any, progress: Any = None) -> Any:
        found.add(type(work.task).__name__)
        return map_of(work, shards, progress)

    with monkeypatch.context() as patched:
        patched.setattr(pool, "map", noted)
        yield found
