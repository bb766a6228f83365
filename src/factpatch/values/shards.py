"""The value optimization over the copies of a model: facts in shards of a fixed size, values in the facts' order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from factpatch.facts import Fact
from factpatch.model.batching import parts
from factpatch.model.language_model import LanguageModel
from factpatch.model.precision import Precision
from factpatch.model.replicas import Replicas
from factpatch.strategies.target import Target
from factpatch.values.optimize import TargetValues, optimize_values

FACTS = {"cpu": 4}
"""How many facts a shard has, by the kind of device: with their contexts, as many tokens as keep a core busy."""
FACTS_ELSEWHERE = 32


def facts_at_once(device: str) -> int:
    """How many facts a shard has on a kind of device, such as "cpu"."""
    return FACTS.get(device, FACTS_ELSEWHERE)


@dataclass(frozen=True)
class FindValues:
    """The value optimization of some facts, for a model or a copy of it; see `optimize_values`."""

    layer: int
    target: Target
    contexts: tuple[str, ...]
    precision: Precision | None

    def __call__(self, lm: LanguageModel, facts: Sequence[Fact]) -> TargetValues:
        found = optimize_values(lm, facts, self.layer, self.target, self.contexts, precision=self.precision)
        return found.to("cpu")


class InShards:
    """An `Optimize` whose facts are shared among the copies of a model.

    How many copies there are changes nothing. From a single optimization of all facts the values differ by rounding.
    """

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas

    def __call__(
        self,
        lm: LanguageModel,
        facts: Sequence[Fact],
        layer: int,
        target: Target,
        contexts: Sequence[str],
        *,
        progress: Callable[[int], None] = lambda finished: None,
        precision: Precision | None = None,
    ) -> TargetValues:
        """As `optimize_values`, on the present weights of the model that the copies are of."""
        if lm is not self.replicas.lm:
            raise ValueError("lm: the copies are of another model; give the one that they were made of.")
        shards = parts(facts, facts_at_once(lm.device.type))
        found = self.replicas.map(
            FindValues(layer, target, tuple(contexts), precision),
            shards,
            lambda place: progress(len(shards[place]) * target.evaluations),
        )
        return TargetValues.joined(list(found)).to(lm.device)
