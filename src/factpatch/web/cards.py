"""What both models say of each fact, as cards for people: what was not learned comes first, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from factpatch.evaluation.metrics import METRICS, agrees, neighbor_right, said
from factpatch.evaluation.readings import Probe, Reading
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact

Pair = tuple[float | None, float | None]
"""Probabilities by the original and by the edited model."""


@dataclass(frozen=True)
class Asked:
    """A text that asked about the fact, and what both models said freely."""

    form: str
    asked: str
    said: tuple[str, str]


@dataclass(frozen=True)
class Probed:
    """A paraphrase or a neighbor: how likely both models find an answer there."""

    prompt: str
    answer: str
    """The neighbor's own; empty for a paraphrase, which asks for the fact's."""
    shares: Pair
    kind: str
    """Of the bar: "new" or "old"."""
    good: bool
    """Whether the paraphrase agrees with the edit, or the neighbor stays as it was."""


@dataclass(frozen=True)
class Card:
    """A fact before and after."""

    fact: Fact
    learned: bool
    reason: str
    """Why it is not learned; empty if it is."""
    answers: tuple[Asked, ...]
    """The first one continues the prompt."""
    bars: tuple[tuple[str, str, Pair], ...]
    """An answer, the kind of its bar, and its probabilities."""
    paraphrases: tuple[Probed, ...]
    neighbors: tuple[Probed, ...]

    @property
    def agree(self) -> int:
        """How many paraphrases agree."""
        return sum(one.good for one in self.paraphrases)

    @property
    def moved(self) -> int:
        """How many neighbors do not stay as they were."""
        return sum(not one.good for one in self.neighbors)


def cards(verification: Verification | None) -> list[Card]:
    """Return a card for each fact, those that were not learned first."""
    if verification is None or verification.before is None:
        return []
    triples = zip(verification.facts, verification.before, verification.after, strict=True)
    return sorted((_card(*triple) for triple in triples), key=lambda card: card.learned)


def _card(fact: Fact, before: Reading, after: Reading) -> Card:
    learned = said(fact, after)
    pairs = zip(before.answers, after.answers, strict=True)
    bars = [] if fact.forget else [(fact.target_new, "new", (before.probability_new, after.probability_new))]
    if fact.other is not None:
        bars.append((fact.other, "old", (before.probability_true, after.probability_true)))
    return Card(
        fact=fact,
        learned=learned,
        reason="" if learned else reason(fact, after),
        answers=tuple(Asked(now.form, now.asked, (then.said, now.said)) for then, now in pairs),
        bars=tuple(bars),
        paraphrases=tuple(_paraphrase(fact, *two) for two in zip(before.paraphrases, after.paraphrases, strict=True)),
        neighbors=tuple(_neighbors(fact, before.neighbors, after.neighbors)),
    )


def reason(fact: Fact, now: Reading) -> str:
    """Say why a fact counts as not learned, from what the model says now."""
    answer, new = now.answer or "nothing", fact.target_new
    if fact.forget:
        return f"The model still says “{fact.target_true}”; its own answer is “{answer}”."
    if now.exact:
        return f"Every word of “{new}” is the likeliest one after the prompt, but the model's own answer is “{answer}”."
    preferred = METRICS["efficacy"](fact, now)
    if preferred:
        return f"“{new}” is now likelier than “{fact.other}”, but something else is likelier still: “{answer}”."
    if preferred is not None:
        return f"“{fact.other}” is still likelier than “{new}”; the model's own answer is “{answer}”."
    return f"“{new}” is not the likeliest answer; the model's own answer is “{answer}”."


def _paraphrase(fact: Fact, then: Probe, now: Probe) -> Probed:
    return Probed(now.prompt, "", (then.probability_new, now.probability_new), "new", agrees(fact, now))


def _neighbors(fact: Fact, before: Sequence[Probe], after: Sequence[Probe]) -> list[Probed]:
    """The neighbors whose own answer is not the fact's new one, which says nothing."""
    triples = zip(fact.neighbors, before, after, strict=True)
    return [
        Probed(
            now.prompt,
            neighbor.target_true,
            (then.probability_true, now.probability_true),
            "old",
            # One that was wrong before cannot be moved.
            bool(neighbor_right(fact, now)) or not neighbor_right(fact, then),
        )
        for neighbor, then, now in triples
        if now.true is not None
    ]
