"""The directory of a search.

search.json    what is searched, and with which versions
targets/       value targets
trials/        every edit that was measured, so that a search that resumes does not measure it again
tuning.json    what the preset rests on
preset.yaml    what was found
tradeoff.svg   S against perplexity
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import PurePath
from typing import Any

from factpatch.facts import Fact, identity
from factpatch.lab.drawing.shapes import plot_tradeoff
from factpatch.lab.tuning.candidates import Candidate
from factpatch.lab.tuning.targets import Attempt
from factpatch.lab.tuning.trial import Trial, Workbench
from factpatch.methods import METHODS, Method, settings_of
from factpatch.presets.own_methods import own_methods
from factpatch.presets.preset import Match, Preset, preset_for, save_preset
from factpatch.statistics.corpus import corpus_from
from factpatch.strategies.target import PUBLISHED
from factpatch.support.directory import ResultDirectory
from factpatch.support.files import write_json

logger = logging.getLogger(__name__)

PRESET, EVIDENCE, PLOT = "preset.yaml", "tuning.json", "tradeoff.svg"


class TuningDirectory(ResultDirectory):
    """A directory that keeps a search."""

    holds, record_name = "a search", "search.json"

    def trial(self, candidate: Candidate, facts: Sequence[Fact], tokens: int, measure: Callable[[], Trial]) -> Trial:
        """Return a trial: read it if it was kept, else measure it. A failed one is not kept: memory may be free later.

        Raises:
            DirectoryError: The trial's file cannot be read.
        """
        about = json.dumps([asdict(candidate), identity(facts), tokens], sort_keys=True)
        file = self.path / "trials" / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
        if not file.is_file():
            made = measure()
            if made.error is None:
                file.parent.mkdir(exist_ok=True)
                write_json(file, made.to_dict())
            return made
        return self.read(file, Trial.from_dict)

    def write(self, found: Tuning) -> None:
        """Write what was found so far; each file appears whole.

        During a search, the preset of an earlier one stays, and so does the record of what it rests on.

        Raises:
            OSError: A file cannot be written.
        """
        preset = self.path / PRESET
        if found.preset is None and preset.exists():
            return
        write_json(self.path / EVIDENCE, {**found.to_dict(), "about": self.about})
        if found.preset is not None:
            save_preset(preset, found.preset, remarks(found))
            self._plot(found, found.preset.model)

    def _plot(self, found: Tuning, model: str) -> None:
        last = [trial for trial in found.trials if trial.error is None and trial.facts == found.facts]
        try:
            plot_tradeoff(
                self.path / PLOT,
                [(100 * (trial.perplexity - 1), trial.score) for trial in last],
                [trial.candidate == found.chosen for trial in last],
                f"{model}, {found.method}, {found.facts} facts",
            )
        except ImportError as error:
            logger.warning("no plot: %s", error)


def remarks(found: Tuning) -> list[str]:
    """The comment above the preset's numbers."""
    lines = [
        f"Written by factpatch tune, which measured {found.method}. The rows of other methods are derived: the same",
        "layers and value optimization, and weights that write the same share of a residual.",
        f"Candidates tried: {found.tried} of {found.candidates}.",
        "",
    ]
    for what, trial in found.checked:
        if trial.error is not None:
            lines.append(f"{what}: the edit of {trial.facts} facts kept aside failed: {trial.error}")
            continue
        score, said = ("S", "") if trial.said is None else ("score", f", said {trial.said:.1f}")
        lines.append(
            f"{what}: {score} {trial.score:.1f} (efficacy {trial.efficacy:.1f}, "
            f"generalization {trial.generalization:.1f}, specificity {trial.specificity:.1f}{said}), "
            f"perplexity x {trial.perplexity:.3f}, {trial.facts} facts kept aside"
        )
    return lines


def preset_from(bench: Workbench, chosen: Candidate, tokens: int, source: str) -> Preset:
    """A preset with a row for every method.

    The method that was searched has what was chosen. The others have the same critical layers and value optimization,
    and weights that write the same share of a residual (`Solver.scaled`): that is derived, not measured.
    """
    rows = {}
    # A preset with a row for a method that other processes do not know could not be read there.
    others = {name: method for name, method in METHODS.items() if name not in own_methods(METHODS)}
    for name, method in {**others, bench.method.name: bench.method}.items():
        solver = bench.resolve(chosen, tokens, method).solver
        settings = settings_of(replace(method, solver=solver))["solver"]
        rows[name] = {f"solver.{field}": _rounded(value) for field, value in settings.items() if field != "class"}
    known: dict[str, Any] = {field.name: getattr(bench.lm.config, field.name, None) for field in fields(Match)}
    return Preset(
        model=PurePath(bench.lm.name).name or "model",
        match=Match(**known),
        critical_layers=list(chosen.critical_layers),
        source=source,
        corpus_tokens=tokens,
        # Whether the numbers rest on the text of the package, and it is good enough for this model.
        shipped_corpus=preset_for(bench.lm).shipped_corpus and bench.corpus.identity == corpus_from(None).identity,
        common={**dict(chosen.target), **_read(bench.method)},
        methods=rows,
    )


def _read(method: Method) -> dict[str, Any]:
    """How a method reads texts, apart from what is searched."""
    target = method.optimized
    if target.contexts == PUBLISHED:
        return {}
    return {"target.contexts": list(target.contexts), "target.shortest": target.shortest}


def _rounded(value: Any) -> Any:
    """A derived number has three digits."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


@dataclass
class Tuning:
    """What a search has found, and what it rests on. It fills during the search."""

    method: str
    attempts: list[Attempt] = field(default_factory=list)
    """Settings of the value optimization."""
    candidates: int = 0
    """How many there are to try; 0 before they are known."""
    trials: list[Trial] = field(default_factory=list)
    """Edits of probe facts, in the order in which they were made."""
    chosen: Candidate | None = None
    facts: int = 0
    """How many facts were edited in the trials from which the choice was made."""
    tokens: int = 0
    """Text for the second moment."""
    statistics: list[tuple[int, Trial]] = field(default_factory=list)
    """The choice with other amounts of text."""
    unedited: dict[str, float] = field(default_factory=dict)
    """Efficacy, generalization and specificity of the unedited model on the facts kept aside."""
    checked: list[tuple[str, Trial]] = field(default_factory=list)
    """The choice, and the usual settings, on facts that the search has not seen."""
    preset: Preset | None = None
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """How many of the candidates were tried."""
        return len({trial.candidate for trial in self.trials})

    @property
    def source(self) -> str:
        """What a preset's numbers rest on, in words."""
        (_, checked), *_ = self.checked
        said = (
            f"factpatch tune: {self.method} on {self.facts} probe facts, {self.tried} of {self.candidates} candidates "
            "tried; "
        )
        if checked.error is not None:
            return f"{said}not checked, since the edit of {checked.facts} others failed: {checked.error}"
        return f"{said}S {checked.score:.1f} and perplexity x {checked.perplexity:.3f} on {checked.facts} others"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record."""
        return {
            "method": self.method,
            "value_optimization": [asdict(attempt) for attempt in self.attempts],
            "candidates": self.candidates,
            "tried": self.tried,
            "trials": [trial.to_dict() for trial in self.trials],
            "statistics": [{"tokens": tokens, **trial.to_dict()} for tokens, trial in self.statistics],
            "facts": self.facts,
            "chosen": None if self.chosen is None else asdict(self.chosen),
            "corpus_tokens": self.tokens,
            "unedited": self.unedited,
            "checked": [{"what": what, **trial.to_dict()} for what, trial in self.checked],
            "seconds": self.seconds,
        }
