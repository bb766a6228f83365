"""What an editor's solver knows of ordinary text: one memory for each written layer, read on first use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from factpatch.data import demo_facts
from factpatch.model.findings import Findings
from factpatch.model.language_model import LanguageModel
from factpatch.model.places import layer_list, name_of
from factpatch.model.precision import Precision
from factpatch.model.replicas import Replicas
from factpatch.model.weights import content_hash
from factpatch.presets.preset import Preset
from factpatch.statistics.corpus import Corpus, corpus_from
from factpatch.statistics.ordinary import warm
from factpatch.statistics.second_moment import TOKENS_PER_DIMENSION, CorpusError, SecondMoment, no_corpus
from factpatch.strategies.experts import RoutedKeys
from factpatch.strategies.memory import Memory
from factpatch.strategies.solver import WRITTEN, Solver, no_experts
from factpatch.support.progress import bar
from factpatch.values.reading import SubjectRows, read_keys

logger = logging.getLogger(__name__)
Contexts = Callable[[], Sequence[str]]
_SETTINGS = TypeAdapter(dict[str, Any])


@dataclass
class Prepared:
    """The memories of a solver in the layers that are written.

    Raises:
        ValueError: A second moment is needed, and no suitable text is given.
    """

    lm: LanguageModel
    """The unedited model."""
    solver: Solver
    """The solver that the memories are for."""
    layers: list[int]
    """All layers that are written, ascending."""
    preset: Preset
    """Says how many tokens to read, and whether the shipped text is good enough."""
    precision: Precision
    """Of gradients on ordinary text."""
    corpus: str | Sequence[str] | Corpus | None = None
    """Text for second moments; None for the shipped one."""
    tokens: int | None = None
    """How many of its tokens to read; by default the preset's number, or five per key dimension."""
    moments: dict[int, Tensor] = field(default_factory=dict)
    """Second moments that no memory has taken yet, by place; see `SecondMoment.matrix`."""
    underived: bool = False
    """Whether to derive the solver's settings from the model's own keys."""
    progress: bool = True
    """Show progress bars."""
    replicas: Replicas | None = None
    """The model and its copies, among which the reading of second moments is shared."""
    findings: Findings | None = None
    """What is known of the model, where settings that are derived are kept."""

    def __post_init__(self) -> None:
        given = {name_of(place): content_hash(moment) for place, moment in self.moments.items()}
        self.about: dict[str, Any] = {"corpus": "given as matrices", "sha256": given}
        """The origin of the second moments, JSON-able."""
        self.counts: dict[int, Tensor] = {}
        """How many tokens each expert saw, (experts,), by layer with a router."""
        self._memories: dict[int, Memory] = {}
        self._check_corpus()

    def for_layers(self, layers: Sequence[int]) -> Prepared:
        """The same for other layers: what was read is shared, what was remembered of batches is not."""
        made = copy(self)
        made.layers = sorted(layers)
        made.moments = dict(self.moments)
        made._memories = {layer: memory.fresh() for layer, memory in self._memories.items()}
        made._check_corpus()
        return made

    def memory(self, layer: int) -> Memory:
        """The memory of a layer; call `read` first."""
        return self._memories[layer]

    def read(self, contexts: Contexts, layers: Sequence[int] = (), edited: bool = False) -> None:
        """Prepare the memories of all written layers and of these.

        Args:
            contexts: Called for the contexts of keys, if settings are to be derived from keys.
            edited: Whether the model holds edits, so that nothing can be read.

        Raises:
            ValueError: Something has to be read and the model is edited, or the corpus is too short.
        """
        layers = sorted({*self.layers, *layers})
        missing = [layer for layer in layers if layer not in self._memories]
        places = [place for layer in missing for place in self.solver.reads(layer)]
        unread = [place for place in places if place not in self.moments]
        if edited and (unread or (missing and self.solver.ordinary_tokens)):
            raise ValueError(
                f"{layer_list(unread or missing)}: there are no statistics yet, and the model is edited already; they "
                "are of the unedited model."
            )
        if unread:
            found = self._read_moments(unread)
            self.moments |= {layer: moment.matrix for layer, moment in found.items()}
            self.counts |= {layer: moment.counts for layer, moment in found.items() if moment.counts is not None}
        if self.underived and missing:
            self._scale(contexts())
        made = {layer: self._made(layer) for layer in missing}
        if made and self.solver.ordinary_tokens:
            self._warm(made)
        self._memories |= made
        for place in places:
            self.moments.pop(place, None)  # only now, so that it survives an error for the next attempt

    def _made(self, layer: int) -> Memory:
        moment = self.moments.get(layer)
        made = self.solver.memory_in(layer, self.moments)
        if self.solver.reads_corpus and moment is not None and moment.dim() == 3:
            if not isinstance(made, RoutedKeys):
                raise no_experts(self.solver, f"layer {layer}")
            made.systems.counts = self.counts.get(layer)
        return made

    def _warm(self, memories: Mapping[int, Memory]) -> None:
        """Let memories learn from ordinary text, as the unedited model reads it."""
        corpus = corpus_from(self.corpus)
        tokens = self.solver.ordinary_tokens
        read = self.solver.ordinary.value
        with bar(f"reading {read} on ordinary text", tokens, self.progress) as advance:
            warm(self.lm, memories, self.solver, corpus, self.precision, advance)
        learned = {"corpus": corpus.identity, f"{read.removesuffix('s')}_tokens": tokens}
        self.about = {**self.about, "searched": learned} if self.solver.reads_corpus else learned

    def _check_corpus(self) -> None:
        if (
            not (self.solver.reads_corpus or self.solver.ordinary_tokens)
            or self.corpus is not None
            or self.preset.shipped_corpus
        ):
            return
        unread = [layer for layer in self.layers if layer not in self._memories]
        if self.solver.ordinary_tokens or not {one for layer in unread for one in self.solver.reads(layer)} <= {
            *self.moments
        }:
            raise ValueError(no_corpus(self.lm))

    def _scale(self, contexts: Sequence[str]) -> None:
        """Derive the solver's settings from the model's own keys, those of the demo's facts."""
        moments = [self.moments[layer] for layer in self.layers] if self.solver.reads_corpus else []
        solver: Any = self.solver  # a dataclass, as all of them are

        def derived() -> dict[str, Any]:
            with torch.inference_mode(), self.lm.quiet():
                subjects = SubjectRows.of(self.lm, demo_facts(), contexts)
                keys = [read_keys(self.lm, subjects, layer).cpu() for layer in self.layers]
            return asdict(solver.scaled(moments, keys, WRITTEN))

        if self.findings is None:
            settings = derived()
        else:
            read = [content_hash(moment) for moment in moments]
            about = [type(solver).__name__, asdict(solver), WRITTEN, self.layers, list(contexts), read]
            settings = self.findings.get("solver", about, _SETTINGS, derived)
        self.underived = False
        if settings == asdict(solver):  # it derives nothing
            return
        self.solver = replace(solver, **settings)
        numbers = ", ".join(f"solver.{name}={value:.4g}" for name, value in settings.items())
        logger.info("solver settings derived from the keys of %s: %s", self.lm.name, numbers)

    def _read_moments(self, layers: Sequence[int]) -> dict[int, SecondMoment]:
        corpus = corpus_from(self.corpus)
        tokens = self.tokens or self.preset.corpus_tokens or TOKENS_PER_DIMENSION * self.lm.d_key
        with bar("reading the second moment", tokens, self.progress) as advance:
            moments = SecondMoment.read(self.lm, layers, corpus, tokens, progress=advance, replicas=self.replicas)
        read = min(moment.tokens for moment in moments.values())
        if read < self.lm.d_key:
            raise CorpusError(
                f"corpus: it holds {read} tokens, fewer than the {self.lm.d_key} dimensions of a key, so directions in "
                "common use would count as unused; give a longer text."
            )
        self.about = {"corpus": corpus.identity, "corpus_tokens": read}
        return moments
