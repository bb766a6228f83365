"""The directory of a run.

run.json                     the configuration, versions, threads; hashes of the facts, the inputs and the weights
facts/DATASET.SEED.json      the facts, in the order in which they are edited
unedited/DATASET/SEED/       measurements of the unedited model, shared by all methods
rows/DATASET/SEED/LABEL/     a session's directory with the patches, and the measurements of its model
targets/                     value targets that methods share
at-work/DATASET/SEED/LABEL   held by the process that edits that line, which may be a worker
log.txt                      what happened when
lock                         held by the process that works there, and hands lines to workers
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from factpatch.data import save_facts, saved_facts
from factpatch.facts import Fact
from factpatch.lab.runs.config import ConfigError, RunConfig, config_from
from factpatch.lab.runs.inputs import facts_file, identities, select_facts
from factpatch.lab.runs.plan import Plan
from factpatch.recipe import RecipeError
from factpatch.support.directory import DirectoryError, KeptDirectory
from factpatch.support.files import file_digest, plain
from factpatch.support.words import difference

_PLACES = {
    "corpus": True,
    "preset": True,
    "datasets": {"__all__": {"facts"}},
    "evaluate": {"perplexity": True, "text": {"references"}, "capability": {"data"}, "drift": {"prompts"}},
}
"""The fields that say where inputs are; these are identified by their contents."""
_LEAVES_SECONDS = 60.0
"""How long a worker may take to notice that its driver was killed."""


class RunError(DirectoryError):
    """A run's directory cannot be used as asked; the message says why and what to do."""


class RunDirectory(KeptDirectory):
    """A run's directory, made or found by `create`; the constructor opens one that exists.

    Attributes:
        config: What the run edits and measures.
    """

    holds, record_name, needs, error = "a run", "run.json", ("config",), RunError
    before_record = ("facts",)
    packages = ("numpy",)  # which draws the texts

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        file = self.path / self.record_name
        try:
            self.config = config_from(self.record["config"], str(file))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: cannot be read: {error} If it was altered, restore it from a copy.") from error

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> RunDirectory:
        """Begin a run in a new or empty directory, or find the run that was begun there with this configuration.

        Raises:
            RunError: The directory holds another run, or something else.
            ConfigError: The facts cannot be read.
        """
        path = Path(path)
        if not cls.is_begun(path):
            cls.check_place(path)
            for method in (one for one in config.methods if one.rival is None):
                try:
                    config.recipe(method, config.seeds[0])
                except RecipeError as error:
                    raise ConfigError(f"{method.label}: {error}") from error
            facts, inputs = select_facts(config), identities(config)  # before a directory is made
            cls.begin(path, lambda: _begin(path, config, facts, inputs))
        found = cls(path)
        found._adopt(config)
        return found

    def _adopt(self, config: RunConfig) -> None:
        """Use a configuration of this run, which may name other places: the contents of its inputs count."""
        # Dumped by this factpatch: an older one knew fewer fields.
        mine, its = _dump(self.config), _dump(config)
        if "inputs" in self.record:
            self.check_same(_dump(self.config, _PLACES), _dump(config, _PLACES))
            if mine != its:
                known = {name: _digest(self._facts_in(name)) for name in self.record["facts"]}
                given = {name: _digest(facts) for name, facts in select_facts(config).items()}
                self.check_same({**self.record["inputs"], **known}, {**identities(config), **given})
        else:
            self.check_same(mine, its)
        self.config = config

    def check_conditions(self, other_versions: bool = False) -> None:
        """Make sure that the rest of the run is measured as its beginning was. Call it inside `locked`.

        Args:
            other_versions: Accept other versions of the libraries, and record them in run.json.

        Raises:
            RunError: The inputs or the versions have changed.
            ConfigError: An input cannot be read.
        """
        self.check_inputs()
        differing = self.other_versions()
        if differing is not None:
            if not other_versions:
                raise RunError(
                    f"{self.path}: was begun with other versions: {differing}. Numbers may differ: install those "
                    "versions, or continue with --other-versions."
                )
            self.add_versions()

    def check_inputs(self) -> None:
        """Raise RunError unless the inputs are those that the run began with; ConfigError if one cannot be read."""
        if "inputs" not in self.record:
            return
        differing = difference(self.record["inputs"], identities(self.config))
        if differing is not None:
            raise RunError(
                f"{self.path}: its inputs have changed since the run began: {differing}. Put them back, or begin "
                "a run in another directory."
            )

    @contextmanager
    def at_work(self, plan: Plan) -> Iterator[None]:
        """Keep other processes from a line while the block runs; wait for the worker of a driver that was killed.

        Raises:
            RunError: Another process does not leave the line.
        """
        lock = self.path / "at-work" / plan.directory.relative_to(self.path / "rows")
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            held.acquire(timeout=_LEAVES_SECONDS)
        except Timeout:
            raise RunError(f"{self.path}: another process is editing {plan.name}; wait for it, or end it.") from None
        try:
            yield
        finally:
            held.release()

    def check_model(self, weights: str) -> None:
        """Raise RunError unless the run began with a model of this `model_hash`. Call it inside `locked`."""
        if "weights" not in self.record:
            self.update(weights=weights)
        elif self.record["weights"] != weights:
            raise RunError(
                f"{self.path}: {self.config.model} has other weights than when the run began. Restore those, or begin "
                "a run in another directory."
            )

    def plans(self) -> Iterator[Plan]:
        """Every line of the table, in the order in which they are edited.

        Raises:
            RunError: A file of facts was altered.
        """
        for dataset, seed in product(self.config.datasets, self.config.seeds):
            facts, size = self._facts_in(facts_file(dataset, seed)), dataset.batch_size or self.config.batch_size
            folder = Path(dataset.name, str(seed))
            for method in self.config.methods:
                own, unedited = self.path / "rows" / folder / method.label, self.path / "unedited" / folder
                yield Plan(method, dataset, seed, facts, size, own, unedited)

    def _facts_in(self, name: str) -> tuple[Fact, ...]:
        file = self.path / "facts" / name
        if not file.is_file() or file_digest(file) != self.record["facts"].get(file.name):
            raise RunError(f"{file}: is missing or was altered after the run began; restore it from a copy.")
        return tuple(saved_facts(file))


def _begin(
    path: Path, config: RunConfig, facts: Mapping[str, Sequence[Fact]], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """Write the facts of a run, and return its record."""
    (path / "facts").mkdir(exist_ok=True)
    for name, some in facts.items():
        save_facts(some, path / "facts" / name)
    return {
        "config": _dump(config),
        "facts": {name: file_digest(path / "facts" / name) for name in facts},
        "inputs": dict(inputs),
        "machine": platform.platform(),
        # Sums are rounded in another order on another number of threads: a run keeps to the one it began with.
        "threads": torch.get_num_threads(),
    }


def _digest(facts: Iterable[Fact]) -> str:
    return hashlib.sha256(json.dumps([fact.to_dict() for fact in facts]).encode()).hexdigest()


def _dump(config: RunConfig, leave_out: Any = None) -> dict[str, Any]:
    dumped: dict[str, Any] = plain(config.model_dump(mode="json", exclude=leave_out))
    return dumped
