"""What a model says of one fact: the scores of its probes and the answers it gives by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from factpatch.evaluation import metrics
from factpatch.evaluation.probabilities import Score


@dataclass(frozen=True)
class Probe:
    """What a model says behind one prompt of the two objects that compete there.

    Attributes:
        prompt: The complete prompt.
        new: The score of the fact's new object.
        true: The score of the true object: the fact's, or the neighbor's own. None where it is not known.
    """

    prompt: str
    new: Score
    true: Score | None

    @property
    def probability_new(self) -> float:
        return self.new.probability

    @property
    def probability_true(self) -> float | None:
        return None if self.true is None else self.true.probability

    @property
    def nll_new(self) -> float:
        """Nats per token."""
        return self.new.nll

    @property
    def nll_true(self) -> float | None:
        """Nats per token."""
        return None if self.true is None else self.true.nll

    @property
    def nlls(self) -> metrics.NllPair:
        return self.nll_new, self.nll_true

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {
            "prompt": self.prompt,
            "probability_new": self.probability_new,
            "probability_true": self.probability_true,
            "nll_new": self.nll_new,
            "nll_true": self.nll_true,
            "matched_new": list(self.new.matched),
            "matched_true": None if self.true is None else list(self.true.matched),
        }


@dataclass(frozen=True)
class Answer:
    """What a model says of a fact by itself: greedily, up to the end of the first sentence or line.

    Attributes:
        form: How it was asked, one of `questions.FORMS`.
        asked: The text that it continues; in a chat, what the user says.
        said: The answer; it may be empty.
    """

    form: str
    asked: str
    said: str

    def to_dict(self) -> dict[str, str]:
        """Return a JSON-able record."""
        return {"form": self.form, "asked": self.asked, "said": self.said}


@dataclass(frozen=True)
class Reading:
    """What a model says of one fact now.

    Attributes:
        rewrite: The edit prompt, filled with the subject.
        paraphrases: The same question in other words, as the fact brings them.
        neighbors: Prompts about other subjects, as the fact brings them. Their true object is their own, their new
            object the fact's.
        answers: What the model says greedily, one answer for each form of the question; none if that was not asked for.
    """

    rewrite: Probe
    paraphrases: tuple[Probe, ...] = ()
    neighbors: tuple[Probe, ...] = ()
    answers: tuple[Answer, ...] = ()

    @property
    def probability_new(self) -> float:
        return self.rewrite.probability_new

    @property
    def probability_true(self) -> float | None:
        return self.rewrite.probability_true

    @property
    def nll_new(self) -> float:
        """Nats per token."""
        return self.rewrite.nll_new

    @property
    def nll_true(self) -> float | None:
        """Nats per token."""
        return self.rewrite.nll_true

    @property
    def answer(self) -> str | None:
        """What the model says greedily behind the edit prompt; None if that was not asked for."""
        return self.said("prompt")

    def said(self, form: str) -> str | None:
        """The answer to one form of the question; None if it was not asked so."""
        return next((answer.said for answer in self.answers if answer.form == form), None)

    @property
    def learned(self) -> bool:
        """Whether the new object is more probable per token than the true one, which is what efficacy counts.

        Without a true object: whether greedy decoding says the new object.
        """
        preferred = metrics.prefers_new(self.rewrite.nlls)
        return self.greedy_match if preferred is None else preferred

    @property
    def greedy_match(self) -> bool:
        """Whether every token of the new object is the most probable one."""
        return self.rewrite.new.greedy

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        rewrite = self.rewrite.to_dict()
        del rewrite["prompt"]
        return {
            **rewrite,
            "learned": self.learned,
            "greedy_match": self.greedy_match,
            "answer": self.answer,
            "answers": [answer.to_dict() for answer in self.answers],
            "paraphrases": [probe.to_dict() for probe in self.paraphrases],
            "neighbors": [probe.to_dict() for probe in self.neighbors],
        }
