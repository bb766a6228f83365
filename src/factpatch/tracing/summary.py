"""What some traces say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from factpatch.evaluation.intervals import Mean
from factpatch.tracing.averages import LAST_SUBJECT_TOKEN, Totals, averages, effects
from factpatch.tracing.critical import CriticalLayers, propose
from factpatch.tracing.trace import Trace


@dataclass(frozen=True)
class Summary:
    """Averages over the facts that a model knows, and the critical layers that they propose.

    Attributes:
        traces: One for each of these facts.
        asked: How many facts the model was asked.
        size: How many critical layers to propose; by default after the model's depth.
        seed: Of the resampling behind the proposal.
    """

    traces: Sequence[Trace]
    asked: int
    size: int | None = None
    seed: int = 0

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
            "totals": asdict(self.totals),
            "averages": {
                kind: {position: [asdict(mean) for mean in means] for position, means in positions.items()}
                for kind, positions in self.averages.items()
            },
            "critical_layers": None
            if critical is None
            else {**asdict(critical), "reason": critical.reason, "certainty": critical.certainty},
        }
