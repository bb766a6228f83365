"""Which facts a run edits, and in which order: chosen once, when it begins."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from factpatch.data import load_facts
from factpatch.evaluation.rows import fact_names
from factpatch.facts import Fact, check_batch
from factpatch.runs.config import ConfigError, DatasetConfig, RunConfig


def fact_key(fact: Fact) -> str:
    """The same for the same fact with any seed, and another one for any other fact."""
    return json.dumps([*fact.key, fact.target_new])


def facts_file(dataset: DatasetConfig, seed: int) -> str:
    """The name of the file that holds the facts of a dataset as they are edited with a seed."""
    return f"{dataset.name}.{seed}.json"


def select_facts(config: RunConfig) -> dict[str, list[Fact]]:
    """The facts of every dataset and seed, by the name of the file that holds them.

    Raises:
        ConfigError: They cannot be read, are too few, or cannot be edited in batches of this size.
    """
    found = {}
    for dataset in config.datasets:
        there = _load(dataset)
        for seed in config.seeds:
            chosen = random.Random(seed).sample(there, dataset.limit or len(there)) if dataset.sample else there
            facts = chosen[: dataset.limit]
            _check_batches(dataset, facts, dataset.batch_size or config.batch_size)
            found[facts_file(dataset, seed)] = facts
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
