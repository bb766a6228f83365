"""Views: which contexts of a fact share a value and a key.

The published way gives a fact one value, and one key: half of it from the bare prompt, half from the prefixed ones.
That fails where the subject begins a text without BOS. All later tokens attend to the first one, whose activations are
like no other's: for "Azerbaijan" in layer 4 of SmolLM2-135M, the key of the bare prompt and the mean of the prefixed
keys have a cosine of 0.08, and their sum serves only the longer one. Such a fact gets two views,

    bare         Azerbaijan is in the continent of                 a value and a key
    prefixed     The … . Azerbaijan is in the continent of, …      a value and a key

each optimized in its own contexts. If the subject is the first token alone, its bare key differs too little from the
keys of all other first tokens: in layer 4, "France" and "Germany" have a cosine of 0.87, and writing to one would write
to the other. Only in the first layer, before attention has made them alike, can they be told apart. There such a bare
view is written, before the steps of the method, and the values of other first tokens are preserved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.tokens import tokenize
from factpatch.strategies.spread import Step
from factpatch.strategies.target import HiddenState, Target
from factpatch.values.optimize import TargetValues
from factpatch.values.reading import SubjectRows, read_keys, read_last, read_values

FIRST_LAYER = 0
# The hidden state after the first layer is short and has to move by more than its own length. Chosen on twelve facts
# such as "Germany is located in the continent of Africa", which belong to no data set.
FIRST_CLAMP, FIRST_RATE, FIRST_STEPS = 4.0, 1.0, 25
FIRST_STEP = Step(FIRST_LAYER, FIRST_LAYER, 1.0)
PRESERVED = 512
"""About how many tokens of the vocabulary keep their values as first tokens."""


@dataclass(frozen=True)
class View:
    """Facts and contexts that share a value and a key for each fact."""

    facts: tuple[Fact, ...]
    contexts: tuple[str, ...]
    rows: tuple[int, ...]
    """Where the value and the key of each fact stand among those of all views."""
    subjects: SubjectRows

    @classmethod
    def of(
        cls, lm: LanguageModel, facts: Sequence[Fact], chosen: Sequence[int], contexts: Sequence[str],
        rows: Sequence[int],
    ) -> View:  # fmt: skip
        some = tuple(facts[index] for index in chosen)
        return cls(some, tuple(contexts), tuple(rows), SubjectRows.of(lm, some, contexts))


@dataclass(frozen=True)
class Views:
    """What one step writes: row i is of fact i of the batch, and second views follow after the last fact."""

    parts: tuple[View, ...]
    target: Target
    """What is optimized."""

    def keys(self, lm: LanguageModel, layer: int) -> Tensor:
        """The keys of all rows, (rows, d_key)."""
        return self._joined([read_keys(lm, view.subjects, layer) for view in self.parts])

    def values(self, lm: LanguageModel, layer: int) -> Tensor:
        """The present values of all rows, (rows, d_value)."""
        return self._joined([read_values(lm, view.subjects, layer, self.target.site) for view in self.parts])

    def joined(self, parts: Sequence[TargetValues]) -> TargetValues:
        """Join what was found for each view."""
        names = [field.name for field in fields(TargetValues)]
        return TargetValues(**{name: self._joined([getattr(part, name) for part in parts]) for name in names})

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        rows = torch.tensor([row for view in self.parts for row in view.rows])
        return torch.cat(list(parts))[rows.argsort().to(parts[0].device)]


def without_bos(lm: LanguageModel) -> bool:
    """Whether a text begins with its own first token, and with neither BOS nor a chat's template."""
    return not lm.frame.chat and not tokenize(lm.tokenizer, [""])[0]


def views_of(
    lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str], target: Target, apart: bool
) -> tuple[Views, Views | None]:
    """Return what the steps of the method write of a batch and, if there is any, what is written to the first layer.

    Args:
        contexts: The bare prompt first.
        target: What the steps of the method optimize.
        apart: Whether the bare prompt may have a view of its own; see `Target.apart`.
    """
    every = range(len(facts))
    bare, prefixed = contexts[:1], contexts[1:]
    if not apart or not prefixed or not without_bos(lm):
        return Views((View.of(lm, facts, every, contexts, every),), target), None
    alone = {index for index, row in enumerate(SubjectRows.of(lm, facts, bare).rows) if len(row) == 1}
    begin = [index for index in every if facts[index].subject_start == 0]
    first = [index for index in begin if index in alone]
    split = [index for index in begin if index not in alone]
    whole = [index for index in every if index not in begin]
    second = range(len(facts), len(facts) + len(split))
    parts = (
        (whole, contexts, whole),
        (split, bare, split),
        ([*split, *first], prefixed, [*second, *first]),
    )
    main = Views(tuple(View.of(lm, facts, chosen, within, rows) for chosen, within, rows in parts if chosen), target)
    if not first:
        return main, None
    # The output of the layer, whatever the method optimizes in others.
    output = HiddenState(FIRST_STEPS, FIRST_RATE, FIRST_CLAMP, target.weight_decay, target.kl_factor, target.stop_loss)
    return main, Views((View.of(lm, facts, first, bare, range(len(first))),), output)


def other_first_tokens(lm: LanguageModel) -> Tensor:
    """Return keys in the first layer of tokens that begin a text, (n, d_key): evenly spaced in the vocabulary."""
    size = min(len(lm.tokenizer), lm.model.get_input_embeddings().weight.shape[0])
    special = set(lm.tokenizer.all_special_ids)
    ids = [token for token in range(0, size, max(1, size // PRESERVED)) if token not in special]
    return read_last(lm, [[token] for token in ids], FIRST_LAYER, "down_projection", "inputs")
