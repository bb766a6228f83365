"""Single facts taken back: whether their questions are answered as before any edit, and what became of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from factpatch.evaluation.metrics import said
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.verify import Verification, bare, verify
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel


@dataclass(frozen=True)
class TakenBack:
    """What taking facts back did to a model."""

    batches: int
    """How many batches were solved again; one that lost all of its facts is not among them."""
    gone: Verification | None = None
    """The facts that were taken back, "before" on the unedited model; None if the model was not asked."""
    others: Verification | None = None
    """The facts in force now, "before" with those that were taken back; None if there are none, or not asked."""

    @property
    def differing(self) -> list[Fact]:
        """The facts taken back whose prompts the model does not answer as the unedited one does."""
        return [fact for fact, was, now in _pairs(self.gone) if was.answer != now.answer]

    @property
    def lost(self) -> list[Fact]:
        """The other facts that were said, or exact, and are not any more."""
        return [
            fact
            for fact, was, now in _pairs(self.others)
            if (was.exact and not now.exact and not fact.forget) or (said(fact, was) and not said(fact, now))
        ]

    def counts(self) -> dict[str, tuple[int, int]]:
        """How many of the other facts were and are "said" and, of those that are not to be forgotten, "exact"."""
        pairs = _pairs(self.others)
        taught = [(was, now) for fact, was, now in pairs if not fact.forget]
        return {
            "said": (sum(said(fact, was) for fact, was, _ in pairs), sum(said(fact, now) for fact, _, now in pairs)),
            "exact": (sum(bool(was.exact) for was, _ in taught), sum(bool(now.exact) for _, now in taught)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {
            "batches": self.batches,
            "gone": None if self.gone is None else self.gone.to_dict()["facts"],
            "others": None if self.others is None else self.others.to_dict()["facts"],
            "differing": [fact.to_dict() for fact in self.differing],
            "lost": [fact.to_dict() for fact in self.lost],
        }


def ask_bare(lm: LanguageModel, facts: Sequence[Fact], before: Verification | None = None) -> Verification | None:
    """As `verify`, without paraphrases and neighbors; None without facts."""
    return verify(lm, None, bare(facts), before) if facts else None


def _pairs(verification: Verification | None) -> list[tuple[Fact, Reading, Reading]]:
    if verification is None or verification.before is None:
        return []
    return list(zip(verification.facts, verification.before, verification.after, strict=True))
