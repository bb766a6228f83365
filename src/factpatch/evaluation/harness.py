"""Any task of lm-evaluation-harness, on the model in memory."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from factpatch.model.language_model import LanguageModel
from factpatch.support.words import suggestion


@dataclass(frozen=True)
class HarnessScore:
    """One metric of one task, in the unit that the harness gives it: most are shares in [0, 1]."""

    task: str
    """The task's name, or that of a group of tasks."""
    metric: str
    """What the harness calls the metric."""
    filter: str
    """How answers were extracted, in the harness's words; "none" where they were taken as they are."""
    value: float
    standard_error: float | None
    """Over items; None where the harness gives none."""
    items: int | None
    """How many items were asked; None for a group."""
    shots: int | None
    """How many examples stood before a question; None for a group."""
    version: str | None
    """The version of the task, as text."""


def harness(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> list[HarnessScore]:
    """Evaluate a model on tasks of lm-evaluation-harness, through its Python API; one score for each task and metric.

    The harness loads its tasks' data itself, and most of them from the Hugging Face Hub. Tasks that write code, and
    would run it, are refused by the harness.

    Args:
        lm: The model; it is left as it was, and so are the global random generators.
        tasks: Names of tasks or groups, as `lm-eval ls tasks` lists them, or files that define one, ending in .yaml.
        shots: Examples before each question; None leaves it to each task.
        limit: How many items to ask of each task; None asks all.
        batch_size: Rows that run together.
        seed: Seed of the choice of examples and of sampled answers.

    Raises:
        ImportError: The harness is not installed.
        ValueError: There is no such task (with a suggestion) or file, or no task is named.
    """
    manager = _manager(tasks)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    # The harness gives a tokenizer without padding one.
    tokenizer = copy.deepcopy(lm.tokenizer)
    with lm.quiet(), _undisturbed():
        found = simple_evaluate(
            model=HFLM(pretrained=lm.model, tokenizer=tokenizer, backend="causal", batch_size=batch_size),
            tasks=list(tasks),
            num_fewshot=shots,
            limit=limit,
            apply_chat_template=lm.frame.chat,
            task_manager=manager,
            log_samples=False,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return [score for task, values in found["results"].items() for score in _scores(task, values, found)]


def _scores(task: str, values: dict[str, Any], found: dict[str, Any]) -> Iterator[HarnessScore]:
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = values.get(f"{metric}_stderr,{filtered}")
        yield HarnessScore(
            task=task,
            metric=metric,
            filter=filtered,
            value=float(value),
            standard_error=float(error) if isinstance(error, (int, float)) else None,
            items=found["n-samples"].get(task, {}).get("effective"),
            shots=found["n-shot"].get(task),
            version=None if found["versions"].get(task) is None else str(found["versions"][task]),
        )


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise what `harness` raises for these tasks, without a model."""
    _manager(tasks)


def _manager(tasks: Sequence[str]) -> Any:
    """The harness's index, once it is known to hold these tasks."""
    files = [task for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [task for task in tasks if task not in files]
    manager = _index(bool(names))
    if not tasks:
        raise ValueError("tasks=[]: name at least one task of lm-evaluation-harness.")
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"tasks: {file}: no such file; it should define a task of lm-evaluation-harness.")
    for name in names:
        if name not in manager.all_tasks:
            raise ValueError(_unknown(name, manager.all_tasks))
    return manager


@cache
def _index(shipped: bool) -> Any:
    """The harness's own index; with the tasks that it ships, it reads thousands of files, which takes a while."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            f"tasks of lm-evaluation-harness need its package ({error}); pip install 'factpatch[harness]'."
        ) from None
    return TaskManager(include_defaults=shipped)


def _unknown(name: str, known: Sequence[str]) -> str:
    # There are thousands of them: only those that are near.
    near = suggestion(name, known).partition(" Known:")[0]
    return f"tasks: lm-evaluation-harness has no task {name!r}.{near} `lm-eval ls tasks` lists them."


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let the block seed the global random generators, without its hints in the log; all is restored afterwards."""
    log = logging.getLogger("lm_eval")
    level, of_python, of_numpy = log.level, random.getstate(), np.random.get_state()
    try:
        log.setLevel(logging.ERROR)
        with torch.random.fork_rng():
            yield
    finally:
        log.setLevel(level)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
