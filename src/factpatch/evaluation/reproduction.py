"""How much of a long answer a model gives: up to its first mistake, and in all."""

from __future__ import annotations

import re

LONG = 24
"""Words and marks from which on an answer counts as long: whether all of it is said says little about it."""
# Words, marks, and line ends with the indentation after them, which code needs.
_PARTS = re.compile(r"\w+|[^\w\s]|\n[ \t]*")


def parts_of(text: str) -> list[str]:
    """The words, marks and line ends of a text, in their own case."""
    return _PARTS.findall(text.strip())


def is_long(target: str) -> bool:
    """Whether an answer has `LONG` parts or more."""
    return len(parts_of(target)) >= LONG


def reproduced(said: str, target: str) -> float:
    """The share of a target's parts that an answer gives before the first that differs, in [0, 1]."""
    wanted, given = parts_of(target), parts_of(said)
    pairs = enumerate(zip(wanted, given, strict=False))
    alike = next((place for place, (one, other) in pairs if one != other), min(len(wanted), len(given)))
    return alike / max(1, len(wanted))


def rouge_l(said: str, target: str) -> float:
    """The F-measure of the longest common subsequence of two texts' parts, in [0, 1].

    2 · LCS / (m + n) for texts of m and n parts. Source: ROUGE (Lin 2004), section 3.1, with β = 1.
    """
    wanted, given = parts_of(target), parts_of(said)
    if not wanted or not given:
        return 0.0
    lengths = [0] * (len(given) + 1)
    for one in wanted:
        before = 0  # of the row above, one column to the left
        for place, other in enumerate(given, start=1):
            above = lengths[place]
            lengths[place] = before + 1 if one == other else max(above, lengths[place - 1])
            before = above
    return 2 * lengths[-1] / (len(wanted) + len(given))
