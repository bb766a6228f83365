"""What a model says of one fact: the scores of its probes and the answers it gives freely."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

FORMS = ("prompt", "question", "chat", "chat_system", "chat_later")
"""How a model is asked: with the edit prompt, which it continues; with a question; with the question in a chat, as it
begins by default, after another system turn, and after an exchange about something else."""


_SCORES = ("probability_new", "probability_true", "nll_new", "nll_true", "matched_new", "matched_true")
"""What a probe's record says besides its prompt."""


@dataclass(frozen=True)
class Score:
    """How probable a model finds one target after one prompt.

    Attributes:
        nll: Mean nats per target token.
        probability: Probability of the whole target, in [0, 1]: exp of the summed log probabilities of its tokens.
        matched: For each token of the target whether it is the most probable one, given the prompt and the tokens
            before it.
    """

    nll: float
    probability: float
    matched: tuple[bool, ...]

    @property
    def greedy(self) -> bool:
        """Whether every token of the target is the most probable one: greedy decoding would give the target."""
        return all(self.matched)


@dataclass(frozen=True)
class Probe:
    """How probable a model finds, after one prompt, the two objects that compete there.

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
    def prefers_new(self) -> bool | None:
        """Whether the new object has the lower NLL; a tie is no success. None without a true object."""
        return None if self.true is None else self.new.nll < self.true.nll

    @property
    def prefers_true(self) -> bool | None:
        """Whether the true object has the lower NLL; a tie is no success. None without a true object."""
        return None if self.true is None else self.true.nll < self.new.nll

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
    """What a model answers freely: greedily, up to the end of the first sentence or line.

    Attributes:
        form: How it was asked, one of `FORMS`.
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
class Reversal:
    """How probable a model finds the subject as the answer to the reversed question.

    Attributes:
        asked: The question about the new object.
        new: The score of the subject there.
        asked_true: The question about the true object; None where that is not known.
        true: The score of the subject there.
    """

    asked: str
    new: Score
    asked_true: str | None = None
    true: Score | None = None

    @property
    def prefers_new(self) -> bool | None:
        """Whether the subject has the lower NLL after the new object; None without a true one."""
        return None if self.true is None else self.new.nll < self.true.nll

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record, NLL in nats per token of the subject."""
        true = None if self.true is None else self.true.nll
        return {"asked": self.asked, "nll_new": self.new.nll, "asked_true": self.asked_true, "nll_true": true}


@dataclass(frozen=True)
class Choice:
    """How probable a model finds each of some objects that the question lists.

    Attributes:
        asked: The question with its options.
        options: The options, as listed.
        nll: Their mean nats per token.
    """

    asked: str
    options: tuple[str, ...]
    nll: tuple[float, ...]

    @property
    def chosen(self) -> str:
        """The option with the lowest NLL, the first of equals."""
        return self.options[self.nll.index(min(self.nll))]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {"asked": self.asked, "nll": dict(zip(self.options, self.nll, strict=True)), "chosen": self.chosen}


LETTERS = "ABCD"
"""Of the options of a choice that is answered freely."""
_NAMED = re.compile(rf"\W*([{LETTERS}])(?:\W*$|[).:,*\]])|.*\b(?i:answer|option|letter)\b(?: is\b)?\W*([{LETTERS}])\b")


@dataclass(frozen=True)
class Lettered:
    """The free answer to a choice whose options have letters.

    Attributes:
        asked: The text that the model continues; in a chat, what the user says.
        options: The options, as listed.
        said: The answer.
    """

    asked: str
    options: tuple[str, ...]
    said: str

    @property
    def letter(self) -> str | None:
        """The letter that the answer names: "B", "(B) French" or "The answer is B"; None if it names none."""
        found = _NAMED.match(self.said)
        return None if found is None else found[1] or found[2]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {"asked": self.asked, "options": list(self.options), "said": self.said, "letter": self.letter}


@dataclass(frozen=True)
class Beside:
    """What a model says beside a fact; see `probes`. Where probabilities are not known, only answers are there.

    Attributes:
        negated: The scores of both objects after the negated prompt; None where no rule negates it.
        negated_answer: What the model says greedily there.
        reversed: The subject after the reversed question; None where no rule reverses the prompt.
        choice: The choice among four objects; None without a question or without enough objects.
        ripples: What the model says greedily to each of the fact's ripples; the form is the criterion. None where a
            server cannot be asked.
        reversed_answer: What the model says greedily to the reversed question about the new object.
        lettered: The answer to the choice by letter, which servers are asked.
    """

    negated: Probe | None = None
    negated_answer: Answer | None = None
    reversed: Reversal | None = None
    choice: Choice | None = None
    ripples: tuple[Answer | None, ...] = ()
    reversed_answer: Answer | None = None
    lettered: Lettered | None = None

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All that the model said freely, but for the choice."""
        given = (self.negated_answer, self.reversed_answer, *self.ripples)
        return tuple(answer for answer in given if answer is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        parts = (("negated", self.negated), ("negated_answer", self.negated_answer))
        more = (("reversed", self.reversed), ("reversed_answer", self.reversed_answer))
        choices = (("choice", self.choice), ("lettered", self.lettered))
        return {
            **{name: None if part is None else part.to_dict() for name, part in (*parts, *more, *choices)},
            "ripples": [None if answer is None else answer.to_dict() for answer in self.ripples],
        }


ATTACKS = ("paraphrase", "choice", "prefix")
"""How an answer that is to be forgotten is asked for beside the `FORMS`: in other words; among four answers; and with a
text before the prompt, or the beginning of the answer after it, that leads to it."""


@dataclass(frozen=True)
class Leak:
    """Whether an answer that is to be forgotten comes out in one way of asking for it; see `forgetting`.

    Attributes:
        attack: One of `ATTACKS`.
        asked: The text that the model continues; in a chat, what the user says.
        said: The answer; of a choice, the option with the lowest NLL.
        leaked: Whether that holds, or is, the old answer.
    """

    attack: str
    asked: str
    said: str
    leaked: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record."""
        return {"attack": self.attack, "asked": self.asked, "said": self.said, "leaked": self.leaked}


@dataclass(frozen=True)
class Reading:
    """What a model says of one fact now.

    Attributes:
        rewrite: The edit prompt, filled with the subject. None where probabilities are not known, as those of a server.
        paraphrases: The same question in other words, as given in the fact.
        neighbors: Prompts about other subjects, as given in the fact. Their true object is their own, their new object
            the fact's.
        answers: What the model says greedily, in every form that it was asked in, one answer to each question; none if
            that was not asked for.
        neighbor_answers: What the model says greedily after the neighbors' prompts, as given in the fact; none if that
            was not asked for.
        beside: The probes beside the fact; None if they were not asked for.
        leaks: Further ways to get at the old answer of a fact to forget; none of other facts, and none if answers were
            not asked for.
    """

    rewrite: Probe | None = None
    paraphrases: tuple[Probe, ...] = ()
    neighbors: tuple[Probe, ...] = ()
    answers: tuple[Answer, ...] = ()
    neighbor_answers: tuple[Answer, ...] = ()
    beside: Beside | None = None
    leaks: tuple[Leak, ...] = ()

    @property
    def probability_new(self) -> float | None:
        return None if self.rewrite is None else self.rewrite.probability_new

    @property
    def probability_true(self) -> float | None:
        return None if self.rewrite is None else self.rewrite.probability_true

    @property
    def nll_new(self) -> float | None:
        """Nats per token."""
        return None if self.rewrite is None else self.rewrite.nll_new

    @property
    def nll_true(self) -> float | None:
        """Nats per token."""
        return None if self.rewrite is None else self.rewrite.nll_true

    @property
    def answer(self) -> str | None:
        """What the model says greedily in the first form it was asked in; None if that was not asked for.

        That is after the edit prompt, except on a server that answers in chats only.
        """
        return self.answers[0].said if self.answers else None

    def answers_to(self, form: str) -> list[str]:
        """Return the answers in one form, one for each question that was asked in it; none if there was no question."""
        return [answer.said for answer in self.answers if answer.form == form]

    @property
    def preferred(self) -> bool | None:
        """Whether the new object is likelier than the true one; None without a true object that differs."""
        return None if self.rewrite is None else self.rewrite.prefers_new

    @property
    def exact(self) -> bool | None:
        """Whether every token of the new object is the most probable one; None where that is not known."""
        return None if self.rewrite is None else self.rewrite.new.greedy

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record; where probabilities are not known, they and what follows from them are None."""
        scores = {} if self.rewrite is None else self.rewrite.to_dict()
        return {
            **{name: scores.get(name) for name in _SCORES},
            "preferred": self.preferred,
            "exact": self.exact,
            "answer": self.answer,
            "answers": [answer.to_dict() for answer in self.answers],
            "paraphrases": [probe.to_dict() for probe in self.paraphrases],
            "neighbors": [probe.to_dict() for probe in self.neighbors],
            "neighbor_answers": [answer.to_dict() for answer in self.neighbor_answers],
            **({} if self.beside is None else {"probes": self.beside.to_dict()}),
            **({"leaks": [leak.to_dict() for leak in self.leaks]} if self.leaks else {}),
        }
