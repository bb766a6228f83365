"""What the analyses of one model share: its facts, their value targets, the spreads that are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from factpatch.data.references import ReferenceTexts, Tfidf, find_references
from factpatch.editor import Editor
from factpatch.evaluation.metrics import fact_names
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.verify import verify
from factpatch.facts import Fact, check_batch, identity
from factpatch.lab.analysis.findings import DIRECT, DISTRIBUTED, Findings, Place
from factpatch.model.language_model import LanguageModel
from factpatch.model.weights import model_hash
from factpatch.strategies import Each, Even, Spread, SquareRoot, Unchanged
from factpatch.values.optimize import TargetValues
from factpatch.values.shared import InBatches

SPREADS: Mapping[str, Spread] = {"even": Even(), "sqrt": SquareRoot()}
"""The spreads that distribute one residual over several layers: MEMIT's, and PMET's (the paper's appendix F)."""

Keep = Callable[[str, Callable[[], Findings]], Findings]
"""Given a name and a function that finds something, returns what was found, now or before."""


@dataclass(frozen=True)
class TextOptions:
    """The texts that are generated for fluency and consistency."""

    facts: int = 20
    """Of how many facts; 0 leaves both out."""
    tokens: int = 100
    """Length of a text."""
    references: str | None = None
    """As `factpatch.data.references.find_references` takes it."""
    seed: int = 0


class Study:
    """One model and its facts, before any analysis. Every analysis leaves the model as it was.

    Args:
        editor: Of the unedited model. Its method says which values are optimized and how a layer is solved; its spread
            does not matter.
        facts: What is edited.
        spreads: Names from `SPREADS`.
        batch_size: How many facts a batch of a sequence has.
        texts: What is generated.

    Raises:
        ValueError: The editor holds edits, or `check_study` refuses an argument.
    """

    def __init__(
        self,
        editor: Editor,
        facts: Sequence[Fact],
        spreads: Sequence[str] = tuple(SPREADS),
        batch_size: int = 10,
        texts: TextOptions | None = None,
    ) -> None:
        check_study(editor, facts, spreads, batch_size)
        self.facts = tuple(facts)
        self.names = fact_names(facts)
        self.spreads = tuple(spreads)
        self.batch_size = batch_size
        self.texts = texts or TextOptions()
        self.keep: Keep = lambda name, find: find()
        """Remembers parts of an analysis that take long; by default nothing does."""
        # The analyses are the paper's, with one value and one key for each fact.
        self.editor = editor.with_spread(Each(), apart=False)
        self._direct: dict[int, TargetValues] = {}

    def kept(self, keep: Keep, optimize: Callable[..., TargetValues]) -> Study:
        """The same study with a memory of parts that take long, and of target values, a batch at a time."""
        made = copy(self)
        made.keep = keep
        made.editor = self.editor.with_spread(Each(), InBatches(optimize, self.batch_size))
        made._direct = {}
        return made

    def about(self, **more: Any) -> dict[str, Any]:
        """Everything the findings depend on, JSON-able; `more` is what a study does not know, such as the corpus."""
        # What every analysis replaces, and what is not known before it is read.
        left_out = ("spread", "second_moment")
        return {
            "model": self.lm.name,
            "weights": model_hash(self.lm.model),
            "facts": identity(self.facts),
            "method": {name: value for name, value in self.editor.settings.items() if name not in left_out},
            "seed": self.editor.recipe.seed,
            "spreads": list(self.spreads),
            "batch_size": self.batch_size,
            "texts": asdict(self.texts),
            # What is computed in shards differs by rounding.
            **({} if self.editor.replicas is None else {"workers": True}),
            **more,
        }

    @property
    def lm(self) -> LanguageModel:
        return self.editor.lm

    def readings(self) -> list[Reading]:
        """What the model says of the facts as it is now, without free answers."""
        return list(verify(self.lm, None, self.facts, answers=False, replicas=self.editor.replicas).after)

    @property
    def layers(self) -> tuple[int, ...]:
        """The critical layers."""
        return self.editor.critical_layers

    @property
    def last(self) -> int:
        """The last critical layer, whose residual is distributed."""
        return self.layers[-1]

    @cached_property
    def references(self) -> tuple[ReferenceTexts | None, Tfidf | None]:
        """Reference texts for the facts that texts are generated for, and what compares texts with them."""
        return find_references(self.texts.references, self.facts[: self.texts.facts])

    def direct(self, layer: int) -> TargetValues:
        """The value targets of all facts at a layer, on unedited weights; optimized on first use."""
        if layer not in self._direct:
            self._direct[layer] = self.editor.target_values(self.facts, layer)
        return self._direct[layer]

    def residual(self, layer: int) -> Tensor:
        """The direct residual δ at a layer, (n, d_value), float64 on the CPU."""
        return self.direct(layer).delta.double().cpu()

    def present(self, layer: int) -> Tensor:
        """The unedited value at a layer, (n, d_value), float64 on the CPU."""
        found = self.direct(layer)
        return (found.values - found.delta).double().cpu()

    def share(self, spread: str, layer: int, last: int | None = None) -> float:
        """The share of the residual of `last` that a layer gets if no layer below took any: equation 6."""
        last = self.last if last is None else last
        steps = SPREADS[spread].steps([one for one in self.layers if one <= last])
        return next(step.share for step in steps if step.layer == layer)

    def residuals(self, layer: int) -> Iterator[tuple[Place, Tensor]]:
        """The residuals that are compared at a layer, the direct one first: (n, d_value) each."""
        yield Place(layer, DIRECT), self.residual(layer)
        for spread in self.spreads:
            yield Place(layer, DISTRIBUTED, spread), self.share(spread, layer) * self.residual(self.last)


def check_study(editor: Editor, facts: Sequence[Fact], spreads: Sequence[str], batch_size: int) -> None:
    """Check the arguments of a study, without reading anything.

    Raises:
        ValueError: The editor's method optimizes no values or has a regularizer, it forgets the keys of what it edited,
            a spread is not known, or the facts are no batch or have ids in common.
    """
    check_batch(facts)
    fact_names(facts)
    _ = editor.method.optimized
    if not isinstance(editor.method.regularizer, Unchanged):
        raise ValueError(
            f"method={editor.method.name!r}: its regularizer changes the shifts that are compared; analyze the "
            "method that it regularizes, such as memit."
        )
    if editor.method.solver.writes(0) != [0]:
        raise ValueError(
            f"method={editor.method.name!r}: it shifts several weights of a layer, and the bound is of one; analyze "
            "another method, such as memit-blue."
        )
    if not editor.recipe.remember_keys:
        raise ValueError(
            "remember_keys=False: the bound is of an editor that preserves the keys of earlier facts; make it with "
            "remember_keys=True."
        )
    unknown = [name for name in spreads if name not in SPREADS]
    if unknown or not spreads:
        raise ValueError(f"spreads={list(spreads)}: give some of {', '.join(SPREADS)}.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be positive.")


@contextmanager
def undone(editor: Editor) -> Iterator[Editor]:
    """Take back whatever is edited in the block."""
    try:
        yield editor
    finally:
        editor.reset()
