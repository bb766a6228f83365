"""Where the subject goes in a prompt: a slot that says so, or the place where a complete prompt holds the subject."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from factpatch.support.words import quoted

SLOT = "{}"
NAMED_SLOT = "{subject}"
# Characters that a letter before them needs: "e" is no part of "é", in however many characters that is written.
_CONTINUED = r"(?![\u0300-\u036f])"
_LONGEST_SEARCHED = 1_000  # the search in any case takes time with the product of two lengths
# Scripts that put no spaces between words, apart from the wide ones.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


def prompt_around(whole: str, subject: str, words_only: bool = False) -> tuple[str, str] | None:
    """Find a subject in a complete prompt.

    Exact spelling is tried before any case, and whole words before parts of words; the first place counts. It does not
    matter which of its forms Unicode has for an accented character.

    Args:
        whole: The prompt, in which every brace is text.
        subject: What to look for.
        words_only: Whether a part of a word does not count.

    Returns:
        The prompt with a slot at the subject's place, and the subject as the prompt spells it: filled with it, the
        prompt is `whole` to the letter. None if the subject is not there.

    Raises:
        ValueError: No slot can be told from the braces that are text.
    """
    name = subject.strip()
    for places in _places(whole, name) if name else ():
        words = [place for place in places if not any(_within_word(whole, end) for end in place)]
        for start, end in words if words_only else [*words, *places]:
            return with_slot(whole[:start], whole[end:]), whole[start:end]
    return None


def _places(whole: str, name: str) -> Iterator[list[tuple[int, int]]]:
    """Where a name stands in a text: as it is spelled, then in any case."""
    if _folded(name) not in _folded(whole):
        return
    if len(name) > _LONGEST_SEARCHED:
        start = whole.find(name)
        yield [] if start < 0 else [(start, start + len(name))]
        return
    pattern = "".join(
        f"(?:{re.escape(one)}|{re.escape(parts)})" if parts != one else re.escape(one)
        for one, parts in ((one, unicodedata.normalize("NFD", one)) for one in unicodedata.normalize("NFC", name))
    )
    for flags in (0, re.IGNORECASE):
        yield [match.span(1) for match in re.finditer(f"(?=({pattern}{_CONTINUED}))", whole, flags)]


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text.casefold())


def _within_word(text: str, place: int) -> bool:
    """Whether the characters on both sides of a place belong to one word."""
    sides = text[place - 1 : place + 1] if place else ""
    return len(sides) == 2 and all(map(_in_words, sides))


def _in_words(one: str) -> bool:
    if unicodedata.east_asian_width(one) in "WF" or _UNSPACED.match(one):
        return False  # every character may begin a word
    return one.isalnum() or one == "_" or unicodedata.category(one).startswith("M")


def with_slot(before: str, after: str, named: bool = False) -> str:
    """Join what stands around the subject with a slot: `{}`, or `{subject}` where the rest holds a `{}` as text.

    Args:
        before: The prompt up to the subject; its braces are text.
        after: The rest of it.
        named: Whether to prefer `{subject}`, which leaves no doubt.

    Raises:
        ValueError: The rest holds `{subject}` too, as text, so that no slot can be told from it.
    """
    for slot in (NAMED_SLOT, SLOT) if named else (SLOT, NAMED_SLOT):
        prompt = f"{before}{slot}{after}"
        if around_slot(prompt) == (before, after):
            return prompt
    raise ValueError(
        f"{quoted(before + NAMED_SLOT + after)}: the braces are a slot at one place and text at others, which "
        "cannot be told apart; reword the prompt."
    )


def two_readings(prompt: str, subject: str) -> tuple[str, str] | None:
    """Return what a prompt asks if its `{}` is the slot and what if that is text, where it may be either.

    That is so where a prompt holds one `{}` and, as whole words, the subject in full.
    """
    around = around_slot(prompt)
    if around is None or prompt.count(NAMED_SLOT) == 1:
        return None
    found = prompt_around(prompt, subject, words_only=True)
    if found is None or unicodedata.normalize("NFC", found[1]) != unicodedata.normalize("NFC", subject.strip()):
        return None
    return subject.strip().join(around), prompt


def around_slot(prompt: str) -> tuple[str, str] | None:
    """What stands before and after a prompt's slot; None if there is no place that can only be the slot."""
    for slot in (NAMED_SLOT, SLOT):
        if prompt.count(slot) == 1:
            before, _, after = prompt.partition(slot)
            return before, after
    return None
