"""What a model says of facts, before and after an edit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from factpatch.evaluation import metrics
from factpatch.evaluation.generation import MAX_NEW_TOKENS, greedy_answers
from factpatch.evaluation.probabilities import Progress, Score, score
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel


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
        return {"prompt": self.prompt, **_numbers(self)}


@dataclass(frozen=True)
class Reading:
    """What a model says of one fact now.

    Attributes:
        rewrite: The edit prompt, filled with the subject.
        paraphrases: The same question in other words, as the fact brings them.
        neighbors: Prompts about other subjects, as the fact brings them. Their true object is their own, their new
            object the fact's.
        answer: What the model says greedily behind the edit prompt; None if that was not asked for.
    """

    rewrite: Probe
    paraphrases: tuple[Probe, ...] = ()
    neighbors: tuple[Probe, ...] = ()
    answer: str | None = None

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
        return {
            **_numbers(self.rewrite),
            "learned": self.learned,
            "greedy_match": self.greedy_match,
            "answer": self.answer,
            "paraphrases": [probe.to_dict() for probe in self.paraphrases],
            "neighbors": [probe.to_dict() for probe in self.neighbors],
        }


@dataclass(frozen=True)
class Verification:
    """What a model says of facts now and, where an earlier verification was given, what it said then.

    Attributes:
        facts: The facts.
        after: One reading for each fact.
        before: The readings of the earlier verification, in the same order, or None.
    """

    facts: tuple[Fact, ...]
    after: tuple[Reading, ...]
    before: tuple[Reading, ...] | None = None

    def summary(self) -> dict[str, Any]:
        """Return the metrics, each as {"before": percent, "after": percent}.

        A number is None where it cannot be computed: there is no earlier verification, no fact has a true object, or no
        fact brings the probes. `score` is the harmonic mean of efficacy, generalization and specificity, `strict` holds
        the three with "every token of the wanted object is the most probable one" in place of the comparison.
        """

        def both(metric: Callable[[Sequence[Reading]], float | None]) -> dict[str, float | None]:
            return {"before": None if self.before is None else metric(self.before), "after": metric(self.after)}

        return {
            "efficacy": both(_efficacy),
            "generalization": both(_generalization),
            "specificity": both(_specificity),
            "score": both(lambda r: metrics.harmonic_mean((_efficacy(r), _generalization(r), _specificity(r)))),
            "greedy_success": both(self._greedy_success),
            "strict": {
                "efficacy": both(lambda r: metrics.strict_efficacy(_matched_new(one)[0] for one in _rewrites(r))),
                "generalization": both(lambda r: metrics.strict_generalization(map(_matched_new, _paraphrases(r)))),
                "specificity": both(lambda r: metrics.strict_specificity(map(_matched_true, _neighbors(r)))),
            },
            "token_accuracy": {
                "rewrite": both(lambda r: metrics.token_accuracy(map(_matched_new, _rewrites(r)))),
                "paraphrase": both(lambda r: metrics.token_accuracy(map(_matched_new, _paraphrases(r)))),
                "neighborhood": both(lambda r: metrics.token_accuracy(map(_matched_true, _neighbors(r)))),
            },
        }

    def unlearned(self) -> list[Fact]:
        """Return the facts that the model does not hold now; see `Reading.learned`."""
        return [fact for fact, reading in zip(self.facts, self.after, strict=True) if not reading.learned]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record: the summary and a row for each fact."""
        before = (None,) * len(self.facts) if self.before is None else self.before
        rows = [
            {
                "id": fact.id,
                "prompt": fact.text,
                "subject": fact.subject,
                "target_new": fact.target_new,
                "target_true": fact.target_true,
                "before": None if earlier is None else earlier.to_dict(),
                "after": now.to_dict(),
            }
            for fact, earlier, now in zip(self.facts, before, self.after, strict=True)
        ]
        return {"summary": self.summary(), "facts": rows}

    def _greedy_success(self, readings: Sequence[Reading]) -> float | None:
        pairs = zip(self.facts, readings, strict=True)
        return metrics.greedy_success((r.answer, fact.target_new) for fact, r in pairs if r.answer is not None)


def verify(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    before: Verification | None = None,
    *,
    chat: bool = False,
    answers: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Ask a model about facts: the probability of the new and the old object and the greedy answer, before and after.

    Paraphrases and neighbors are asked where the facts bring them.

    Args:
        model: A transformers model or a `LanguageModel`; it is left as it was.
        tokenizer: Its tokenizer; None with a `LanguageModel`, which has one.
        facts: What to ask about.
        before: An earlier verification of the same facts, made before an edit.
        chat: Whether to ask every prompt as a user's turn of a chat; a `LanguageModel` knows for itself.
        answers: Whether to ask for greedy answers.
        progress: Called after each batch of probes with their number.

    Raises:
        ValueError: There are no facts, `before` is about other facts, or the model cannot be read.
    """
    facts = tuple(facts)
    if not facts:
        raise ValueError("facts=[]: there is nothing to ask about; give at least one fact.")
    if before is not None and before.facts != facts:
        raise ValueError(f"before: {_difference(before.facts, facts)}; give an earlier verification of the same facts.")
    readings = read_facts(_language_model(model, tokenizer, chat), facts, answers=answers, progress=progress)
    return Verification(facts=facts, after=tuple(readings), before=None if before is None else before.after)


def read_facts(
    lm: LanguageModel, facts: Sequence[Fact], answers: bool = True, progress: Progress | None = None
) -> list[Reading]:
    """Read what a model says of facts and their probes, all of them in one pass.

    Args:
        lm: The model; it is left as it was.
        facts: What to ask about.
        answers: Whether to ask for greedy answers.
        progress: Called after each batch of requests with their number; `request_count` tells how many there are.

    Returns:
        One reading for each fact, in the same order.
    """
    requests = [
        request for fact in facts for prompt, true in _probes(fact) for request in _requests(fact, prompt, true)
    ]
    scores = iter(score(lm, requests, progress))
    said: list[str] | list[None] = [None] * len(facts)
    if answers and facts:
        said = greedy_answers(lm, [fact.text for fact in facts], max_new_tokens=_answer_tokens(lm, facts))
    readings = []
    for fact, answer in zip(facts, said, strict=True):
        probes = [Probe(prompt, next(scores), None if true is None else next(scores)) for prompt, true in _probes(fact)]
        behind = 1 + len(fact.paraphrases)
        readings.append(Reading(probes[0], tuple(probes[1:behind]), tuple(probes[behind:]), answer))
    return readings


def request_count(facts: Sequence[Fact]) -> int:
    """How many requests `read_facts` makes: the sum of what it reports as progress."""
    return sum(len(_requests(fact, prompt, true)) for fact in facts for prompt, true in _probes(fact))


def _probes(fact: Fact) -> Iterator[tuple[str, str | None]]:
    """The prompts to ask, each with the true object there: the edit prompt, the paraphrases, the neighbors."""
    yield fact.text, fact.target_true
    for paraphrase in fact.paraphrases:
        yield paraphrase, fact.target_true
    for neighbor in fact.neighbors:
        yield neighbor.prompt, neighbor.target_true


def _requests(fact: Fact, prompt: str, true: str | None) -> list[tuple[str, str]]:
    return [(prompt, target) for target in (fact.target_new, true) if target is not None]


def _answer_tokens(lm: LanguageModel, facts: Sequence[Fact]) -> int:
    """Enough tokens for every new object, so that a long one is not missed for want of room."""
    targets = lm.tokenizer([lm.frame.space + fact.target_new for fact in facts], add_special_tokens=False)["input_ids"]
    return max(MAX_NEW_TOKENS, *(len(ids) + 1 for ids in targets))


def _language_model(model: Any, tokenizer: Any, chat: bool) -> LanguageModel:
    if isinstance(model, LanguageModel):
        if tokenizer is not None and tokenizer is not model.tokenizer:
            raise ValueError("tokenizer: the given LanguageModel has another one; give tokenizer=None.")
        model.check_chat(chat)
        return model
    if tokenizer is None:
        raise ValueError(
            "tokenizer=None: a transformers model comes without a tokenizer; give the one it was made with."
        )
    return LanguageModel(model, tokenizer, chat)


def _difference(earlier: Sequence[Fact], now: Sequence[Fact]) -> str:
    if len(earlier) != len(now):
        return f"it is about {len(earlier)} facts instead of {len(now)}"
    index = next(i for i, (a, b) in enumerate(zip(earlier, now, strict=True)) if a != b)
    return f"its fact {index}, {earlier[index].text!r}, is not the given one, {now[index].text!r}"


def _numbers(probe: Probe) -> dict[str, Any]:
    return {
        "probability_new": probe.probability_new,
        "probability_true": probe.probability_true,
        "nll_new": probe.nll_new,
        "nll_true": probe.nll_true,
        "matched_new": list(probe.new.matched),
        "matched_true": None if probe.true is None else list(probe.true.matched),
    }


def _rewrites(readings: Sequence[Reading]) -> list[tuple[Probe, ...]]:
    return [(reading.rewrite,) for reading in readings]


def _paraphrases(readings: Sequence[Reading]) -> list[tuple[Probe, ...]]:
    return [reading.paraphrases for reading in readings]


def _neighbors(readings: Sequence[Reading]) -> list[tuple[Probe, ...]]:
    return [reading.neighbors for reading in readings]


def _matched_new(probes: Sequence[Probe]) -> list[tuple[bool, ...]]:
    return [probe.new.matched for probe in probes]


def _matched_true(probes: Sequence[Probe]) -> list[tuple[bool, ...]]:
    return [probe.true.matched for probe in probes if probe.true is not None]


def _efficacy(readings: Sequence[Reading]) -> float | None:
    return metrics.efficacy(reading.rewrite.nlls for reading in readings)


def _generalization(readings: Sequence[Reading]) -> float | None:
    return metrics.generalization([probe.nlls for probe in probes] for probes in _paraphrases(readings))


def _specificity(readings: Sequence[Reading]) -> float | None:
    return metrics.specificity([probe.nlls for probe in probes] for probes in _neighbors(readings))
