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
from factpatch.methods import Method, with_settings
from factpatch.model.memory import FAILURES
from factpatch.strategies.target import PUBLISHED

logger = logging.getLogger(__name__)

# Published learning rates are 0.1 and 0.5, the clamp is 0.75.
LEARNING_RATES = (0.5, 0.1, 0.25, 1.0)
# What is read in questions and chats too takes twice the time: steps of a share of ‖h‖ need a third of the evaluations.
STRIDES = (0.3, 0.15, 0.6)
STRIDES_TAKEN, ENOUGH = 8, 6
CLAMPS = (0.75, 1.5, 3.0)
# The factor by which a larger clamp has to lower the loss. It lets values leave what the model's own are like.
WORTH = 0.5
CLAMP = "target.clamp"

Settings = dict[str, Any]
"""By dotted name."""


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
    """Try how to step, then larger clamps with the best of these, as long as there is time.

    Args:
        steps: Evaluations at most.
        until: When, by `time.monotonic`, no further attempt begins; the usual one is always made.

    Returns:
        The attempts with the clamp that is worth it, the lowest loss first; one that failed is left out.

    Raises:
        Exception: One of `FAILURES`, in the usual attempt.
    """

    def attempt(pace: Settings, clamp: float) -> Attempt:
        settings = {**pace, CLAMP: clamp}  # in the same order: a trial is kept by it
        target = with_settings(bench.method, settings).optimized.plain
        found = [bench.optimize(bench.lm, facts, layer, target, bench.contexts) for layer in layers]
        losses = [max(loss, target.stop_loss) for values in found for loss in values.loss.tolist()]
        evaluations = [float(count) for values in found for count in values.evaluations.tolist()]
        made = Attempt(settings, math.exp(statistics.fmean(map(math.log, losses))), statistics.fmean(evaluations))
        tried(made)
        return made

    def several(those: Iterable[Settings], clamp: float) -> list[Attempt]:
        made = []
        for pace in those:
            if time.monotonic() < until:
                try:
                    made.append(attempt(pace, clamp))
                except FAILURES as error:  # a model in 16 bits overflows sooner than others
                    named = ", ".join(f"{name}={value}" for name, value in {**pace, CLAMP: clamp}.items())
                    logger.warning("%s is left out: %s", named, error)
        return made

    by_loss = attrgetter("loss")
    first, *others = paces(bench.method, steps)
    usual = attempt(first, CLAMPS[0])
    best = sorted([usual, *several(others, CLAMPS[0])], key=by_loss)
    for clamp in CLAMPS[1:]:
        wider = sorted(several([made.settings for made in best[:2]], clamp), key=by_loss)
        if not wider or wider[0].loss > WORTH * best[0].loss:
            break
        best = wider
    return best


def paces(method: Method, steps: int) -> list[Settings]:
    """How the value optimization may step, the usual way first: as Adam does, or by shares of ‖h‖."""
    if method.target.contexts == PUBLISHED:
        return [{"target.learning_rate": rate, CLAMP: CLAMPS[0], "target.steps": steps} for rate in LEARNING_RATES]
    taken, enough = min(steps, STRIDES_TAKEN), min(steps, ENOUGH)
    return [
        {"target.stride": stride, CLAMP: CLAMPS[0], "target.steps": taken, "target.enough_steps": enough}
        for stride in STRIDES
    ]


def usual_settings(method: Method, steps: int) -> Settings:
    """Settings of the value optimization by dotted name that one would begin with."""
    return paces(method, steps)[0]
