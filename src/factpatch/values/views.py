"""Views: in which contexts a fact has its value and its key.

The published way gives a fact one value, and one key: half of it from the bare prompt, half from the prefixed ones.
That fails where the subject is a single token and begins a text without BOS. All tokens attend to the first one of a
text, whose activations are like no other's: for "France" in layer 4 of SmolLM2-135M, the key of the bare prompt has a
norm of 0.76 and the prefixed keys one of 3.6, with a cosine of 0.13. Their mean serves the prefixed prompts alone. Nor
would a key of its own help there, since those of all first tokens are alike: "France" and "Germany" have a cosine of
0.94 in layer 4 and of 0.999 in layer 8, and writing to one would write to the other. Only in the first layer, before
attention has made them alike, can they be told apart. So such a fact is edited in two places,

    bare         France is in the continent of                     the first layer, before all others
    prefixed     The … . France is in the continent of, …          the layers of the method

each with a value and a key of its own contexts; in the first layer, the values of other first tokens are preserved.

Facts whose answer is to be forgotten, with nothing in its place, have a view too: what is optimized for them is another
target, see `factpatch.strategies.target.Silence`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.model.precision import Precision
from factpatch.model.tokens import tokenize
from factpatch.strategies.memory import ENDING, Inputs
from factpatch.strategies.spread import Step
from factpatch.strategies.target import HiddenState, Silence, Target
from factpatch.values.chunks import Anchors, check_anchors
from factpatch.values.gradients import AnswerRows
from factpatch.values.optimize import TargetValues
from factpatch.values.reading import SubjectRows, read_keys, read_last, read_last_in, read_values

FIRST_LAYER = 0
# The hidden state after the first layer is short and has to move by more than its own length. Chosen on twelve facts
# such as "Germany is located in the continent of Africa", which belong to no data set.
FIRST_CLAMP, FIRST_RATE, FIRST_STEPS = 4.0, 1.0, 25
# A ridge regression writes less than the residual, and here nothing comes after it that makes up for the rest.
FIRST_STEP = Step(FIRST_LAYER, FIRST_LAYER, 1.2)
PRESERVED = 512
"""About how many tokens of the vocabulary keep their values as first tokens."""


Contexts = Sequence[str]
"""Templates, the bare prompt first."""


class Rows(Protocol):
    """What the steps of a method write of a batch: rows with a key and a residual each."""

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The fact of each row."""

    def keys(self, lm: LanguageModel, layer: int) -> Tensor:
        """The keys of all rows, (rows, d_key)."""

    def residual(self, lm: LanguageModel, step: Step, wanted: WantedValues) -> Tensor:
        """How the outputs are to move in a step, (rows, d_value); `wanted` finds values where a row leads to one."""

    def between(self, lm: LanguageModel, layer: int) -> Tensor | None:
        """The keys of further tokens of the batch that are to keep their values, (n, d_key); None if there are none."""

    def inputs(self, lm: LanguageModel, layers: Sequence[int], prompts: bool = False) -> dict[int, list[Inputs]]:
        """What the MLPs of layers get where the key of each row is read, in each of its contexts.

        Args:
            prompts: Whether to add what they get where each prompt ends, unless the batch has long answers.
        """


@dataclass(frozen=True)
class View:
    """Facts that share their contexts and what is optimized: each has a value and a key, or one for each chunk."""

    facts: tuple[Fact, ...]
    contexts: tuple[str, ...]
    rows: tuple[int, ...]
    """The places of these facts among all that the step writes; as many of each as its answer has chunks."""
    anchors: Anchors
    target: Target
    """What is optimized."""

    @property
    def subjects(self) -> SubjectRows:
        return self.anchors.subjects

    @property
    def fact_of_row(self) -> list[Fact]:
        return [fact for fact, _ in self.chunk_of_row]

    @property
    def chunk_of_row(self) -> list[tuple[Fact, int]]:
        """The fact of each row, and the place of the row's chunk in its answer."""
        counts = zip(self.facts, self.anchors.counts, strict=True)
        return [(fact, chunk) for fact, count in counts for chunk in range(count)]


@dataclass(frozen=True)
class Views:
    """What one step writes: one row for each fact, in their order, or one for each chunk of its answer."""

    parts: tuple[View, ...]

    @classmethod
    def of(
        cls, lm: LanguageModel, facts: Sequence[Fact], target: Target, within: Sequence[tuple[Sequence[int], Contexts]]
    ) -> Views:
        """The views of some facts, by their places, in some contexts; those apart whose answers are silenced."""
        parts: list[tuple[list[int], Contexts, Target, Anchors]] = []
        for places, contexts in within:
            taught = [place for place in places if facts[place].forget != "silence"]
            silenced = [place for place in places if facts[place].forget == "silence"]
            for some, wanted in ((taught, target), (silenced, Silence.like(target))):
                if some:
                    anchors = Anchors.of(lm, [facts[place] for place in some], contexts, wanted)
                    parts.append((some, contexts, wanted, anchors))
        counts: dict[int, int] = {}
        for some, *_, anchors in parts:
            counts |= zip(some, anchors.counts, strict=True)
        order = sorted(counts)
        starts = dict(zip(order, accumulate((counts[place] for place in order), initial=0), strict=False))
        return cls(
            tuple(
                View(
                    tuple(facts[place] for place in some),
                    tuple(contexts),
                    tuple(starts[place] + number for place in some for number in range(counts[place])),
                    anchors,
                    wanted,
                )
                for some, contexts, wanted, anchors in parts
            )
        )

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The fact of each row."""
        of_row = {row: fact for view in self.parts for row, fact in zip(view.rows, view.fact_of_row, strict=True)}
        return tuple(of_row[row] for row in sorted(of_row))

    def between(self, lm: LanguageModel, layer: int) -> Tensor | None:
        """The keys of tokens of long answers that are no anchors, (n, d_key); they are to keep their values."""
        texts = [text for view in self.parts for text in view.anchors.between]
        return read_last(lm, texts, layer, "down_projection", "inputs") if texts else None

    def inputs(self, lm: LanguageModel, layers: Sequence[int], prompts: bool = False) -> dict[int, list[Inputs]]:
        """What the MLPs of layers get at the subject's last token of each row, in each of its contexts.

        Args:
            prompts: Whether to add what they get where each prompt ends, unless the batch has long answers.
        """
        texts: dict[int, list[list[int]]] = {}
        about: dict[int, int] = {}
        for view in self.parts:
            within = [view.subjects.rows, *([view.subjects.whole] if prompts and view.subjects.whole else [])]
            for place, (row, (fact, chunk)) in enumerate(zip(view.rows, view.chunk_of_row, strict=True)):
                some = slice(place * len(view.contexts), (place + 1) * len(view.contexts))
                texts[row] = [ids for part in within for ids in part[some]]
                about[row] = _number(f"{fact.key} {chunk}" if chunk else fact.subject.casefold())
        ordered = sorted(texts)
        read = read_last_in(lm, [ids for row in ordered for ids in texts[row]], layers, "mlp", "inputs")
        ends = [torch.tensor([_ending(ids) for ids in texts[row]]) for row in ordered]
        numbers = [torch.tensor([about[row]] * len(texts[row])) for row in ordered]
        counts = [len(texts[row]) for row in ordered]
        return {
            layer: [Inputs(*each) for each in zip(torch.split(values, counts), ends, numbers, strict=True)]
            for layer, values in read.items()
        }

    def keys(self, lm: LanguageModel, layer: int) -> Tensor:
        """The keys of all rows, (rows, d_key)."""
        return self._joined([read_keys(lm, view.subjects, layer) for view in self.parts])

    def residual(self, lm: LanguageModel, step: Step, wanted: WantedValues) -> Tensor:
        """The step's share of what is left between the present values and the wanted ones, (rows, d_value)."""
        values = wanted(self, step.target_layer)
        present = self.values(lm, step.target_layer)
        return step.share * (values.to(present.device) - present)

    def values(self, lm: LanguageModel, layer: int) -> Tensor:
        """The present values of all rows, (rows, d_value)."""
        return self._joined([read_values(lm, view.subjects, layer, view.target.site) for view in self.parts])

    def joined(self, parts: Sequence[TargetValues]) -> TargetValues:
        """Join what was found for each view."""
        return TargetValues.joined(parts, self._joined)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if len(parts) == 1:
            return parts[0]
        rows = torch.tensor([row for view in self.parts for row in view.rows])
        return torch.cat(list(parts))[rows.argsort().to(parts[0].device)]


@dataclass(frozen=True)
class RowsInLayer:
    """What a batch is to change in one layer; see `factpatch.strategies.memory.LayerRows`."""

    lm: LanguageModel
    rows: Rows
    layer: int
    keys: Tensor
    residual: Tensor

    def inputs(self) -> list[Inputs]:
        return self.rows.inputs(self.lm, [self.layer])[self.layer]

    def weight(self, place: int) -> Tensor:
        return self.lm.weight(place)

    def names_subject(self, row: int, ends: Tensor) -> Tensor:
        subject = self.rows.facts[row].subject
        ids = [[one for one in end if one >= 0] for end in ends.tolist()]
        decode = partial(self.lm.tokenizer.batch_decode, clean_up_tokenization_spaces=False)
        texts = zip(decode(ids), decode([some[:-1] for some in ids]), strict=True)
        return torch.tensor([_ends_with(text, len(before), subject) for text, before in texts], dtype=torch.bool)

    def activation(self, gates: Tensor) -> Tensor:
        activate: Any = self.lm.mlp(self.layer).act_fn
        activated: Tensor = activate(gates)
        return activated


def _ends_with(text: str, before: int, subject: str) -> bool:
    """Whether a subject, as words of their own, ends in the last token of a text, which begins after `before`."""
    text, subject = text.casefold(), subject.casefold()
    if len(text) <= len(subject):  # only the end of a long subject is in sight
        return subject.endswith(text)
    start = text.rfind(subject)
    end = start + len(subject)
    return start >= 0 and end > before and not text[:start][-1:].isalnum() and not text[end:][:1].isalnum()


def _number(words: str) -> int:
    """A number for words, the same in all processes, and not 0."""
    return 1 + int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")


def _ending(ids: Sequence[int]) -> list[int]:
    """The last `ENDING` tokens of a text, with −1 before it begins."""
    return [*[-1] * (ENDING - len(ids)), *ids[-ENDING:]]


WantedValues = Callable[[Views, int], Tensor]
"""Returns the target values of views at a layer, (rows, d_value), optimized on first use and then remembered."""


@dataclass(frozen=True)
class BatchReaders:
    """The ways to read a batch: each returns what the steps of the method write of it, and what the first layer gets.

    See `factpatch.strategies.target.Readers`.
    """

    lm: LanguageModel
    facts: Sequence[Fact]
    contexts: Sequence[str]
    """The bare prompt first."""
    apart: bool
    """Whether first tokens are edited apart; see `Target.apart`."""
    layers: Sequence[int]
    """All that the steps of the method write."""
    precision: Precision
    """Of gradients."""

    def toward_values(self, target: Target) -> tuple[Rows, Views | None]:
        main, first = views_of(self.lm, self.facts, self.contexts, target, self.apart)
        written = self.layers if first is None else [FIRST_LAYER, *self.layers]
        check_anchors(self.lm, [view.anchors for view in main.parts], written)
        return main, first

    def against_gradients(self) -> tuple[Rows, Views | None]:
        return AnswerRows.of(self.lm, self.facts, self.layers, self.precision), None


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
        apart: Whether first tokens are edited apart; see `Target.apart`.
    """
    every = range(len(facts))
    bare, prefixed = contexts[:1], contexts[1:]
    alone: list[int] = []
    if apart and prefixed and without_bos(lm):
        alone = [row for row, ids in enumerate(SubjectRows.of(lm, facts, bare).rows) if len(ids) == 1]
    main = Views.of(lm, facts, target, (([row for row in every if row not in alone], contexts), (alone, prefixed)))
    if not alone:
        return main, None
    first = tuple(facts[row] for row in alone)
    # The output of the layer, whatever the method optimizes in others.
    block = HiddenState(
        FIRST_STEPS,
        FIRST_RATE,
        FIRST_CLAMP,
        target.weight_decay,
        target.kl_factor,
        target.stop_loss,
        enough_margin=target.enough_margin,
        forgotten=target.forgotten,
    )
    output = block if lm.architecture.between is None else block.inner
    return main, Views.of(lm, first, output, ((range(len(first)), bare),))


def other_first_tokens(lm: LanguageModel, first: Views) -> tuple[int, ...]:
    """Return tokens that are to keep their values where they begin a text: evenly spaced in the vocabulary.

    Args:
        first: What is written to the first layer; its own tokens are left out.
    """
    size = min(len(lm.tokenizer), lm.model.get_input_embeddings().weight.shape[0])
    left_out = {*lm.tokenizer.all_special_ids, *(ids[0] for view in first.parts for ids in view.subjects.rows)}
    return tuple(token for token in range(0, size, max(1, size // PRESERVED)) if token not in left_out)


def first_token_keys(lm: LanguageModel, tokens: Sequence[int]) -> Tensor:
    """Return the keys in the first layer of tokens that begin a text, (n, d_key)."""
    return read_last(lm, [[token] for token in tokens], FIRST_LAYER, "down_projection", "inputs")
