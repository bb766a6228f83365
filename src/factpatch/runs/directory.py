"""The directory of a run: what is in it, and that it is this run's.

run.json                     the configuration, versions, threads, digests of the facts
facts/DATASET.SEED.json      the facts, in the order in which they are edited
unedited/DATASET/SEED/       what was measured on the unedited model, shared by all methods
rows/DATASET/SEED/LABEL/     a session's directory with the patches, and what was measured on the way
targets/                     value targets that methods share
log.txt                      what happened when
lock                         held by the process that works there
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from factpatch.data import load_facts, save_facts
from factpatch.editor import library_versions
from factpatch.evaluation.rows import fact_names
from factpatch.facts import Fact, check_batch
from factpatch.files import file_digest, is_draft, plain, remove_drafts, write_json
from factpatch.runs.config import ConfigError, DatasetConfig, MethodConfig, RunConfig, config_from
from factpatch.settings import difference

FORMAT = 1
_ABOUT, _LOCK = "run.json", "lock"


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


def _facts_file(dataset: DatasetConfig, seed: int) -> str:
    """The name of the file that holds the facts of a dataset as they are edited with a seed."""
    return f"{dataset.name}.{seed}.json"


class RunDirectory:
    """A run's directory, made by `create` or found by `open`.

    Attributes:
        config: What the run edits and measures.
        about: All of run.json.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / _ABOUT
        try:
            self.about: dict[str, Any] = json.loads(file.read_text("utf-8"))
            newer = self.about["format"] > FORMAT
            self.config = config_from(self.about["config"], str(file))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.path}: is not the directory of a run: it has no {_ABOUT}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: cannot be read ({error}). Restore it from a copy.") from error
        if newer:
            raise RunError(f"{file}: is of format {self.about['format']}, which a newer factpatch wrote; upgrade it.")

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
            facts = _all_facts(config)
            path.mkdir(parents=True, exist_ok=True)
            with locked(path):
                if not (path / _ABOUT).is_file():  # else another process came first
                    _begin(path, config, facts)
        found = cls(path)
        # Both by this factpatch: an older one knew fewer fields.
        differing = difference(_dump(found.config), _dump(config))
        if differing is not None:
            raise RunError(
                f"{path}: holds a run with other settings: {differing}. Choose another directory, or run it with "
                "its own configuration."
            )
        return found

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
        file = self.path / "facts" / _facts_file(dataset, seed)
        if not file.is_file() or file_digest(file) != self.about["facts"].get(file.name):
            raise RunError(f"{file}: is missing or was altered after the run began; restore it from a copy.")
        return tuple(load_facts(file))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of a run's directory while the block runs; a process that dies lets go.

    Raises:
        RunError: Another process is at work there.
    """
    lock = FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunError(f"{path}: another process is at work on this run; wait for it.") from None
    try:
        yield
    finally:
        lock.release()


def _begin(path: Path, config: RunConfig, facts: Mapping[str, Sequence[Fact]]) -> None:
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
        "versions": library_versions("numpy"),  # which draws the texts
        "machine": platform.platform(),
        # Sums are rounded in another order on another number of threads: a run keeps to the one it began with.
        "threads": torch.get_num_threads(),
    }
    write_json(path / _ABOUT, record)


def _all_facts(config: RunConfig) -> dict[str, list[Fact]]:
    """The facts of every dataset and seed, by the name of the file that will hold them."""
    found = {}
    for dataset in config.datasets:
        there = _load(dataset)
        for seed in config.seeds:
            chosen = random.Random(seed).sample(there, dataset.limit or len(there)) if dataset.sample else there
            facts = chosen[: dataset.limit]
            _check_batches(dataset, facts, dataset.batch_size or config.batch_size)
            found[_facts_file(dataset, seed)] = facts
    return found


def _load(dataset: DatasetConfig) -> list[Fact]:
    """The facts that may be edited, at least as many as are asked for."""
    try:
        facts = load_facts(dataset.facts, skip_unusable=dataset.skip_unusable)[dataset.skip :]
    except (OSError, ValueError) as error:
        raise ConfigError(f"datasets: {dataset.name}: {error}") from error
    if dataset.distinct:
        facts = list({fact.text: fact for fact in reversed(facts)}.values())[::-1]
    if len(facts) < (dataset.limit or 1):
        raise ConfigError(
            f"datasets: {dataset.name}: {dataset.facts} has {len(facts)} facts behind the first {dataset.skip}, and "
            f"{dataset.limit or 1} are asked for; lower `limit` or `skip`."
        )
    return facts


def _check_batches(dataset: DatasetConfig, facts: Sequence[Fact], size: int) -> None:
    """Raise ConfigError if a batch cannot be edited, or two facts cannot be told apart."""
    try:
        fact_names(facts)
        for start in range(0, len(facts), size):
            check_batch(facts[start : start + size])
    except ValueError as error:
        raise ConfigError(
            f"datasets: {dataset.name}: {error} `distinct: true` leaves out facts that ask what an earlier one asks."
        ) from error


def _dump(config: RunConfig) -> dict[str, Any]:
    dumped: dict[str, Any] = plain(config.model_dump(mode="json"))
    return dumped


def _not_ours(path: Path) -> Iterator[Path]:
    """What is there besides what a process that was killed had begun to set down."""
    return (item for item in path.iterdir() if item.name not in ("facts", _LOCK) and not is_draft(item))
