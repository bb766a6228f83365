"""One edit of probe facts, measured, and undone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from factpatch.editor import Editor
from factpatch.evaluation.metrics import METRICS, SCORED, harmonic_mean, mean_or_none, percent
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.questions import answers
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.verify import verify
from factpatch.facts import Fact
from factpatch.lab.tuning.candidates import Candidate
from factpatch.methods import Method, has_setting, method_named, settings_of, with_settings
from factpatch.model.batching import parts
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import FAILURES
from factpatch.model.replicas import Replicas
from factpatch.pool import Local
from factpatch.statistics.corpus import Corpus
from factpatch.statistics.second_moment import SecondMoment
from factpatch.strategies.solver import Solver
from factpatch.strategies.target import PUBLISHED
from factpatch.values.contexts import check_contexts, contexts_named
from factpatch.values.optimize import TargetValues, optimize_values
from factpatch.values.reading import SubjectRows, read_keys

PERPLEXITY, SAID = "perplexity", "said"
_FORMS = ("question", "chat")
_AT_ONCE = 10


@dataclass(frozen=True)
class Trial:
    """The results of an edit with some settings."""

    candidate: Candidate
    facts: int
    settings: dict[str, Any]
    """What the candidate changes in this model, by dotted name."""
    efficacy: float
    """Percent, as the others; 0 where the edit failed."""
    generalization: float
    specificity: float
    perplexity: float
    """Edited over unedited."""
    seconds: float
    error: str | None = None
    """Why nothing could be edited; None where it could."""
    said: float | None = None
    """How often the new object is said, asked plainly and in a chat; None where it is not asked."""

    @property
    def score(self) -> float:
        """S, the harmonic mean of efficacy, generalization and specificity; or the mean of S and `said`."""
        s = harmonic_mean([self.efficacy, self.generalization, self.specificity]) or 0.0
        return s if self.said is None else (s + self.said) / 2

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {**asdict(self), "score": self.score}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trial:
        """The inverse of `to_dict`, also of what JSON made of it; ValueError if the record lacks something."""
        return _TRIAL.validate_python(record)


_TRIAL = TypeAdapter(Trial)


class Workbench:
    """A model and what all trials on it share: contexts, second moments, value targets, the unedited measurements.

    Args:
        method: The method to be tried; its own settings are the starting point.
        facts: Their keys determine λ or L2 for a share of a residual, in every trial.
        optimize: What finds target values, as `SharedTargets`.
        text: For perplexity; the package's held-out text by default.
        seed: Of the contexts.
        contexts: As those of an editor; by default the model generates them.
        replicas: The model and its copies, among which texts and questions are shared.
    """

    def __init__(
        self,
        lm: LanguageModel,
        method: str | Method,
        corpus: Corpus,
        facts: Sequence[Fact],
        optimize: Callable[..., TargetValues] = optimize_values,
        text: str | None = None,
        seed: int = 0,
        contexts: Sequence[str] | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        self.lm = lm
        self.method = method_named(method) if isinstance(method, str) else method
        self.corpus = corpus
        self.facts = tuple(facts)
        self.text = text
        self.seed = seed
        self.optimize = optimize
        self.replicas = replicas
        self.moments: dict[tuple[int, int], Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.solvers: dict[tuple[Solver, tuple[int, ...], int, float], Solver] = {}
        self.held: dict[int, int] = {}  # how many tokens were there, of those that were asked for
        named = self.method.target.contexts
        self.contexts = contexts_named(lm, named, seed) if contexts is None else check_contexts(contexts)
        self.unedited = perplexity(lm, text)

    def read(self, layers: Sequence[int], tokens: int) -> dict[int, Tensor]:
        """Second moments by layer, each read once."""
        missing = [layer for layer in layers if (layer, tokens) not in self.moments]
        if missing:
            found = SecondMoment.read(self.lm, missing, self.corpus, tokens, replicas=self.replicas)
            self.moments |= {(layer, tokens): moment.matrix for layer, moment in found.items()}
            self.held[tokens] = min(moment.tokens for moment in found.values())
        return {layer: self.moments[layer, tokens] for layer in layers}

    def has_text(self, layers: Sequence[int], tokens: int) -> bool:
        """Whether the corpus has so many tokens; their second moments are read."""
        self.read(layers, tokens)
        return self.held[tokens] >= tokens

    def read_keys(self, layers: Sequence[int]) -> list[Tensor]:
        """The keys of the facts in each layer of the unedited model, (n, d_key); each layer is read once."""
        missing = [layer for layer in layers if layer not in self.keys]
        if missing:
            with torch.inference_mode(), self.lm.quiet():
                subjects = SubjectRows.of(self.lm, self.facts, self.contexts)
                self.keys |= {layer: read_keys(self.lm, subjects, layer).cpu() for layer in missing}
        return [self.keys[layer] for layer in layers]

    def resolve(self, candidate: Candidate, tokens: int, method: Method | None = None) -> Method:
        """The method, or another, with a candidate's settings; λ, or L2 and the threshold, from the facts' keys."""
        method = method or self.method
        method = with_settings(method, {name: value for name, value in candidate.target if has_setting(method, name)})
        layers = sorted({step.layer for step in method.spread.all_steps(candidate.critical_layers)})
        asked = method.solver, tuple(layers), tokens, candidate.written
        if asked not in self.solvers:  # the spectrum of a matrix takes minutes, and many methods have the same solver
            moments, keys = self.read(layers, tokens), self.read_keys(layers)
            self.solvers[asked] = method.solver.scaled([moments[layer] for layer in layers], keys, candidate.written)
        return replace(method, solver=self.solvers[asked])

    def unchanged(self, facts: Sequence[Fact]) -> dict[str, float]:
        """Efficacy, generalization and specificity of the unedited model."""
        return self._metrics(facts)

    def measure(self, candidate: Candidate, facts: Sequence[Fact], tokens: int) -> Trial:
        """Edit the facts in one batch, measure, undo. An edit that fails is a trial of score 0, with its reason."""
        start = time.perf_counter()
        error, method = None, self.method
        numbers: dict[str, Any] = {**dict.fromkeys(SCORED, 0.0), PERPLEXITY: math.inf}
        try:
            method = self.resolve(candidate, tokens)
            numbers = self._edited(method, candidate, facts, tokens)
        except FAILURES as raised:
            error = str(raised)
        settings = {name: value for name, value in _flat(method).items() if value != _flat(self.method).get(name)}
        seconds = time.perf_counter() - start
        return Trial(candidate, len(facts), settings, seconds=seconds, error=error, **numbers)

    def _edited(self, method: Method, candidate: Candidate, facts: Sequence[Fact], tokens: int) -> dict[str, Any]:
        """Edit, measure and undo."""
        editor = Editor(
            self.lm,
            method=method,
            critical_layers=candidate.critical_layers,
            contexts=self.contexts,
            second_moments=self.read(candidate.critical_layers, tokens),
            corpus=self.corpus,
            corpus_tokens=tokens,
            optimize=self.optimize,
            seed=self.seed,
            progress=False,
        )
        try:
            editor.edit(facts)
            ratio = perplexity(self.lm, self.text) / self.unedited
            if math.isnan(ratio):
                raise FloatingPointError("perplexity is not a number")
            return {**self._metrics(facts), SAID: self.said(facts), PERPLEXITY: ratio}
        finally:
            editor.reset()

    def _metrics(self, facts: Sequence[Fact]) -> dict[str, float]:
        summary = verify(self.lm, None, facts, answers=False, replicas=self.replicas).summary()
        return {name: summary[name]["after"] or 0.0 for name in SCORED}

    def said(self, facts: Sequence[Fact]) -> float | None:
        """The share of questions that are answered with the new object, in percent; None if no question was read."""
        if self.method.target.contexts == PUBLISHED:
            return None
        replicas = self.replicas or Replicas(self.lm, Local())
        return percent(mean_or_none(chain.from_iterable(replicas.map(_shares_said, parts(facts, _AT_ONCE)))))


def _shares_said(lm: LanguageModel, facts: Sequence[Fact]) -> list[float | None]:
    """The share of its questions that are answered with the new object, of each fact in each form."""
    readings = [Reading(answers=given) for given in answers(lm, facts, only=_FORMS)]
    return [
        METRICS[f"{form}_contained"](fact, reading)
        for fact, reading in zip(facts, readings, strict=True)
        for form in _FORMS
    ]


def _flat(method: Method) -> dict[str, Any]:
    """Settings by dotted name."""
    return {
        f"{part}.{name}": value
        for part, fields in settings_of(method).items()
        if isinstance(fields, dict)
        for name, value in fields.items()
        if name != "class"
    }
