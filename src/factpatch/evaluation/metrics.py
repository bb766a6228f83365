"""The metrics of knowledge editing as pure functions of what a model said: no model, no text files.

Every metric is in percent; docs/metrics.md lists them with their sources. A metric is None where nothing was given that
it could be computed from: no fact has a true object, or none brings paraphrases or neighbors. A fact without the probes
a metric needs does not enter its mean.

Two readings of success are in use for an object that is put into the model's mouth. The published one compares two
objects: the NLL (mean nats per target token) of the new and of the true one. The strict one asks whether every token of
the wanted object is the most probable token. What the model says by itself is matched word by word.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

NllPair = tuple[float, float | None]
"""NLL of the new object and of the true object behind one prompt; None where the true object is not known."""
Matched = Sequence[bool]
"""For each token of the wanted object whether it is the most probable token."""


def percent(share: float | None) -> float | None:
    """A share in [0, 1] in percent."""
    return None if share is None else 100.0 * share


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None if there is none."""
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def mean_of_means(groups: Iterable[Iterable[float | None]]) -> float | None:
    """The mean over groups of the mean within a group: each fact counts once, however many probes it brings."""
    return mean_or_none(mean_or_none(group) for group in groups)


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """n / Σ 1/x; 0 if a value is 0, None if a value is None or there is none.

    Raises:
        ValueError: A value is negative.
    """
    known = []
    for value in values:
        if value is None:
            return None
        if value < 0:
            raise ValueError(f"values: {value} is negative; a harmonic mean is taken of values from 0 up.")
        known.append(value)
    if not known:
        return None
    return 0.0 if min(known) == 0 else len(known) / sum(1 / value for value in known)


def prefers_new(nlls: NllPair) -> bool | None:
    """Whether the new object has the lower NLL; a tie is no success. None without a true object."""
    new, true = nlls
    return None if true is None else new < true


def prefers_true(nlls: NllPair) -> bool | None:
    """Whether the true object has the lower NLL; a tie is no success. None without a true object."""
    new, true = nlls
    return None if true is None else true < new


def efficacy(rewrites: Iterable[NllPair]) -> float | None:
    """Percentage of facts whose new object has a lower NLL than the true one behind the edit prompt.

    Source: MEMIT (arXiv:2210.07229), eq. 24.

    Args:
        rewrites: One pair for each fact.
    """
    return percent(mean_or_none(prefers_new(nlls) for nlls in rewrites))


def generalization(paraphrases: Iterable[Iterable[NllPair]]) -> float | None:
    """As `efficacy`, behind paraphrases: mean over facts of the mean over the fact's paraphrases.

    Source: MEMIT (arXiv:2210.07229), eq. 25.

    Args:
        paraphrases: For each fact one pair for each paraphrase.
    """
    return percent(mean_of_means((prefers_new(nlls) for nlls in prompts) for prompts in paraphrases))


def specificity(neighbors: Iterable[Iterable[NllPair]]) -> float | None:
    """Percentage of neighborhood prompts that still prefer their true object to the fact's new one: mean of means.

    Source: MEMIT (arXiv:2210.07229), eq. 26.

    Args:
        neighbors: For each fact one pair for each neighbor: the fact's new object, the neighbor's true object.
    """
    return percent(mean_of_means((prefers_true(nlls) for nlls in prompts) for prompts in neighbors))


def strict_efficacy(rewrites: Iterable[Matched]) -> float | None:
    """Percentage of facts whose new object is the most probable continuation in every one of its tokens.

    Args:
        rewrites: For each fact what holds of the tokens of its new object.
    """
    return percent(mean_or_none(all(tokens) for tokens in rewrites))


def strict_generalization(paraphrases: Iterable[Iterable[Matched]]) -> float | None:
    """As `strict_efficacy`, behind paraphrases: mean over facts of the mean over the fact's paraphrases."""
    return percent(mean_of_means((all(tokens) for tokens in prompts) for prompts in paraphrases))


def strict_specificity(neighbors: Iterable[Iterable[Matched]]) -> float | None:
    """Percentage of neighborhood prompts whose true object is most probable in every token: mean of means.

    Args:
        neighbors: For each fact and neighbor what holds of the tokens of the neighbor's true object.
    """
    return percent(mean_of_means((all(tokens) for tokens in prompts) for prompts in neighbors))


def token_accuracy(probes: Iterable[Iterable[Matched]]) -> float | None:
    """Percentage of the wanted object's tokens that are the most probable ones: mean over facts, prompts, tokens.

    This is how zsRE is scored, which names no true object. Source: MEMIT (arXiv:2210.07229), eq. 21 to 23, which the
    published code counts token by token.

    Args:
        probes: For each fact and prompt what holds of the tokens of the wanted object.
    """
    return percent(mean_of_means((mean_or_none(tokens) for tokens in prompts) for prompts in probes))


def exact(answers: Iterable[tuple[str | None, str | None]]) -> float | None:
    """Percentage of answers that are the object and nothing else; see `exact_match`.

    Args:
        answers: For each fact the answer and the object; a fact that lacks one of them does not count.
    """
    return percent(mean_or_none(_matches(exact_match, pair) for pair in answers))


def contained(answers: Iterable[tuple[str | None, str | None]]) -> float | None:
    """Percentage of answers in which the object occurs; see `contained_match`.

    Args:
        answers: For each fact the answer and the object; a fact that lacks one of them does not count.
    """
    return percent(mean_or_none(_matches(contained_match, pair) for pair in answers))


def exact_match(answer: str, target: str) -> bool:
    """Whether an answer is a target, word by word, but for case, punctuation and the articles a, an, the.

    Source: the exact match of SQuAD (arXiv:1606.05250), section 6.1.
    """
    return _words(answer) == _words(target)


def contained_match(answer: str, target: str) -> bool:
    """Whether the words of a target stand in an answer, whole and in a row, normalized as in `exact_match`."""
    said, wanted = _words(answer), _words(target)
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def behind(answer: str, prompt: str) -> str:
    """An answer without the prompt that it repeats first: "French." of "The mother tongue of Ada is French."."""
    said, asked = (" ".join(text.split()) for text in (answer, prompt))
    repeated = re.match(rf"{re.escape(asked)}(?!\w)", said, re.IGNORECASE)
    return said[repeated.end() :].lstrip() if repeated else answer


def _matches(match: Callable[[str, str], bool], pair: tuple[str | None, str | None]) -> bool | None:
    answer, target = pair
    return None if answer is None or target is None else match(answer, target)


# Scripts that put no space between words: there every character is a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ARTICLES = ("a", "an", "the")


def _words(text: str) -> list[str]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    # "The The" keeps its articles, and "?!" its marks: a target of no words would be in every answer.
    return [word for word in words if word not in _ARTICLES] or words or [text.strip()]
