"""Averages over facts at the published positions, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from factpatch.evaluation.intervals import Floats, Mean, mean
from factpatch.lab.tracing.critical import CriticalLayers, propose
from factpatch.lab.tracing.trace import Trace

Z = 1.96
"""Standard errors on either side of a mean in its 95 % interval."""

POSITIONS: Mapping[str, Callable[[range, int], range]] = {
    "first subject token": lambda subject, tokens: subject[:1],
    "middle subject tokens": lambda subject, tokens: subject[1:-1],
    "last subject token": lambda subject, tokens: subject[-1:],
    "first subsequent token": lambda subject, tokens: range(subject.stop, tokens)[:1],
    "further tokens": lambda subject, tokens: range(subject.stop, tokens)[1:-1],
    "last token": lambda subject, tokens: range(tokens)[-1:],
}
"""From the subject's tokens and the number of tokens to those at a position. Source: ROME (arXiv:2202.05262), Figure 1.

As published, the single token of a subject is both its first and its last; a single subsequent token is both the first
subsequent and the last one.
"""
LAST_SUBJECT_TOKEN = "last subject token"


def effects(traces: Sequence[Trace], kind: str, position: str) -> Floats:
    """The indirect effects of a kind at a position.

    Returns:
        (facts, layers), float64: of each fact the mean over its tokens there, NaN where it has none. ROME's code
        averages the tokens of all facts instead, which weights facts with long subjects more in the middle ones.
    """
    found = []
    for one in traces:
        tokens = POSITIONS[position](one.subject, len(one.tokens))
        table = one.indirect_effect(kind).numpy()
        found.append(table[tokens.start : tokens.stop].mean(axis=0) if tokens else np.full(table.shape[1], math.nan))
    return np.array(found, dtype=np.float64)


def averages(traces: Sequence[Trace], kind: str) -> dict[str, list[Mean]]:
    """The average indirect effect (AIE) by position, for each layer with its standard error over facts."""
    return {
        position: [
            mean([None if math.isnan(value) else value for value in column])
            for column in effects(traces, kind, position).T.tolist()
        ]
        for position in POSITIONS
    }


def interval(average: Mean) -> tuple[float, float] | None:
    """The 95 % interval of a mean; None for fewer than 2 facts."""
    if average.value is None or average.error is None:
        return None
    return average.value - Z * average.error, average.value + Z * average.error


class Totals(NamedTuple):
    """What corrupting the subjects does: means over facts."""

    clean: Mean
    """P[o]."""
    corrupted: Mean
    """P*[o]."""
    total_effect: Mean
    """ATE, of their difference."""

    @classmethod
    def of(cls, traces: Sequence[Trace]) -> Totals:
        """The totals of some facts."""
        return cls(*(mean([getattr(one, name) for one in traces]) for name in cls._fields))


@dataclass(frozen=True)
class Summary:
    """Averages over the facts that a model knows, and the critical layers that they propose."""

    traces: Sequence[Trace]
    """One for each of these facts."""
    asked: int
    """How many facts the model was asked."""
    size: int | None = None
    """How many critical layers to propose; by default by the model's depth."""
    seed: int = 0
    """Of the resampling that the proposal rests on."""

    @cached_property
    def totals(self) -> Totals:
        """The effect of corrupting the subjects."""
        return Totals.of(self.traces)

    @cached_property
    def averages(self) -> dict[str, dict[str, list[Mean]]]:
        """The average indirect effects, by kind and position, of each layer."""
        return {kind: averages(self.traces, kind) for kind in self.traces[0].restored}

    @cached_property
    def critical(self) -> CriticalLayers | None:
        """The proposed layers; None where MLPs were not restored."""
        if "mlp" not in self.averages:
            return None
        return propose(effects(self.traces, "mlp", LAST_SUBJECT_TOKEN), self.size, self.seed)

    def record(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        critical = self.critical
        return {
            "asked": self.asked,
            "traced": len(self.traces),
            "totals": {name: asdict(total) for name, total in self.totals._asdict().items()},
            "averages": {
                kind: {position: [asdict(mean) for mean in means] for position, means in positions.items()}
                for kind, positions in self.averages.items()
            },
            "critical_layers": critical
            and {**asdict(critical), "reason": critical.reason, "certainty": critical.certainty},
        }
