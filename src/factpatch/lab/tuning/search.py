"""The search: value targets first, then layers and weights by successive halving, then text for the statistics."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from factpatch.evaluation.metrics import comparable
from factpatch.evaluation.verify import usable
from factpatch.facts import Fact, identity
from factpatch.lab.tuning.candidates import SHARES, Candidate, grid, windows
from factpatch.lab.tuning.directory import Tuning, TuningDirectory, preset_from
from factpatch.lab.tuning.targets import Attempt, attempts, usual_settings
from factpatch.lab.tuning.trial import Trial, Workbench
from factpatch.methods import Method, method_named, settings_of
from factpatch.model.language_model import LanguageModel
from factpatch.model.replicas import Replicas
from factpatch.model.weights import model_hash
from factpatch.pool import Pool
from factpatch.presets.preset import preset_for
from factpatch.statistics.corpus import Corpus, corpus_from
from factpatch.statistics.second_moment import no_corpus
from factpatch.values.contexts import ASKED, contexts_named
from factpatch.values.shared import SharedTargets

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
# Of the time that is left when each of these begins: value targets, layers and weights, text for the statistics. What
# is then left, at least a tenth of the time from the value targets on, is kept back for the check.
TARGETS, SEARCH, STATISTICS = 0.25, 0.75, 0.4
MULTIPLES = (5, 20)
# Tokens per key dimension that all candidates are tried with (arXiv:2506.04226); fewer and more are tried for the best.
TOKENS = 10
# Fewer tokens per key dimension harm the model: docs/results.md.
LEAST = 5
# Of each round one in so many survives, on this many times as many facts. Source: arXiv:1502.07943, with η = 3.
KEPT = 3
GROWTH = 2
ROUNDS = 3

Order = Callable[[Sequence[Trial]], list[Trial]]
"""Puts trials in the order of preference."""


def tune(
    lm: LanguageModel,
    facts: Sequence[Fact],
    corpus: Corpus | str | Path | None,
    folder: str | Path,
    *,
    exclude: Sequence[Fact] = (),
    method: str = "memit-blue",
    minutes: float = 20.0,
    layers: Sequence[tuple[int, ...]] | None = None,
    most_perplexity: float = MOST_PERPLEXITY,
    steps: int = STEPS,
    text: str | None = None,
    seed: int = 0,
    changed: Callable[[Tuning, str], None] = lambda tuning, stage: None,
    pool: Pool | None = None,
) -> Tuning:
    """Find settings for a model by editing probe facts.

    No number is taken from any preset. The model is as it was afterwards.

    Args:
        facts: Probe facts with a true object, paraphrases and neighbors, not those that will be edited: results on
            those would flatter. A third is kept aside for the check. Unusable ones are left out, with a warning.
        corpus: Ordinary text for second moments, as `corpus_from` takes it; None for the text that the package ships,
            of a model whose preset says that it is good enough.
        folder: A directory, see `factpatch.lab.tuning.directory`: new, or with measurements of the same search.
        exclude: Facts whose subjects are not probed.
        minutes: The time of the search. What has begun is finished; afterwards only what a preset requires begins: one
            attempt, one trial, and the check of the choice.
        layers: Windows of critical layers to try, the most likely one first; by default `windows`.
        most_perplexity: On ordinary text, edited over unedited.
        changed: Called after every result, with the stage.
        pool: Workers among which the facts of each trial and the text are shared, each with a copy of the model. Their
            number changes no result; but without any, results are rounded otherwise and have another directory.

    Raises:
        ValueError: Too few facts have what is asked for, no edit succeeded, or the directory holds something else.
        OSError: The directory cannot be written.
    """
    start = time.monotonic()
    facts = probes(facts, exclude)
    corpus, row = _text_from(corpus, lm), _fitted(method_named(method), lm)
    contexts = contexts_named(lm, row.target.contexts, seed)
    facts = _usable(lm, facts, contexts)
    mixed = random.Random(seed).sample(facts, len(facts))
    aside, searched = mixed[: len(mixed) // 3], mixed[len(mixed) // 3 :][:MOST]
    choices = [tuple(window) for window in layers] if layers else windows(lm.num_layers)
    replicas = None if pool is None else Replicas(lm, pool)
    about = _about(lm, facts, corpus, text, replicas, method=settings_of(row), layers=choices, steps=steps,
                   most_perplexity=most_perplexity, seed=seed)  # fmt: skip
    directory = TuningDirectory(folder, about)
    with directory.locked():
        targets = SharedTargets(directory.path / "targets", about["weights"], replicas)
        bench = Workbench(lm, row, corpus, searched, targets, text, seed, contexts, replicas)
        found = Tuning(bench.method.name, tokens=TOKENS * lm.d_key)
        _Search(bench, directory, start + 60 * minutes, most_perplexity, steps, changed, found).run(choices, aside)
        found.seconds = time.monotonic() - start
        directory.write(found)
    return found


def _text_from(corpus: Corpus | str | Path | None, lm: LanguageModel) -> Corpus:
    if corpus is None and not preset_for(lm).shipped_corpus:
        raise ValueError(no_corpus(lm))
    return corpus_from(corpus)


def _fitted(row: Method, lm: LanguageModel) -> Method:
    """The method for a model: one with a chat template is asked in chats and with questions, so it reads these too."""
    if lm.turn is None or lm.frame.chat:
        return row
    return replace(row, target=replace(row.optimized, contexts=ASKED, shortest=True))


@dataclass
class _Search:
    """One search: its stages share the bench, the clock, and what was found."""

    bench: Workbench
    directory: TuningDirectory
    end: float
    """When the time is over, by `time.monotonic`."""
    most_perplexity: float
    steps: int
    changed: Callable[[Tuning, str], None]
    found: Tuning

    def run(self, choices: Sequence[tuple[int, ...]], aside: Sequence[Fact]) -> None:
        """Search windows of critical layers, and check the choice on facts kept aside."""
        found = self.found
        self._read_statistics(sorted({layer for window in choices for layer in window}))
        found.unedited = self.bench.unchanged(aside)
        targets = self._targets(sorted({choices[0][0], choices[0][-1]}))
        best = self._best(grid(choices, [made.settings for made in targets[:2]]))
        found.chosen, found.facts = best.candidate, best.facts
        self._statistics(best)
        usual = Candidate(choices[0], tuple(usual_settings(self.bench.method, self.steps).items()), SHARES[0])
        for what, candidate in (("chosen", best.candidate), ("without a search", usual)):
            if not found.checked or time.monotonic() < self.end:
                self._add("check", found.checked, (what, self._measure(candidate, aside)))
        failed = found.checked[0][1].error
        if failed is not None:
            logger.warning("the choice could not be checked on the facts kept aside: %s", failed)
        found.preset = preset_from(self.bench, found.chosen, found.tokens, found.source)

    def _until(self, share: float) -> float:
        """When a share of the time that is left will have passed."""
        return time.monotonic() + share * (self.end - time.monotonic())

    def _add(self, stage: str, to: list[Any], result: Any) -> None:
        """Keep a result and report it."""
        to.append(result)
        self.directory.write(self.found)
        self.changed(self.found, stage)

    def _measure(self, candidate: Candidate, facts: Sequence[Fact], tokens: int | None = None) -> Trial:
        tokens = self.found.tokens if tokens is None else tokens
        return self.directory.trial(candidate, facts, tokens, lambda: self.bench.measure(candidate, facts, tokens))

    def _order(self, trials: Sequence[Trial]) -> list[Trial]:
        return best_of(trials, self.most_perplexity, NEAR)

    def _read_statistics(self, layers: Sequence[int]) -> None:
        """Second moments for all windows, in one pass."""
        bench, found, wide = self.bench, self.found, self.bench.lm.d_key
        if bench.has_text(layers, found.tokens):
            return
        found.tokens = bench.held[found.tokens]
        if found.tokens < LEAST * wide:
            raise ValueError(
                f"corpus: it holds {found.tokens} tokens, and the second moment of {wide} key dimensions needs about "
                f"{TOKENS * wide}; give a longer text."
            )
        bench.read(layers, found.tokens)

    def _targets(self, layers: Sequence[int]) -> list[Attempt]:
        tried = partial(self._add, "value optimization", self.found.attempts)
        facts = self.bench.facts[:FOR_TARGETS]
        return attempts(self.bench, layers, facts, self.steps, self._until(TARGETS), tried)

    def _best(self, candidates: Sequence[Candidate]) -> Trial:
        found = self.found
        found.candidates = len(candidates)
        tried = partial(self._add, "layers and weights", found.trials)
        best = halving(candidates, self.bench.facts, self._measure, self._order, self._until(SEARCH), tried)[0]
        if best.error is not None:
            raise ValueError(f"no settings edited the probe facts; the last attempt failed with: {best.error}")
        if found.tried < found.candidates:
            logger.warning(
                "the time sufficed for %d of %d candidates; give more minutes, fewer facts or fewer windows of layers",
                found.tried, found.candidates,
            )  # fmt: skip
        if best.perplexity > self.most_perplexity:
            logger.warning(
                "no settings kept perplexity below %.3f times that of the unedited model; the nearest are chosen",
                self.most_perplexity,
            )
        return best

    def _statistics(self, best: Trial) -> None:
        """Edit again with other amounts of text, as long as there is time and text."""
        bench, found, until = self.bench, self.found, self._until(STATISTICS)
        found.statistics = [(found.tokens, best)]
        for tokens in (multiple * bench.lm.d_key for multiple in MULTIPLES):
            if time.monotonic() < until and bench.has_text(best.candidate.critical_layers, tokens):
                trial = self._measure(best.candidate, bench.facts[: best.facts], tokens)
                self._add("text for the statistics", found.statistics, (tokens, trial))
        found.tokens = enough_tokens(found.statistics, self._order)


def probes(facts: Sequence[Fact], exclude: Sequence[Fact] = ()) -> list[Fact]:
    """The facts that a search can be measured on, without those whose subject, in whatever case, is excluded.

    Raises:
        ValueError: There are fewer than `FEWEST`.
    """
    subjects = {fact.subject.casefold() for fact in exclude}
    left = [fact for fact in facts if fact.subject.casefold() not in subjects]
    complete = [fact for fact in left if fact.other and comparable(fact) and fact.paraphrases and fact.neighbors]
    excluded = len(facts) - len(left)
    what = "have a true object other than the new one, no long answer, paraphrases and neighbors"
    _check_enough(complete, f"{what} and are not excluded ({excluded} are)" if excluded else what, len(facts))
    return complete


def _about(
    lm: LanguageModel,
    facts: Sequence[Fact],
    corpus: Corpus,
    text: str | None,
    replicas: Replicas | None,
    **more: Any,
) -> dict[str, Any]:
    """What a search depends on, JSON-able."""
    return {
        "model": lm.name,
        "weights": model_hash(lm.model),
        "dtype": str(lm.dtype),
        "frame": repr(lm.frame),
        "facts": identity(facts),
        "corpus": corpus.identity,
        "perplexity_text": None if text is None else hashlib.sha256(text.encode()).hexdigest(),
        # What is computed in shards differs by rounding.
        **({} if replicas is None else {"workers": True}),
        **more,
    }


def _usable(lm: LanguageModel, facts: Sequence[Fact], contexts: Sequence[str]) -> list[Fact]:
    """The facts that the model can be edited on and asked."""
    found, left_out = usable(lm, facts, contexts)
    for reason in left_out:
        logger.warning("%s", reason)
    _check_enough(found, "can be edited and asked", len(facts))
    return found


def _check_enough(facts: Sequence[Fact], what: str, given: int) -> None:
    if len(facts) < FEWEST:
        raise ValueError(
            f"facts: {len(facts)} of {given} {what}; a search needs at least {FEWEST}. CounterFact has all that it "
            "takes: docs/data.md."
        )


def enough_tokens(trials: Sequence[tuple[int, Trial]], order: Order) -> int:
    """The least text whose trial is as good as the best, where good includes perplexity."""
    best = order([trial for _, trial in trials])[0]
    return min(
        tokens
        for tokens, trial in trials
        if trial.error is None
        and trial.score >= best.score - NEAR
        and trial.perplexity - 1 <= 1.1 * max(best.perplexity - 1, 0.001)
    )


def best_of(trials: Sequence[Trial], most_perplexity: float, near: float) -> list[Trial]:
    """Trials in the order of preference.

    First those that keep to the perplexity allowed. Among these, those within `near` points of the best S count as
    equally good, since so few facts do not tell them apart, and the one with the lowest perplexity is preferred; the
    others follow by S. Trials over the limit come last, by perplexity.

    Args:
        most_perplexity: Edited over unedited.
        near: Points of S.
    """
    allowed = [trial for trial in trials if trial.error is None and trial.perplexity <= most_perplexity]
    highest = max((trial.score for trial in allowed), default=0.0)

    def rank(trial: Trial) -> tuple[int, float]:
        if trial not in allowed:
            return 2, trial.perplexity
        return (0, trial.perplexity) if trial.score >= highest - near else (1, -trial.score)

    return sorted(trials, key=rank)


def halving(
    candidates: Sequence[Candidate],
    facts: Sequence[Fact],
    measure: Callable[[Candidate, Sequence[Fact]], Trial],
    order: Order,
    until: float,
    tried: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Measure candidates in rounds and return the trials of the last round that has any that succeeded, best first.

    Args:
        candidates: The most usual first. Where time runs out, those at the end are not tried.
        facts: The last round takes all of them, each round before it `GROWTH` times fewer.
        measure: Makes a trial.
        order: Puts trials in the order of preference.
        until: When, by `time.monotonic`, all rounds should be over; each gets an equal part of the time, and what
            earlier ones left. A trial that has begun is finished, and none begins afterwards but the first of all.
        tried: Called after each trial.
    """
    best: list[Trial] = []
    for left in range(ROUNDS, 0, -1):
        part = facts[: max(2, len(facts) // GROWTH ** (left - 1))]
        stop = time.monotonic() + (until - time.monotonic()) / left
        trials: list[Trial] = []
        longest = 0.0
        for candidate in candidates:
            begin = time.monotonic()
            if begin + longest > stop and (best or trials):
                break
            trials.append(measure(candidate, part))
            tried(trials[-1])
            longest = max(longest, time.monotonic() - begin)
        if best and all(trial.error is not None for trial in trials):  # or there are none
            break
        best = order(trials)
        candidates = [trial.candidate for trial in best[: max(1, len(best) // KEPT)]]
    return best
