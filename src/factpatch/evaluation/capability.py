"""What a model can do apart from the facts: tasks of GLUE's kind and MMLU, by likelihood and by what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.probabilities import score
from factpatch.evaluation.tasks import Item, Task
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize

RESERVED = 10
"""Items at the beginning of a file that serve as examples only, so that every number of them is asked the same."""
LIMIT = 100
"""Items that the published evaluation asks of each task."""
ANSWER_TOKENS = 5
"""Tokens that the published evaluation generates."""


@dataclass(frozen=True)
class Answered:
    """What a model answered to one item."""

    item: int
    """The item's place in its file, from 0."""
    right: str
    """The right answer."""
    nll: Mapping[str, float]
    """Mean nats per token of each answer after the question."""
    text: str | None
    """What the model said greedily; None if that was not asked for."""
    said: str | None
    """The answer in it; None if there is none."""
    shots: int
    """How many examples stood before the question: fewer than wanted where not all fitted."""

    @property
    def likeliest(self) -> str | None:
        """The answer with the lowest NLL, the task's first one of equals; None if an NLL is not a number."""
        return None if any(map(math.isnan, self.nll.values())) else min(self.nll, key=self.nll.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {**asdict(self), "nll": dict(self.nll), "likeliest": self.likeliest}


@dataclass(frozen=True)
class Classification:
    """How good the answers to a task are. An answer that is none of the task's counts as wrong."""

    f1: float
    """Mean over the right answers' kinds of their F1, weighted by how often each is right, in percent."""
    accuracy: float
    """Right answers, in percent."""
    mcc: float
    """Matthews correlation coefficient (Gorodkin's for several kinds) times 100, from -100 to 100; 0 is chance."""
    invalid: int
    """How many answers are none of the task's."""

    @classmethod
    def of(cls, right: Sequence[str], given: Sequence[str | None]) -> Classification:
        """Compare answers with the right ones; None is an invalid answer.

        Raises:
            ImportError: scikit-learn is not installed.
            ValueError: There are no answers, or another number of right ones.
        """
        measures = check_extra()
        if not right or len(right) != len(given):
            raise ValueError(f"right, given: {len(right)} and {len(given)} answers; give equally many, at least one.")
        named = ["" if answer is None else answer for answer in given]
        return cls(
            f1=100 * float(measures.f1_score(right, named, average="weighted", zero_division=0)),
            accuracy=100 * float(measures.accuracy_score(right, named)),
            mcc=100 * float(measures.matthews_corrcoef(right, named)),
            invalid=sum(answer is None for answer in given),
        )


@dataclass(frozen=True)
class TaskResult:
    """What a model answered to the items of one task."""

    task: str
    """The task's name."""
    rows: tuple[Answered, ...]
    """One for each item that was asked."""

    def metrics(self) -> dict[str, Classification]:
        """Return how good the likeliest answers are ("likelihood") and, if asked for, the "generated" ones."""
        right = [row.right for row in self.rows]
        found = {"likelihood": Classification.of(right, [row.likeliest for row in self.rows])}
        if all(row.text is not None for row in self.rows):
            found["generated"] = Classification.of(right, [row.said for row in self.rows])
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record: the metrics, and the answers to each item."""
        return {
            "task": self.task,
            "items": len(self.rows),
            **{way: asdict(measured) for way, measured in self.metrics().items()},
            "rows": [row.to_dict() for row in self.rows],
        }


def capability(
    lm: LanguageModel,
    task: Task,
    items: Sequence[Item],
    *,
    shots: int = 0,
    limit: int | None = LIMIT,
    generate: bool = True,
) -> TaskResult:
    """Ask a model the items of a task.

    The likeliest answer is the one with the lowest NLL per token after the question. The generated one is the first of
    the task's answers in what the model says greedily. As published (AlphaEdit, arXiv:2410.02355), 100 items are asked
    without examples; the first ten items of a file are examples and never asked.

    Args:
        lm: The model; it is left as it was.
        task: The task; see `TASKS`.
        items: The items of a file, as `load_items` gives them.
        shots: How many examples stand before each question, from 0 to 10. Those that do not fit into the model's
            positions are left out, the last ones first.
        limit: How many items to ask; None asks all.
        generate: Whether to let the model say its answers too.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: `shots` or `limit` is out of range, there are too few items, or an item is not one of the task, or
            too long.
    """
    check_extra()  # now, and not after an hour of work
    if not 0 <= shots <= RESERVED:
        raise ValueError(f"shots={shots}: give 0 to {RESERVED}; the first {RESERVED} items are kept for them.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: give at least 1, or None to ask all items.")
    if len(items) <= RESERVED:
        raise ValueError(f"items: {len(items)} of {task.name}; the first {RESERVED} are examples, so give more.")
    examples = [f"{task.question(item)} {task.answer(item)}\n" for item in items[:shots]]
    asked = items[RESERVED : None if limit is None else RESERVED + limit]
    prompts = [_prompt(lm, task, examples, item) for item in asked]

    answers = list(task.answers.values())
    texts = [prompt for prompt, _ in prompts]
    scores = iter(score(lm, [(text, answer) for text in texts for answer in answers]))
    said: list[str] | list[None] = [None] * len(texts)
    if generate:
        said = greedy_answers(lm, texts, max_new_tokens=ANSWER_TOKENS)
    rows = [
        Answered(
            item=number,
            right=task.answer(item),
            nll={answer: next(scores).nll for answer in answers},
            text=text,
            said=None if text is None else task.said(text),
            shots=fitting,
        )
        for number, (item, (_, fitting), text) in enumerate(zip(asked, prompts, said, strict=True), start=RESERVED)
    ]
    return TaskResult(task.name, tuple(rows))


def _prompt(lm: LanguageModel, task: Task, examples: Sequence[str], item: Item) -> tuple[str, int]:
    """The question after as many examples as fit, and how many these are."""
    question = task.question(item)
    for count in range(len(examples), -1, -1):
        text = "".join(examples[:count]) + question
        (ids,) = tokenize(lm.tokenizer, [lm.frame.wrap(text)], lm.frame)
        if lm.has_room(len(ids) + ANSWER_TOKENS):
            return text, count
    raise ValueError(
        f"items: {question[:60]!r}... takes {len(ids)} tokens and its answer {ANSWER_TOKENS}; {lm.name} reads "
        f"{lm.longest}. Leave the item out."
    )


def load_items(task: Task, folder: str | Path) -> list[Item]:
    """Read the items of a task from a folder of such files, and check them.

    Raises:
        DataFileError: The file cannot be read, or a record is no item of the task.
        ValueError: There are too few to ask any.
    """
    path = Path(folder) / task.file
    items = task.load(path)
    if len(items) <= RESERVED:
        raise ValueError(f"{path} has {len(items)} items; the first {RESERVED} are examples, so give more.")
    return items


def check_extra() -> Any:
    """Return scikit-learn's metrics, or raise ImportError where it is not installed."""
    try:
        from sklearn import metrics
    except ImportError:
        raise ImportError(
            "capability is measured with the `scikit-learn` package; pip install 'factpatch[evaluate]'."
        ) from None
    return metrics
