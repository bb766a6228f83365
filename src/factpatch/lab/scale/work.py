"""What a batch of facts and a pass over a corpus consist of: tokens, operations and shards.

An operation is an addition or a multiplication, so a token costs two for each entry of a matrix that it passes. Of
attention, norms and the like nothing is counted: at these lengths they are a few percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch

from factpatch.facts import Fact
from factpatch.lab.scale.shape import Shape
from factpatch.methods import method_named, with_settings
from factpatch.model.language_model import LanguageModel
from factpatch.model.tree import common_beginning
from factpatch.presets.preset import Preset, preset_for
from factpatch.statistics.second_moment import TOKENS_PER_DIMENSION, bands, shard_count
from factpatch.strategies.least_squares import PANEL
from factpatch.strategies.spread import Step
from factpatch.values.reading import SubjectRows
from factpatch.values.rows import optimization_rows
from factpatch.values.shards import FACTS_ELSEWHERE, facts_at_once

CONTEXTS = 6
"""The published ones: the bare prompt, and five texts before it."""
# Of a fact of CounterFact in one context, with SmolLM2's tokenizer: means over 500 facts. Before the subject's last
# token, without what all facts have in common there; from it on; of the target; of "{subject} is a", before.
_BEFORE, _SUFFIX, _TARGET, _ESSENCE = 4.15, 4.27, 1.16, 3.46
FORWARD, WITH_GRADIENT = 2, 4
"""Operations for each entry of a matrix. A backward pass takes as many as a forward pass, and not twice as many as in
training: it gives the gradient of δ and none of the weights."""


@dataclass(frozen=True)
class Tokens:
    """What is run of one fact, on average: in all its contexts, and in the text whose KL is read."""

    run: float
    """From the subject's last token on, at every evaluation."""
    before: float
    """Before it, once for each optimization; what all facts of a context begin with is run once for all, and not
    counted."""
    reads: float
    """Positions at which the head is read, at every evaluation."""
    subject: float
    """Up to the subject's last token, for a key."""
    bare: float
    """The same in the bare prompt alone, for a residual."""

    @classmethod
    def typical(cls, contexts: int = CONTEXTS, suffix: float = _SUFFIX) -> Tokens:
        """Of a fact of CounterFact; with contexts that have something after the prompt, `suffix` is longer."""
        return cls(
            run=contexts * suffix + 1,
            before=contexts * _BEFORE + _ESSENCE,
            reads=contexts * _TARGET + 1,
            subject=contexts * (_BEFORE + 1),
            bare=_BEFORE + 1,
        )

    @classmethod
    def counted(cls, lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> Tokens:
        """Of some facts in some contexts, the bare prompt first, as `values.rows` builds them."""
        rows = optimization_rows(lm, facts, contexts)
        read = SubjectRows.of(lm, facts, contexts)
        before = sum(row.subject for row in rows)
        for context in {row.context for row in rows}:
            texts = [row.ids[: row.subject] for row in rows if row.context == context]
            before -= len(texts) * len(common_beginning(texts))
        n = len(facts)
        return cls(
            run=sum(row.suffix for row in rows) / n,
            before=before / n,
            reads=sum(len(row.targets) or 1 for row in rows) / n,
            subject=sum(map(len, read.rows)) / n,
            bare=sum(map(len, read.bare())) / n,
        )


@dataclass(frozen=True)
class Batch:
    """A batch of facts on a model: what is optimized, read and solved. It is not the first one, so that what earlier
    ones wrote is sent as well."""

    shape: Shape
    facts: int
    tokens: Tokens
    evaluations: int
    """At most; facts that are predicted stop sooner."""
    steps: tuple[Step, ...]
    inside: bool
    """Whether δ lies inside a block, which then runs again as well."""
    shard: int = FACTS_ELSEWHERE
    """How many facts a shard has."""

    @property
    def targets(self) -> list[int]:
        """The layers at which values are optimized: one map over the workers each."""
        return list(dict.fromkeys(step.target_layer for step in self.steps))

    @property
    def written(self) -> list[int]:
        """The layers whose weights are written, ascending."""
        return sorted({step.layer for step in self.steps})

    @property
    def shards(self) -> list[int]:
        """How many facts each shard has."""
        whole, rest = divmod(self.facts, self.shard)
        return [self.shard] * whole + [rest] * bool(rest)

    def value_operations(self, layer: int) -> float:
        """To find the value of one fact at a layer: all evaluations, and what they do not repeat."""
        start = layer - 1 if self.inside else layer
        above = (self.shape.layers - 1 - start) * self.shape.block
        once = FORWARD * ((self.tokens.run + self.tokens.before) * self.shape.through(start))
        once += FORWARD * self.tokens.before * above
        each = WITH_GRADIENT * (self.tokens.run * above + self.tokens.reads * self.shape.head)
        return once + self.evaluations * each

    def reading_operations(self) -> float:
        """To read keys and residuals of all facts, in the driver: once for each write."""
        through = self.shape.through
        keys = self.tokens.subject * sum(through(step.layer) for step in self.steps)
        residuals = self.tokens.bare * sum(through(step.target_layer) for step in self.steps)
        return FORWARD * self.facts * (keys + residuals)

    def solve_operations(self) -> float:
        """To solve every write in float64, in the driver, and to remember its keys: no d_key³ among them."""
        return len(self.steps) * (4 * self.facts + PANEL) * self.shape.d_key**2

    def factor_operations(self) -> float:
        """To factor the second moments of all written layers, once for each process: d_key³/3 a layer."""
        return len(self.written) * self.shape.matrices * self.shape.d_key**3 / 3


@dataclass(frozen=True)
class Pass:
    """A pass over a corpus for the second moments of some layers."""

    shape: Shape
    layers: tuple[int, ...]
    tokens: int

    @property
    def shards(self) -> int:
        """Into how many parts it is cut, whatever the number of workers."""
        return shard_count(self.tokens, self.shape.d_key)

    @property
    def sums(self) -> int:
        """Bytes of the sums of all layers."""
        return len(self.layers) * self.shape.second_moment()

    @property
    def returned(self) -> int:
        """Bytes of what one shard gives: little more than half of the sums, which are symmetric."""
        square = torch.empty(self.shape.d_key, self.shape.d_key, dtype=torch.float64, device="meta")
        return len(self.layers) * self.shape.matrices * sum(band.nbytes for band in bands(square))

    def forward_operations(self) -> float:
        """To run the text up to the last layer that is read."""
        return FORWARD * self.tokens * self.shape.through(max(self.layers))

    def product_operations(self) -> float:
        """To sum k kᵀ in float64, on and below the diagonal."""
        return self.tokens * self.shape.passed * len(self.layers) * self.shape.d_key**2


def batch_of(
    shape: Shape, method: str, facts: int, contexts: int = CONTEXTS, device: str = "cuda", tokens: Tokens | None = None
) -> Batch:
    """A batch that a named method edits, with the layers and settings of the model's preset, or of the nearest one.

    Args:
        device: The kind of device, which decides how many facts a shard has.
        tokens: By default those of CounterFact.

    Raises:
        ValueError: There is no such method, or it optimizes no values, so that workers have nothing to share.
    """
    named = method_named(method)
    _ = named.optimized
    preset = preset_of(shape)
    named = with_settings(named, preset.settings(method))
    steps = named.spread.steps(preset.layers_for(shape.layers, method))
    return Batch(
        shape, facts, tokens or Tokens.typical(contexts), named.optimized.evaluations, tuple(steps),
        named.optimized.inside, facts_at_once(device),
    )  # fmt: skip


def pass_of(batch: Batch, tokens: int | None = None) -> Pass:
    """The pass that the written layers of a batch need, over the preset's tokens by default, or five per dimension."""
    read = tokens or preset_of(batch.shape).corpus_tokens or TOKENS_PER_DIMENSION * batch.shape.d_key
    return Pass(batch.shape, tuple(batch.written), read)


def preset_of(shape: Shape) -> Preset:
    """The preset of a model, or the nearest one, which says nothing of how many tokens to read."""
    # Only the config is read; the rest names the model and gives its sizes.
    model: Any = SimpleNamespace(config=shape.config, name=shape.name, d_value=shape.d_value, num_layers=shape.layers)
    return preset_for(cast("LanguageModel", model))
