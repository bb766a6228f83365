"""What a run reads besides the model and the facts: identified by its contents, and read before anything else."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from factpatch.data import load_facts
from factpatch.data.known import KnownFact, load_known_facts
from factpatch.data.references import DEMO, ReferenceTexts, Tfidf, find_references, reference_files
from factpatch.data.sources import resolve_data
from factpatch.evaluation.capability import load_items
from factpatch.evaluation.metrics import fact_names
from factpatch.evaluation.perplexity import held_out_text
from factpatch.evaluation.tasks import Item, task_named
from factpatch.facts import Fact, check_batch
from factpatch.lab.runs.config import ConfigError, DatasetConfig, RunConfig
from factpatch.presets.own_methods import own_methods
from factpatch.presets.preset import load_preset
from factpatch.support.files import file_digest
from factpatch.support.text import read_text_file

_SHIPPED = "shipped"


def identities(config: RunConfig) -> dict[str, str]:
    """What identifies every input: the SHA-256 of a file, or a name where it is none.

    Returns:
        By the field that names the input. It does not depend on where files are.

    Raises:
        ConfigError: A file cannot be read.
    """
    wanted = config.evaluate
    named: dict[str, str] = {}
    files: dict[str, str | Path] = {}
    corpus = _SHIPPED if config.corpus is None else str(config.corpus)
    if corpus == _SHIPPED or corpus.startswith("hf:"):
        named["corpus"] = corpus
    else:
        files["corpus"] = Path(corpus)
    if config.preset is not None:
        files["preset"] = str(config.preset)
    if wanted.perplexity is True:
        named["evaluate.perplexity"] = _SHIPPED
    elif wanted.perplexity:
        files["evaluate.perplexity"] = wanted.perplexity
    if wanted.text is not None:
        if wanted.text.references == DEMO:
            named["evaluate.text.references"] = DEMO
        for name, data in reference_files(wanted.text.references).items():
            files[f"evaluate.text.references: {name}"] = data
    if wanted.capability is not None:
        for name in wanted.capability.tasks:
            files[f"evaluate.capability.data: {name}"] = wanted.capability.data / task_named(name).file
    if wanted.drift is not None:
        files["evaluate.drift.prompts"] = wanted.drift.prompts
    for where, data in files.items():
        with _blamed(where):
            named[where] = file_digest(resolve_data(data))
    own = own_methods(method.name for method in config.methods)
    return named | {f"methods: {name}": digest for name, digest in own.items() if digest is not None}


@dataclass(frozen=True)
class Inputs:
    """What a run measures with, read and checked."""

    text: str = ""
    """Whose perplexity is measured, at the end or for the budget."""
    references: ReferenceTexts | None = None
    """Those of the facts about which texts are written; None if there are none."""
    tfidf: Tfidf | None = None
    """What compares texts with them."""
    items: Mapping[str, Sequence[Item]] = field(default_factory=dict)
    """Those of every task, by its name."""
    prompts: Sequence[KnownFact] = ()
    """Whose hidden states are compared."""

    @classmethod
    def load(cls, config: RunConfig, facts: Collection[Fact]) -> Inputs:
        """Read what a configuration names.

        Args:
            facts: Those about which texts are written.

        Raises:
            ConfigError: A file is missing, or holds something else.
        """
        wanted = config.evaluate
        text, items = "", {}
        references: ReferenceTexts | None = None
        tfidf: Tfidf | None = None
        prompts: list[KnownFact] = []
        if wanted.perplexity or config.max_perplexity is not None:
            with _blamed("evaluate.perplexity"):
                file = wanted.perplexity
                text = held_out_text() if isinstance(file, bool) else read_text_file(file)
        if config.preset is not None:
            with _blamed("preset"):
                load_preset(str(config.preset))
        if wanted.text is not None:
            with _blamed("evaluate.text.references"):
                references, tfidf = find_references(wanted.text.references, facts)
        if wanted.capability is not None:
            with _blamed("evaluate.capability"):
                items = {name: load_items(task_named(name), wanted.capability.data) for name in wanted.capability.tasks}
        if wanted.drift is not None:
            with _blamed("evaluate.drift.prompts"):
                prompts = load_known_facts(wanted.drift.prompts, wanted.drift.limit)
                if len(prompts) < 2:
                    raise ValueError(f"{wanted.drift.prompts} has one prompt; give at least 2.")
        return cls(text, references, tfidf, items, prompts)


@contextmanager
def _blamed(where: str, advice: str = "") -> Iterator[None]:
    """Turn a ValueError or OSError of the block into a ConfigError that names the field, and perhaps what to do."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{where}: {error.filename}: {error.strerror or error}.") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {error}{advice}") from error


def fact_key(fact: Fact) -> str:
    """The same for the same fact with any seed, and another one for any other fact."""
    return json.dumps([fact.key, fact.target_new])


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
        where, size = f"datasets: {dataset.name}", dataset.batch_size or config.batch_size
        with _blamed(where):
            facts = _load(dataset)
        for seed in config.seeds:
            chosen = random.Random(seed).sample(facts, dataset.limit or len(facts)) if dataset.sample else facts
            found[facts_file(dataset, seed)] = chosen = chosen[: dataset.limit]
            with _blamed(where, " `distinct: true` leaves out facts that ask what an earlier one asks."):
                fact_names(chosen)
                for start in range(0, len(chosen), size):
                    check_batch(chosen[start : start + size])
    return found


def _load(dataset: DatasetConfig) -> list[Fact]:
    """The facts that may be edited, at least as many as are asked for."""
    facts = load_facts(dataset.facts, skip_unusable=dataset.skip_unusable)[dataset.skip :]
    if dataset.distinct:
        facts = list({fact.text: fact for fact in reversed(facts)}.values())[::-1]
    wanted = dataset.limit or 1
    if len(facts) < wanted:
        raise ValueError(
            f"{dataset.facts} has {len(facts)} facts after the first {dataset.skip}, and {wanted} are asked for; "
            "lower `limit` or `skip`."
        )
    return facts
