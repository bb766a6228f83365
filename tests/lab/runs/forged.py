"""Directories of runs without a model: numbers made by hand, or at random."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from factpatch.lab.runs.config import config_from
from factpatch.lab.runs.directory import RunDirectory
from factpatch.lab.runs.measures import save
from factpatch.lab.runs.plan import Plan
from factpatch.lab.runs.rows import ResultRow, When
from factpatch.support.files import write_json

SETTINGS = {"target": {"steps": 3}, "solver": {"weight": 100}}
TASKS = ("sst2", "mmlu")
Further = Callable[[int], dict[str, float | None]]


def forged_run(
    path: Path,
    facts: Sequence[dict[str, Any]],
    methods: Sequence[str] = ("memit", "memit-blue"),
    *,
    batch_size: int = 2,
    finished: bool = True,
    whole: bool = True,
    quality: dict[str, float] | None = None,
    names: Sequence[str] = ("forged",),
    seeds: Sequence[int] = (0,),
    evaluate: dict[str, Any] | None = None,
    further: Further = lambda place: {},
    **selection: Any,
) -> Path:
    """A run whose facts are learned and kept by chance.

    Args:
        finished: Whether anything was measured after the first batch.
        whole: Whether everything was measured that can be.
        quality: For each method how probably a fact is learned.
        names: Of the datasets, which all have these facts.
        evaluate: The measurements that the configuration asks for; the forged ones do not depend on it.
        further: More metrics of the fact at a place, which replace those of the same name.
        selection: Further fields of each dataset.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.parent / f"{path.name}.json"
    file.write_text(json.dumps(list(facts)), "utf-8")
    record = {
        "model": "tiny",
        "methods": list(methods),
        "datasets": [{"facts": str(file), "name": name, **selection} for name in names],
        "batch_size": batch_size,
        "seeds": list(seeds),
        "evaluate": evaluate or {},
    }
    directory = RunDirectory.create(path, config_from(record))
    for plan in directory.plans():
        chance = random.Random(plan.name)
        _forge(plan, chance, finished, whole, (quality or {}).get(plan.method.label, 0.8), further)
    return path


def _forge(plan: Plan, chance: random.Random, finished: bool, whole: bool, quality: float, further: Further) -> None:
    label, measured = plan.method.label, plan.directory / "measured"
    states = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    _save(plan, plan.unedited, "", When.BEFORE, _answers(plan, "unknown"), chance, 0.1, further)
    if whole:
        _about(plan, plan.unedited, "", When.BEFORE, {"perplexity": 20.0, **{f"{t}.generated.f1": 80.0 for t in TASKS}})
        save(plan.unedited / "before.hidden_states", [], tensors={"states": states})
        for number in range(1, 1 + len(plan.batches)):
            _save(plan, measured, label, When.WRITTEN, [], chance, quality, further, number)
    if not finished:
        return
    _save(plan, measured, label, When.END, _answers(plan, "mumble <b>"), chance, quality - 0.1, further)
    if whole:
        numbers = {"perplexity": 21.0, "drift.cka": 0.9, **{f"{t}.generated.f1": chance.uniform(50, 80) for t in TASKS}}
        _about(plan, measured, label, When.END, numbers)
        save(measured / "end.hidden_states", [], tensors={"states": states + 1})
    write_json(
        plan.directory / "row.json",
        {
            "label": label, "method": plan.method.name, "dataset": plan.dataset.name, "seed": plan.seed,
            "facts": len(plan.facts), "settings": SETTINGS, "seconds": {"targets": 60.0, "solve": 3.0}, "bytes": 1000,
        },
    )  # fmt: skip


def _save(
    plan: Plan,
    folder: Path,
    label: str,
    when: When,
    texts: list[dict[str, Any]],
    chance: random.Random,
    quality: float,
    further: Further,
    number: int | None = None,
) -> None:
    """Rows of the facts, or of those of one batch."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place, fact in enumerate(plan.facts):
        batch = 1 + place // plan.batch_size
        if number not in (None, batch):
            continue
        edits = len(plan.facts) if number is None else min(number * plan.batch_size, len(plan.facts))
        numbers = {
            "efficacy": 100.0 * (chance.random() < quality),
            "generalization": _share(chance, quality, fact.paraphrases),
            "specificity": _share(chance, 0.7, fact.neighbors),
            **further(place),
        }
        name = fact.id or f"facts[{place}]"
        rows += [
            ResultRow(label, plan.dataset.name, plan.seed, when.value, edits, batch, place, name, metric, value)
            for metric, value in numbers.items()
        ]
    save(folder / f"{when.value if number is None else f'{when.value}.{number:04d}'}.facts", rows, texts)


def _share(chance: random.Random, quality: float, prompts: Sequence[Any]) -> float | None:
    return 100.0 * sum(chance.random() < quality for _ in prompts) / len(prompts) if prompts else None


def _about(plan: Plan, folder: Path, label: str, when: When, numbers: dict[str, float]) -> None:
    """Rows of the model."""
    edits = 0 if when is When.BEFORE else len(plan.facts)
    rows = [
        ResultRow(label, plan.dataset.name, plan.seed, when.value, edits, None, None, None, metric, value)
        for metric, value in numbers.items()
    ]
    save(folder / f"{when.value}.model", rows)


def _answers(plan: Plan, said: str) -> list[dict[str, Any]]:
    return [
        {"place": place, "form": "prompt", "asked": fact.text, "said": f" {said}"}
        for place, fact in enumerate(plan.facts)
    ]
