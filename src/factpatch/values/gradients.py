"""Read keys and gradients at the tokens of answers, for all written layers in one forward and backward pass.

The output y of a layer's down-projection gets a δ of zeros at every position that predicts a token of the answer. What
the NLL does with δ it would do with y, so ∂NLL/∂δ is the gradient, and no parameter needs one:

    The capital of Finland is | Rome      x, the input of the projection, is read where "is" stands,
                              δ           which predicts "Rome"; so is ∂NLL/∂δ
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.batching import consecutive
from factpatch.model.experts import token_rows
from factpatch.model.hooks import adding, captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.packed import PackedRow, Packing, Pool, packed_attention, run_packed
from factpatch.model.precision import Precision, computing
from factpatch.strategies.spread import Step
from factpatch.values.contexts import BARE
from factpatch.values.descent import LOSS_SCALES
from factpatch.values.rows import optimization_rows

TOKENS_AT_ONCE = 1024
"""Tokens in a pass, all of which stay in memory for the backward pass; what does not fit is halved."""


class Text(NamedTuple):
    """Tokens, of which the last ones are asked for what follows them."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    """The token after each of the last positions."""


@dataclass(frozen=True)
class Gradients:
    """What was read at the positions that predict a token, text after text."""

    keys: Tensor
    """x, (rows, d_key)"""
    slopes: Tensor
    """∂NLL/∂y, (rows, d_value), in nats per unit of the activation; the NLL is summed over all rows."""


def read_gradients(
    lm: LanguageModel, texts: Sequence[Text], layers: Sequence[int], precision: Precision
) -> dict[int, Gradients]:
    """Read keys and gradients of some layers' down-projections at all positions that predict a target.

    The model stays as it was. Texts do not see each other, and how they are batched affects the result by rounding
    only.

    Raises:
        OutOfMemoryError: Memory does not suffice for a single text.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].ids))
    found: list[tuple[Tensor, Tensor]] = []
    # A caller's inference mode would leave no gradients.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        lm.quiet(),
        packed_attention(lm),
        computing(lm, replace(precision, compiled=False)) as lm,
    ):

        def read(some: Sequence[int]) -> tuple[Tensor, Tensor]:
            return _read(lm, [texts[index] for index in some], layers)

        for batch in consecutive(order, lambda index: len(texts[index].ids), TOKENS_AT_ONCE):
            found += [rows for _, rows in in_pieces(read, batch)]
    keys, slopes = (torch.cat(parts) for parts in zip(*found, strict=True))
    places = torch.tensor([index for index in order for _ in texts[index].targets]).argsort(stable=True)
    keys, slopes = (rows[places.to(rows.device)] for rows in (keys, slopes))
    return {layer: Gradients(keys[:, index], slopes[:, index]) for index, layer in enumerate(layers)}


def _read(lm: LanguageModel, texts: Sequence[Text], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys, (rows, layers, d_key), and gradients, (rows, layers, d_value), in the work dtype."""
    packing = Packing([PackedRow(len(text.ids)) for text in texts], lm.stream_dtype, lm.device)
    ids = torch.tensor([token for text in texts for token in text.ids])
    ends = (packing.last + 1).tolist()
    read = [range(end - len(text.targets), end) for text, end in zip(texts, ends, strict=True)]
    places = torch.tensor([place for some in read for place in some], device=lm.device)
    targets = torch.tensor([target for text in texts for target in text.targets], device=lm.device)
    modules = {layer: lm.down_projection(layer) for layer in layers}
    scales = LOSS_SCALES if lm.dtype == torch.float16 else (1.0,)
    for scale in scales:
        delta = torch.zeros(
            len(places), len(layers), lm.d_value, dtype=lm.work_dtype, device=lm.device, requires_grad=True
        )
        with captured(inputs=modules) as inputs, adding(list(modules.values()), places, delta):
            last = run_packed(lm, packing, Pool(), ids=ids)[0]
        # A model spread over devices ends on another device than it begins.
        chosen = lm.log_probabilities(last[places.to(last.device)]).gather(1, targets.to(last.device)[:, None])
        (slope,) = torch.autograd.grad(-scale * chosen.sum(), delta)
        if bool(torch.isfinite(slope).all()):
            break
    keys = [token_rows(inputs[layer]) for layer in layers]
    return torch.stack([some[places.to(some.device)].to(delta) for some in keys], dim=1).detach(), slope / scale


@dataclass(frozen=True)
class AnswerRows:
    """What the steps of a method that follows gradients write of a batch: a row per token of an answer.

    All of it is read at once, on the weights at the time when the first step asks for it.
    """

    texts: tuple[Text, ...]
    asked: tuple[Fact, ...]
    """The fact of each text."""
    layers: tuple[int, ...]
    """All that will be written."""
    precision: Precision
    _found: dict[int, Gradients] = field(default_factory=dict)

    @classmethod
    def of(cls, lm: LanguageModel, facts: Sequence[Fact], layers: Sequence[int], precision: Precision) -> AnswerRows:
        """The answers of facts after their bare prompts; ValueError for one to forget with nothing in its place."""
        silenced = [fact for fact in facts if fact.forget == "silence"]
        if silenced:
            raise ValueError(
                f"forget={silenced[0].forget!r} of {silenced[0].text!r}: the method follows the gradient of an answer, "
                "and there is none to give; give target_new, words that refuse, or take a method that optimizes values."
            )
        rows = [row for row in optimization_rows(lm, facts, (BARE,)) if row.targets]
        texts, asked = (Text(row.ids, row.targets) for row in rows), (facts[row.fact] for row in rows)
        return cls(tuple(texts), tuple(asked), tuple(layers), precision)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The fact of each row."""
        return tuple(fact for text, fact in zip(self.texts, self.asked, strict=True) for _ in text.targets)

    def keys(self, lm: LanguageModel, layer: int) -> Tensor:
        """The keys of all rows, (rows, d_key)."""
        return self._read(lm)[layer].keys

    def residual(self, lm: LanguageModel, step: Step, wanted: object) -> Tensor:
        """The negative gradient at the step's layer, (rows, d_value), times its share."""
        return -step.share * self._read(lm)[step.layer].slopes

    def between(self, lm: LanguageModel, layer: int) -> None:
        """None: every token of an answer is a row."""

    def inputs(self, lm: LanguageModel, layers: Sequence[int], prompts: bool = False) -> NoReturn:
        raise ValueError("solver: neurons are aimed at subjects, and a method that follows gradients has none.")

    def _read(self, lm: LanguageModel) -> dict[int, Gradients]:
        if not self._found:
            self._found.update(read_gradients(lm, self.texts, self.layers, self.precision))
        return self._found
