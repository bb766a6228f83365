"""Words that messages share: names that were meant, counted things, settings that differ, text of unknown origin."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

QUESTION_MARKS = ("?", "？", "؟")
_JOINERS = "\u200c\u200d"
# Signs of Arabic, Syriac and Kaithi that enclose the digits after them: of category Cf, but visible.
_VISIBLE = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")


def steerless(text: str) -> str:
    """The text without characters that steer a terminal, hide text or turn its direction; line ends and tabs stay.

    The joiners U+200C and U+200D stay between characters of scripts that are spelled with them, and within emoji.
    """
    if text.isprintable():
        return text
    return "".join(_without_steering(text, at) for at in range(len(text)))


def printable(text: str) -> str:
    """The text on one line, as `steerless` leaves it."""
    return " ".join(steerless(text).split())


def _without_steering(text: str, at: int) -> str:
    """What becomes of one character."""
    character = text[at]
    if character.isprintable() or character in "\n\t" or character in _VISIBLE:
        return character
    if character in _JOINERS:
        return character if _joins(text[at - 1 : at]) and _joins(text[at + 1 : at + 2]) else ""
    return "" if unicodedata.category(character) == "Cf" else " "


def _joins(neighbor: str) -> bool:
    # Latin, Greek, Cyrillic and Armenian, which end at U+0590, do not use joiners.
    return neighbor >= "\u0590" and unicodedata.category(neighbor)[0] in "LMS"


def quoted(value: object, most: int = 200) -> str:
    """Return the repr of a value in one line, cut in its middle where it is long; a file may hold a megabyte."""
    try:
        text = repr(value)
    except RecursionError:
        return f"{type(value).__name__} nested too deeply to show"
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """Return a text without its middle, where it has more than so many characters."""
    return text if len(text) <= most else f"{text[: most - 40]} … {text[-35:]}"


def is_question(text: str) -> bool:
    """Whether a text is a question: it ends in a question mark."""
    return text.rstrip().endswith(QUESTION_MARKS)


def suggestion(word: object, known: Iterable[str]) -> str:
    """Return " Did you mean …? Known: ….", which follows the sentence that names the unknown word."""
    names = list(known)
    near = difflib.get_close_matches(str(word), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def named(table: Mapping[str, T], name: str, what: str) -> T:
    """Look something up by its name; a ValueError suggests the nearest one."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}.{suggestion(name, table)}")
    return table[name]


def counted(number: int, thing: str) -> str:
    """Return `1 fact`, `2 facts` or `2 batches`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}{'es' if thing.endswith('ch') else 's'}"


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Name the settings that differ, and show the first; None if all are the same."""
    names = [name for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
    if not names:
        return None
    first = names[0]
    listed = f"{', '.join(names)}; " if len(names) > 1 else ""
    return f"{listed}{first} is {quoted(there.get(first))} there and {quoted(here.get(first))} here"
