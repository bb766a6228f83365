"""The value optimization's settings, found without writing anything."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from factpatch.facts import Fact
from factpatch.lab.tuning.trial import Workbench
from factpatch.methods import with_settings
from factpatch.model.memory import FAILURES

logger = logging.getLogger(__name__)

# Published learning rates are 0.1 and 0.5, the clamp is 0.75.
LEARNING_RATES = (0.5, 0.1, 0.25, 1.0)
CLAMPS = (0.75, 1.5, 3.0)
# The factor by which a larger clamp has to lower the loss. It lets values leave what the model's own are like.
WORTH = 0.5


@dataclass(frozen=True)
class Attempt:
    """What the value optimization reaches with some settings."""

    settings: dict[str, Any]
    """By dotted name."""
    loss: float
    """Geometric mean over facts and layers of the last loss, in nats; it weighs a value that is not found at all, and
    one that could be a little better, alike."""
    evaluations: float
    """Mean over facts and layers."""


def attempts(
    bench: Workbench,
    layers: Sequence[int],
    facts: Sequence[Fact],
    steps: int,
    until: float,
    tried: Callable[[Attempt], None] = lambda attempt: None,
) -> list[Attempt]:
    """Try learning rates, then larger clamps with the best of them, as long as there is time.

    Args:
        steps: Evaluations at most.
        until: When, by `time.monotonic`, no further attempt begins; the usual one is always made.

    Returns:
        The attempts with the clamp that is worth it, the lowest loss first; one that failed is left out.

    Raises:
        Exception: One of `FAILURES`, in the usual attempt.
    """

    def attempt(rate: float, clamp: float) -> Attempt:
        settings = usual_settings(steps, rate, clamp)
        target = with_settings(bench.method, settings).optimized.plain
        found = [bench.optimize(bench.lm, facts, layer, target, bench.contexts) for layer in layers]
        losses = [max(loss, target.stop_loss) for values in found for loss in values.loss.tolist()]
        evaluations = [float(count) for values in found for count in values.evaluations.tolist()]
        made = Attempt(settings, math.exp(statistics.fmean(map(math.log, losses))), statistics.fmean(evaluations))
        tried(made)
        return made

    def several(rates: Iterable[float], clamp: float) -> list[Attempt]:
        made = []
        for rate in rates:
            if time.monotonic() < until:
                try:
                    made.append(attempt(rate, clamp))
                except FAILURES as error:  # a model in 16 bits overflows sooner than others
                    logger.warning("learning rate %s with clamp %s is left out: %s", rate, clamp, error)
        return made

    by_loss = attrgetter("loss")
    usual = attempt(LEARNING_RATES[0], CLAMPS[0])
    best = sorted([usual, *several(LEARNING_RATES[1:], CLAMPS[0])], key=by_loss)
    for clamp in CLAMPS[1:]:
        wider = sorted(several([made.settings["target.learning_rate"] for made in best[:2]], clamp), key=by_loss)
        if not wider or wider[0].loss > WORTH * best[0].loss:
            break
        best = wider
    return best


def usual_settings(steps: int, rate: float = LEARNING_RATES[0], clamp: float = CLAMPS[0]) -> dict[str, Any]:
    """Settings of the value optimization by dotted name, by default those that one would begin with."""
    return {"target.learning_rate": rate, "target.clamp": clamp, "target.steps": steps}
