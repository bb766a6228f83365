"""A budget: what edits may cost a model in perplexity and in capability, measured after each batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from factpatch.evaluation.capability import LIMIT, capability, check_extra
from factpatch.evaluation.perplexity import perplexity
from factpatch.support.progress import timed

if TYPE_CHECKING:
    from factpatch.evaluation.tasks import Item, Task
    from factpatch.model.language_model import LanguageModel

Spent = dict[str, float]
"""What the edits in force have cost by "perplexity", its rise in percent, and by "capability", the share left of the
unedited model's accuracy."""


class BudgetError(RuntimeError):
    """A batch has cost more than the budget allows, and was taken back.

    Attributes:
        spent: What the edits had cost with it.
        kept: How many batches before it stay.
    """

    def __init__(self, message: str, spent: Spent) -> None:
        super().__init__(message)
        self.spent, self.kept = spent, 0


def check_limits(max_perplexity: float | None, min_capability: float | None) -> None:
    """Raise ValueError if a limit of a budget is out of range."""
    if max_perplexity is not None and not max_perplexity >= 0:
        raise ValueError(f"max_perplexity={max_perplexity}: give percent, 0 or more, such as 5.")
    if min_capability is not None and not 0 <= min_capability <= 1:
        raise ValueError(f"min_capability={min_capability}: give a share from 0 to 1, such as 0.95.")


@dataclass(frozen=True)
class Budget:
    """What all edits in force together may cost.

    Raises:
        ValueError: A limit is out of range, or there are tasks without a limit or a limit without tasks.
        ImportError: Tasks are given, and scikit-learn is not installed.
    """

    max_perplexity: float | None = None
    """How far perplexity may rise over the unedited model's, in percent; None if it is not measured."""
    min_capability: float | None = None
    """Which share of the unedited model's accuracy, the mean over tasks, must be left; None if it is not measured."""
    text: str | None = None
    """What perplexity is measured on; by default the package's held-out text."""
    tasks: Sequence[tuple[Task, Sequence[Item]]] = ()
    """Tasks of `factpatch.evaluation.tasks.TASKS` with the items that `load_items` reads."""
    limit: int | None = LIMIT
    """How many items of each task to ask; None for all."""
    keep: Callable[[str], bool] = lambda exceeded: False
    """Asked with a sentence whether a batch that exceeds the budget is to be kept all the same."""

    def __post_init__(self) -> None:
        check_limits(self.max_perplexity, self.min_capability)
        if (self.min_capability is None) != (not self.tasks):
            raise ValueError(
                f"min_capability={self.min_capability}, tasks: {len(self.tasks)}; give both, or neither of them."
            )
        if self.tasks:
            check_extra()

    def measure(self, lm: LanguageModel) -> Spent:
        """The perplexity of a model, and its accuracy in percent: the mean over tasks of its likeliest answers'."""
        found: Spent = {}
        if self.max_perplexity is not None:
            found["perplexity"] = perplexity(lm, self.text)
        if self.min_capability is not None:
            asked = [capability(lm, *task, limit=self.limit, generate=False) for task in self.tasks]
            found["capability"] = fmean(result.metrics()["likelihood"].accuracy for result in asked)
        return found


class Meter:
    """Compares an edited model with the unedited one.

    Args:
        budget: What to measure, and the limits.
        lm: The unedited model.
        unedited: What a meter with the same budget has measured of it; by default it is measured.

    Raises:
        ValueError: The unedited model answers no item rightly, so that no share of that can be left.
    """

    def __init__(self, budget: Budget, lm: LanguageModel, unedited: Spent | None = None) -> None:
        self.budget = budget
        self.seconds: dict[str, float] = {}
        """What measuring took, as the stage "budget"."""
        self.unedited = self._measured(lm) if unedited is None else unedited
        if self.unedited.get("capability") == 0:
            raise ValueError("min_capability: the unedited model answers no item rightly; give other tasks.")

    def check(self, lm: LanguageModel) -> Spent:
        """Measure a model and return what its edits have cost.

        Raises:
            BudgetError: It is more than the budget allows, and the batch is not to be kept.
        """
        now, spent = self._measured(lm), Spent()
        if "perplexity" in now:
            spent["perplexity"] = 100 * (now["perplexity"] / self.unedited["perplexity"] - 1)
        if "capability" in now:
            spent["capability"] = now["capability"] / self.unedited["capability"]
        exceeded = self.exceeded(spent)
        if exceeded and not self.budget.keep(exceeded):
            raise BudgetError(exceeded, spent)
        return spent

    def _measured(self, lm: LanguageModel) -> Spent:
        with timed(self.seconds, "budget"):
            return self.budget.measure(lm)

    def exceeded(self, spent: Spent) -> str:
        """Say which limits are exceeded; empty if none is. What is not a number exceeds every limit."""
        most, least = self.budget.max_perplexity, self.budget.min_capability
        said = []
        if most is not None and not spent["perplexity"] <= most:
            said.append(f"perplexity {spent['perplexity']:+.2f} % (at most {most:+g} %)")
        if least is not None and not spent["capability"] >= least:
            said.append(f"capability {spent['capability']:.3f} of the unedited model's (at least {least:g})")
        return ", ".join(said)


def recorded(spent: Spent) -> dict[str, float | None]:
    """What is spent, for a record: rounded, and None for what is not finite."""
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in spent.items()}
