"""The directory of a search: what is in it, and that it is about the same model, facts and settings.

search.json    what is searched, and with which versions
targets/       value targets
trials/        every edit that was measured, so that a search that was interrupted does not measure it again
tuning.json    what the preset rests on
preset.yaml    what was found
tradeoff.svg   S against perplexity
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from factpatch.directory import ResultDirectory
from factpatch.facts import Fact, identity
from factpatch.files import write_json
from factpatch.plots import plot_tradeoff
from factpatch.presets.written import save_preset
from factpatch.tuning.candidates import Candidate
from factpatch.tuning.result import Tuning
from factpatch.tuning.trial import Trial

logger = logging.getLogger(__name__)

PRESET, EVIDENCE, PLOT = "preset.yaml", "tuning.json", "tradeoff.svg"


class TuningDirectory(ResultDirectory):
    """A directory that a search is kept in."""

    holds, record, folders = "a search", "search.json", ("targets", "trials")

    @property
    def targets(self) -> Path:
        """Where value targets are kept."""
        return self.path / "targets"

    def trial(self, candidate: Candidate, facts: Sequence[Fact], tokens: int, measure: Callable[[], Trial]) -> Trial:
        """A trial: read if it is there, else made and kept, unless it failed: memory may be free again.

        Raises:
            DirectoryError: a file cannot be read.
        """
        about = json.dumps([asdict(candidate), identity(facts), tokens], sort_keys=True)
        file = self.path / "trials" / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
        if not file.is_file():
            made = measure()
            if made.error is None:
                write_json(file, made.to_dict())
            return made
        return self.read(file, Trial.from_dict)

    def write(self, found: Tuning) -> None:
        """Write what there is so far; each file appears whole.

        While a search goes on, the preset of an earlier one and what it rests on stay beside each other.

        Raises:
            OSError: a file cannot be written.
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
    """What stands above the preset's numbers."""
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
        lines.append(
            f"{what}: S {trial.score:.1f} (efficacy {trial.efficacy:.1f}, generalization {trial.generalization:.1f}, "
            f"specificity {trial.specificity:.1f}), perplexity x {trial.perplexity:.3f}, {trial.facts} facts kept aside"
        )
    return lines
