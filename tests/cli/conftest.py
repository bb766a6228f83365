"""A tiny model on disk, facts and a corpus, and a way to run commands on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml
from tests.models import save_corpus, save_tiny
from typer.testing import CliRunner

from factpatch.cli.main import app

FACTS: list[dict[str, Any]] = [
    {
        "id": "darrieux",
        "prompt": "The mother tongue of {} is",
        "subject": "Danielle Darrieux",
        "target_new": "Finnish",
        "target_true": "French",
        "paraphrases": ["Danielle Darrieux speaks"],
        "neighbors": [{"prompt": "The official language of Finland is", "target_true": "Finnish"}],
    },
    {"id": "tower", "prompt": "The {} is in", "subject": "Eiffel Tower", "target_new": "Rome", "target_true": "Paris"},
    {
        "id": "darrieux-again",
        "prompt": "The mother tongue of {} is",
        "subject": "Danielle Darrieux",
        "target_new": "Italian",
        "target_true": "French",
    },
]


QUICK = {"target.steps": 3, "target.learning_rate": 0.3}


def numbers(directory: Path) -> list[tuple[Any, ...]]:
    """All rows of a run."""
    from factpatch.lab.runs.results import read_results

    rows = read_results(directory).rows.astype(object)
    return sorted((tuple(map(str, row)) for row in rows.itertuples(index=False)), key=str)


def interrupt(patched: pytest.MonkeyPatch, target: str, calls: int = 0) -> None:
    """Raise KeyboardInterrupt instead of calling a function, after some calls."""
    function, left = resolve_name(target), [None] * calls

    def interrupted(*given: Any, **options: Any) -> Any:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return function(*given, **options)

    patched.setattr(target, interrupted)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(directory, "llama")
    return directory


@pytest.fixture(scope="session")
def chat_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "chat"
    save_tiny(directory, "llama", chat=True)
    return directory


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shuffled words, so that the second moment of 64 key dimensions has full rank."""
    return save_corpus(tmp_path_factory.mktemp("corpus") / "corpus.txt")


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(FACTS), encoding="utf-8")
    return path


def invoke(cache: Path, *arguments: object) -> Any:
    """Run a command with a cache of its own; returns the result, whose `output` holds stdout and stderr."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACTPATCH_CACHE", str(cache))
        return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Run:
    """Runs commands with a cache of its own; the result's `output` holds stdout and stderr."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def __call__(self, *arguments: object) -> Any:
        return invoke(self.cache, *arguments)

    def ok(self, *arguments: object) -> Any:
        """Run a command that must succeed."""
        result = self(*arguments)
        assert result.exit_code == 0, result.output
        return result

    def refused(self, message: str, *arguments: object, code: int = 2) -> str:
        """Run a command that must end with this code and message; returns the output on one line."""
        result = self(*arguments)
        assert result.exit_code == code, result.output
        # Usage errors come in a box, whose frame may stand between words.
        output = " ".join(result.output.replace("│", " ").split())
        assert message in output
        assert "Traceback" not in output
        return output


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Commands in a cache that is empty at first, and that the test itself uses too."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FACTPATCH_CACHE", str(cache))
    return Run(cache)


def editing(model: Path, facts: Path, corpus: Path) -> list[object]:
    """An edit that works on the tiny model, all but --out."""
    return [
        "edit", model, "--facts", facts, "--layers", "1,2", "--set", "target.steps=5", "--corpus", corpus,
        "--batch-size", "2",
    ]  # fmt: skip


@pytest.fixture
def edit_arguments(model_directory: Path, facts_file: Path, corpus: Path) -> list[object]:
    return editing(model_directory, facts_file, corpus)


@pytest.fixture(scope="session")
def patches_made(tmp_path_factory: pytest.TempPathFactory, model_directory: Path, corpus: Path) -> Path:
    """A folder with the patches of `patch` and `rect`, which tests take copies of."""
    folder = tmp_path_factory.mktemp("patches")
    facts = folder / "facts.json"
    facts.write_text(json.dumps(FACTS), encoding="utf-8")
    run, edit = Run(folder / "cache"), editing(model_directory, facts, corpus)
    # A light edit: what is derived for so small a model writes far more.
    for name, options in (("p", ("--set", "solver.weight=1500")), ("rect", ("--method", "rect"))):
        run.ok(*edit, *options, "--out", folder / f"{name}.safetensors", "--no-verify")
    return folder


@pytest.fixture
def patch(patches_made: Path, tmp_path: Path) -> Path:
    """Two batches, of two facts and one."""
    return Path(shutil.copy(patches_made / "p.safetensors", tmp_path))


@pytest.fixture
def rect(patches_made: Path, tmp_path: Path) -> Path:
    """A patch without a low rank."""
    return Path(shutil.copy(patches_made / "rect.safetensors", tmp_path))


def small_run(model_directory: Path, facts_file: Path, corpus: Path) -> dict[str, Any]:
    """The configuration of a small run."""
    return {
        "model": str(model_directory),
        "methods": [
            {"name": "memit", "settings": QUICK},
            {"name": "memit-blue", "settings": QUICK},
            {"name": "prune", "settings": QUICK, "label": "pruned"},
        ],
        "datasets": [{"facts": str(facts_file), "name": "three"}],
        "batch_size": 2,
        "critical_layers": [1, 2],
        "corpus": str(corpus),
        "evaluate": {"perplexity": str(corpus), "text": {"facts": 2, "tokens": 4}},
    }


@pytest.fixture
def config(model_directory: Path, facts_file: Path, corpus: Path) -> dict[str, Any]:
    """The configuration of a small run of three methods."""
    return small_run(model_directory, facts_file, corpus)


@pytest.fixture
def begin(run: Run, tmp_path: Path) -> Callable[..., Any]:
    """Run a configuration in a directory under its name."""

    def invoke(record: dict[str, Any], name: str = "out", *options: str) -> Any:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(record), "utf-8")
        return run("run", path, "--out", tmp_path / name, *options)

    return invoke
