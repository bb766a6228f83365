"""What a search has found, and what it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from factpatch.presets import Preset
from factpatch.tuning.candidates import Candidate
from factpatch.tuning.targets import Attempt
from factpatch.tuning.trial import Trial


@dataclass
class Tuning:
    """What a search has found, and what it rests on. It fills while the search goes on."""

    method: str
    attempts: list[Attempt] = field(default_factory=list)
    """Settings of the value optimization."""
    candidates: int = 0
    """How many there were to try; 0 before they are known."""
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
    """The choice, and what one would have begun with, on facts that the search has not seen."""
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
            "value_optimization": [asdict(made) for made in self.attempts],
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
