"""The search: value targets first, then layers and weights by successive halving, then text for the statistics."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from factpatch.corpus import Corpus
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.presets import Preset
from factpatch.second_moment import TOKENS_PER_DIMENSION
from factpatch.tuning.candidates import Candidate, grid, windows
from factpatch.tuning.halving import best_of, halving
from factpatch.tuning.preset import preset_from
from factpatch.tuning.targets import Attempt, attempts
from factpatch.tuning.trial import Trial, Workbench

logger = logging.getLogger(__name__)

STEPS = 20
"""Evaluations of the value optimization at most; published settings have 20 and 25."""
MOST_PERPLEXITY = 1.03
"""Edited over unedited, after one batch of probe facts."""
NEAR = 1.0
"""Points of S that probe facts hardly tell apart."""
FEWEST = 12
"""Probe facts that a search needs at least: it keeps a third aside to check the result."""
MOST = 40
"""Probe facts that the search edits at most."""
FOR_TARGETS = 8
# Parts of the time for the search of layers and weights; the rest is for statistics and the check.
SEARCH = 0.75
MULTIPLES = (5, 20)
# Fewer tokens per key dimension harm the model: docs/results.md.
LEAST = 5


@dataclass
class Tuning:
    """What a search has found, and what it rests on. It fills while the search goes on."""

    method: str
    attempts: list[Attempt] = field(default_factory=list)
    """Settings of the value optimization."""
    trials: list[Trial] = field(default_factory=list)
    """Edits of probe facts, in the order in which they were made."""
    chosen: Candidate | None = None
    tokens: int = 0
    """Text for the second moment."""
    statistics: list[tuple[int, Trial]] = field(default_factory=list)
    """The choice with other amounts of text."""
    unedited: dict[str, float] = field(default_factory=dict)
    """Efficacy, generalization and specificity of the unedited model on the facts kept aside."""
    checked: list[tuple[str, Trial]] = field(default_factory=list)
    """The choice, and what one would have begun with, on facts that the search has not seen."""
    preset: Preset | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {
            "method": self.method,
            "value_optimization": [asdict(made) for made in self.attempts],
            "trials": [trial.to_dict() for trial in self.trials],
            "statistics": [{"tokens": tokens, **trial.to_dict()} for tokens, trial in self.statistics],
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "corpus_tokens": self.tokens,
            "unedited": self.unedited,
            "checked": [{"what": what, **trial.to_dict()} for what, trial in self.checked],
            "seconds": self.seconds,
        }


def tune(
    lm: LanguageModel,
    facts: Sequence[Fact],
    corpus: Corpus,
    folder: Path,
    *,
    method: str = "memit-blue",
    minutes: float = 20.0,
    layers: Sequence[tuple[int, ...]] | None = None,
    most_perplexity: float = MOST_PERPLEXITY,
    steps: int = STEPS,
    text: str | None = None,
    seed: int = 0,
    changed: Callable[[Tuning, str], None] = lambda tuning, stage: None,
) -> Tuning:
    """Find settings for a model by editing probe facts.

    Nothing is taken from any preset. The model is as it was afterwards.

    Args:
        facts: probe facts with a true object, paraphrases and neighbors, which are asked and never optimized on. Not
            the facts that will be edited: what is measured on those would flatter. A third is kept aside for the check.
        corpus: ordinary text for second moments.
        folder: where value targets are kept; a search that was interrupted finds them there.
        minutes: what the search may take; a trial that has begun is finished.
        layers: windows of critical layers to try, the most likely one first; by default `windows`.
        most_perplexity: on ordinary text, edited over unedited.
        changed: called whenever something has been found, with the stage.

    Raises:
        ValueError: too few facts have what is asked for, or no edit succeeded.
    """
    start = time.monotonic()
    facts = usable(facts)
    mixed = random.Random(seed).sample(facts, len(facts))
    aside, searched = mixed[: len(mixed) // 3], mixed[len(mixed) // 3 :][:MOST]
    bench = Workbench(lm, method, corpus, searched, folder, text, seed)
    found = Tuning(method, tokens=TOKENS_PER_DIMENSION * lm.d_key)
    choices = [tuple(window) for window in layers] if layers else windows(lm.num_layers)
    every = sorted({layer for window in choices for layer in window})
    if not bench.has_text(every, found.tokens):  # one pass for all windows
        found.tokens = bench.held[found.tokens]
        if found.tokens < LEAST * lm.d_key:
            raise ValueError(
                f"corpus: it holds {found.tokens} tokens, and the second moment of {lm.d_key} key dimensions needs "
                f"{TOKENS_PER_DIMENSION * lm.d_key}, about; give a longer text."
            )
        bench.read(every, found.tokens)

    def order(trials: Sequence[Trial]) -> list[Trial]:
        return best_of(trials, most_perplexity, NEAR)

    def tried(trial: Trial) -> None:
        found.trials.append(trial)
        changed(found, "layers and weights")

    def attempted(made: Attempt) -> None:
        found.attempts.append(made)
        changed(found, "value optimization")

    ends = sorted({choices[0][0], choices[0][-1]})
    targets = attempts(bench, ends, searched[:FOR_TARGETS], steps, attempted)[:2]
    candidates = grid(choices, [made.settings for made in targets])
    left = 60 * minutes - (time.monotonic() - start)
    ranked = halving(
        candidates, searched, lambda one, some: bench.measure(one, some, found.tokens), order, SEARCH * left, tried
    )
    best = ranked[0]
    if best.error is not None:
        raise ValueError(f"no settings edited the probe facts; the last attempt failed with: {best.error}")
    if best.perplexity > most_perplexity:
        logger.warning(
            "no settings kept perplexity below %.3f times that of the unedited model; the nearest are chosen",
            most_perplexity,
        )
    found.chosen = best.candidate
    found.statistics = [(found.tokens, best)]
    for multiple in MULTIPLES:
        tokens = multiple * lm.d_key
        if not bench.has_text(best.candidate.critical_layers, tokens):
            continue
        trial = bench.measure(best.candidate, searched[: best.facts], tokens)
        found.statistics.append((tokens, trial))
        changed(found, "text for the statistics")
    found.tokens = enough_tokens(found.statistics, order)
    found.unedited = bench.unchanged(aside)
    for what, candidate in {"chosen": best.candidate, "without a search": candidates[0]}.items():
        found.checked.append((what, bench.measure(candidate, aside, found.tokens)))
        changed(found, "check")
    found.seconds = time.monotonic() - start
    found.preset = preset_from(bench, found.chosen, found.tokens, source(found))
    return found


def usable(facts: Sequence[Fact]) -> list[Fact]:
    """The facts that a search can be measured on.

    Raises:
        ValueError: there are fewer than `FEWEST`.
    """
    complete = [fact for fact in facts if fact.target_true and fact.paraphrases and fact.neighbors]
    if len(complete) < FEWEST:
        raise ValueError(
            f"facts: {len(complete)} of {len(facts)} have a true object, paraphrases and neighbors; a search needs "
            f"{FEWEST} at least. CounterFact has all of it: docs/data.md."
        )
    return complete


def enough_tokens(trials: Sequence[tuple[int, Trial]], order: Callable[[Sequence[Trial]], list[Trial]]) -> int:
    """The least text whose trial is as good as the best, where good includes perplexity."""
    best = order([trial for _, trial in trials])[0]
    good = [
        tokens
        for tokens, trial in trials
        if trial.error is None
        and trial.score >= best.score - NEAR
        and trial.perplexity - 1 <= 1.1 * max(best.perplexity - 1, 0.001)
    ]
    return min(good)


def source(found: Tuning) -> str:
    """What a preset's numbers rest on, in words."""
    (_, checked), *_ = found.checked
    return (
        f"factpatch tune: {found.method} on {found.trials[-1].facts} probe facts; S {checked.score:.1f} and perplexity "
        f"x {checked.perplexity:.3f} on {checked.facts} others"
    )
