"""The directory of a run: what is in it, and that it is this run's.

run.json                     the configuration, versions, threads; digests of the facts, the inputs and the weights
facts/DATASET.SEED.json      the facts, in the order in which they are edited
unedited/DATASET/SEED/       what was measured on the unedited model, shared by all methods
rows/DATASET/SEED/LABEL/     a session's directory with the patches, and what was measured on the way
targets/                     value targets that methods share
log.txt                      what happened when
lock                         held by the process that works there
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from factpatch.data import load_facts, save_facts
from factpatch.facts import Fact
from factpatch.lab.runs.config import DatasetConfig, MethodConfig, RunConfig, config_from
from factpatch.lab.runs.inputs import facts_file, identities, select_facts
from factpatch.support.directory import LOCK, alone, read_record
from factpatch.support.files import file_digest, is_draft, plain, remove_drafts, write_json
from factpatch.support.versions import library_versions
from factpatch.support.words import difference

FORMAT = 1
_ABOUT = "run.json"


class RunError(ValueError):
    """A run's directory cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """One line of a run's table: a method on facts, with a seed."""

    method: MethodConfig
    dataset: DatasetConfig
    seed: int
    facts: tuple[Fact, ...]
    batch_size: int
    directory: Path
    """Where its session and its measurements are."""
    unedited: Path
    """Where the measurements of the unedited model are."""

    @property
    def batches(self) -> list[tuple[Fact, ...]]:
        size = self.batch_size
        return [self.facts[start : start + size] for start in range(0, len(self.facts), size)]

    @property
    def name(self) -> str:
        return f"{self.method.label} on {self.dataset.name}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether everything is edited and measured."""
        return (self.directory / "row.json").is_file()


class RunDirectory:
    """A run's directory, made by `create` or found by `open`.

    Attributes:
        config: What the run edits and measures.
        about: All of run.json.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / _ABOUT
        self.about = read_record(file, FORMAT, "a run", RunError)
        try:
            self.config = config_from(self.about["config"], str(file))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: cannot be read ({error}). Restore it from a copy.") from error

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> RunDirectory:
        """Begin a run in a new or empty directory, or find the run that was begun there with this configuration.

        Raises:
            RunError: The directory holds another run, or something else.
            ConfigError: The facts cannot be read.
        """
        path = Path(path)
        if not (path / _ABOUT).is_file():
            if path.exists() and (not path.is_dir() or any(_not_ours(path))):
                raise RunError(f"{path}: is not empty and holds no run; choose another directory.")
            facts, inputs = select_facts(config), identities(config)
            path.mkdir(parents=True, exist_ok=True)
            with locked(path):
                if not (path / _ABOUT).is_file():  # else another process came first
                    _begin(path, config, facts, inputs)
        found = cls(path)
        found._take(config)
        return found

    def _take(self, config: RunConfig) -> None:
        """Let a configuration say where files now are, if it is this run's; their contents are what counts."""
        # Dumped by this factpatch: an older one knew fewer fields.
        mine, its = _dump(self.config), _dump(config)
        if "inputs" in self.about:
            differing = difference(_without_places(mine), _without_places(its))
            if differing is None and mine != its:
                mine = {**self.about["inputs"], **{name: _digest(self._facts_in(name)) for name in self.about["facts"]}}
                its = {**identities(config), **{name: _digest(facts) for name, facts in select_facts(config).items()}}
                differing = difference(mine, its)
        else:
            differing = difference(mine, its)
        if differing is not None:
            raise RunError(
                f"{self.path}: holds a run with other settings: {differing}. Choose another directory, or run it with "
                "its own configuration."
            )
        self.config = config

    def check_alike(self, other_versions: bool = False) -> None:
        """See to it that the rest of the run is measured with what its beginning was. Call it inside `locked`.

        Args:
            other_versions: Go on with other versions of what numbers depend on, and take note of them in run.json.

        Raises:
            RunError: Inputs or versions are others.
            ConfigError: An input cannot be read.
        """
        if "inputs" in self.about:
            differing = difference(self.about["inputs"], identities(self.config))
            if differing is not None:
                raise RunError(
                    f"{self.path}: its inputs are not what they were when the run began: {differing}. Put them back, "
                    "or begin a run in another directory."
                )
        versions = _versions()
        known = [self.about["versions"], *self.about.get("later_versions", [])]
        # An older factpatch wrote fewer of them down.
        if any(all(versions.get(name) == then[name] for name in then) for then in known):
            return
        if not other_versions:
            differing = difference(known[-1], {name: versions.get(name) for name in known[-1]})
            raise RunError(
                f"{self.path}: was begun with other versions: {differing}. Numbers may differ: install those, or go on "
                "with --other-versions."
            )
        self.about["later_versions"] = [*known[1:], versions]
        write_json(self.path / _ABOUT, self.about)

    def check_model(self, weights: str) -> None:
        """Raise RunError unless the model is the one that the run began with. Call it inside `locked`.

        Args:
            weights: `model_hash` of the unedited model.
        """
        if "weights" not in self.about:
            self.about["weights"] = weights
            write_json(self.path / _ABOUT, self.about)
        elif self.about["weights"] != weights:
            raise RunError(
                f"{self.path}: {self.config.model} has other weights than when the run began; go on with those, or "
                "begin a run in another directory."
            )

    def plans(self) -> Iterator[Plan]:
        """Every line of the table, in the order in which they are edited."""
        for dataset in self.config.datasets:
            for seed in self.config.seeds:
                facts = self.facts(dataset, seed)
                for method in self.config.methods:
                    yield Plan(
                        method,
                        dataset,
                        seed,
                        facts,
                        dataset.batch_size or self.config.batch_size,
                        self.path / "rows" / dataset.name / str(seed) / method.label,
                        self.path / "unedited" / dataset.name / str(seed),
                    )

    def facts(self, dataset: DatasetConfig, seed: int) -> tuple[Fact, ...]:
        """The facts of one dataset as this run edits them.

        Raises:
            RunError: Their file was altered.
        """
        return self._facts_in(facts_file(dataset, seed))

    def _facts_in(self, name: str) -> tuple[Fact, ...]:
        file = self.path / "facts" / name
        if not file.is_file() or file_digest(file) != self.about["facts"].get(file.name):
            raise RunError(f"{file}: is missing or was altered after the run began; restore it from a copy.")
        return tuple(load_facts(file))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a run's directory while the block runs; a process that dies lets go.

    Raises:
        RunError: Another process is at work there.
    """
    with alone(path, RunError(f"{path}: another process is at work on this run; wait for it.")):
        yield


def _begin(path: Path, config: RunConfig, facts: Mapping[str, Sequence[Fact]], inputs: Mapping[str, str]) -> None:
    """Write what a run is; run.json comes last and says that the rest is there."""
    (path / "facts").mkdir(exist_ok=True)
    for folder in (path, path / "facts"):
        remove_drafts(folder)
    for name, some in facts.items():
        save_facts(some, path / "facts" / name)
    record = {
        "format": FORMAT,
        "config": _dump(config),
        "facts": {name: file_digest(path / "facts" / name) for name in facts},
        "inputs": dict(inputs),
        "versions": _versions(),
        "machine": platform.platform(),
        # Sums are rounded in another order on another number of threads: a run keeps to the one it began with.
        "threads": torch.get_num_threads(),
    }
    write_json(path / _ABOUT, record)


def _digest(facts: Iterable[Fact]) -> str:
    return hashlib.sha256(json.dumps([fact.to_dict() for fact in facts]).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return library_versions("numpy")  # which draws the texts


def _dump(config: RunConfig) -> dict[str, Any]:
    dumped: dict[str, Any] = plain(config.model_dump(mode="json"))
    return dumped


def _without_places(record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run without where its inputs are, which are known by their contents."""

    def without(section: Mapping[str, Any] | None, place: str) -> dict[str, Any] | None:
        return None if section is None else {name: value for name, value in section.items() if name != place}

    evaluate = record["evaluate"]
    sections = {"text": "references", "capability": "data", "drift": "prompts"}
    return {
        **record,
        "corpus": None,
        "preset": None,
        "datasets": [without(dataset, "facts") for dataset in record["datasets"]],
        "evaluate": {
            **evaluate,
            "perplexity": None,
            **{name: without(evaluate[name], place) for name, place in sections.items()},
        },
    }


def _not_ours(path: Path) -> Iterator[Path]:
    """What is there besides what a process that was killed had begun to set down."""
    return (item for item in path.iterdir() if item.name not in ("facts", LOCK) and not is_draft(item))
