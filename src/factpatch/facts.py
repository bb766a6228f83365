"""Facts: what a model should answer from now on, and the probes that show whether it does."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Strict, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from factpatch.support.validation import explaining

_SLOT = "{}"
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003347f"
)
"""Scripts that put no space between words, for the brackets of a regular expression: Thai, Lao, Tibetan, Burmese,
Khmer, Japanese and Chinese."""
_MARKS = "\u3000-\u303f\uff01-\uff65"  # punctuation of these scripts
_ATTACHED = re.compile(
    rf"""[{UNSPACED}{_MARKS}]["'“”‘’]*$|[/\\@]$"""
    rf"""|(?:^|[\s=:,;+|<>/–—({{\[])\\*["'`“”„‘’‚«»‹›]+$"""  # a quote after none of these closes
    rf"""|\b[^\W\d_]['’]$"""  # French l', d', j'
)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _with_slot(prompt: str) -> str:
    if prompt.count(_SLOT) != 1:
        raise ValueError(
            f"must hold {{}} exactly once, where the subject goes; it is there {prompt.count(_SLOT)} times"
        )
    return prompt


def _listed(value: object) -> object:
    # A string is a sequence too, but of single characters: surely a forgotten pair of brackets.
    if not isinstance(value, (list, tuple)):
        raise PydanticCustomError("list_type", "must be a list or tuple")
    return tuple(value)


def _numbered(value: object) -> object:
    return str(value) if type(value) is int else value  # True is an int to Python, but no identifier


Text = Annotated[str, Strict(), AfterValidator(_not_blank)]
"""A text that is not blank, kept as it is."""
Name = Annotated[Text, AfterValidator(str.strip)]
"""A text that is not blank, without the white space around it."""
_Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed)]


@explaining
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Neighbor:
    """A complete prompt about something else, mostly another subject, whose answer must not move in an edit.

    Attributes:
        prompt: The question as a text that ends right before its answer. It has no slot to fill.
        target_true: The answer that is right before and after the edit, without a leading space.

    Raises:
        TypeError: A field is not a string.
        ValueError: A field is missing or blank.
    """

    prompt: Text
    target_true: Name

    def to_dict(self) -> dict[str, str]:
        """Return the neighbor as a JSON-able record that `from_dict` reads back."""
        return {"prompt": self.prompt, "target_true": self.target_true}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Neighbor:
        """Build a neighbor from a record with the fields `prompt` and `target_true`.

        Raises:
            TypeError: `record` is not a mapping, or a field is not a string.
            ValueError: A field is missing, unknown or blank.
        """
        return cls(**_fields(record))


@explaining
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fact:
    """One edit: after it, `prompt` filled with `subject` is answered by `target_new`.

    The subject and the targets lose surrounding white space, since the editor itself puts exactly one space before a
    target. Only the first `{}` is a slot; every other brace is text, so nothing here goes through `str.format`.

    Attributes:
        prompt: The question, with exactly one `{}` where the subject goes, ending right before the answer.
        subject: What the fact is about.
        target_new: The answer the edit puts in.
        target_true: The answer before the edit. None where it is not known, as in zsRE.
        id: A name for the fact in reports and messages; a number is turned into text.
        paraphrases: Complete prompts that ask the same question in other words. Lists are accepted.
        neighbors: Prompts about something else, which must keep their answers. Lists are accepted.
        generation_prompts: Complete prompts about the subject, from which texts are generated to judge their fluency
            and consistency. A prompt may occur several times, for as many texts. Lists are accepted.
        relation_id: What the fact says of its subject, as a Wikidata property: P103 is the native language.
        target_new_id: The new answer as a Wikidata item. With `relation_id`, it finds the reference texts.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or unknown, `prompt` does not hold exactly one `{}`, or a text is blank.
    """

    prompt: Annotated[Text, AfterValidator(_with_slot)]
    subject: Name
    target_new: Name
    target_true: Name | None = None
    id: Annotated[Text | None, BeforeValidator(_numbered)] = None
    paraphrases: _Texts = ()
    neighbors: Annotated[tuple[Neighbor, ...], BeforeValidator(_listed)] = ()
    generation_prompts: _Texts = ()
    relation_id: Name | None = None
    target_new_id: Name | None = None
    space: Annotated[bool, Strict()] | None = None

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(_SLOT, self.subject, 1)

    @property
    def other(self) -> str | None:
        """The true object, with which the new one is compared; None if it is unknown, or the same."""
        known = self.target_true is not None and not same_object(self.target_true, self.target_new)
        return self.target_true if known else None

    @property
    def sentence(self) -> str:
        """The text with its answer."""
        return self.text + joint(self.text, self.space) + self.target_new

    @property
    def subject_end(self) -> int:
        """The index in `text` of the last character of the subject."""
        return self.prompt.index(_SLOT) + len(self.subject) - 1

    @property
    def key(self) -> tuple[str, str]:
        """The question this fact answers: its prompt and subject. Facts with equal keys cannot both hold."""
        return (self.prompt, self.subject)

    def to_dict(self) -> dict[str, Any]:
        """Return the fact as a JSON-able record that `from_dict` reads back, without its empty fields."""
        record: dict[str, Any] = _FACT.dump_python(self, mode="json", exclude_defaults=True)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fact:
        """Build a fact from a record as `to_dict` makes it; an optional field may be absent or None.

        Raises:
            TypeError: `record` is not a mapping, or a field has the wrong type.
            ValueError: A field is missing, unknown, or not acceptable to `Fact`.
        """
        optional = {field.name for field in fields(cls) if field.default is not MISSING}
        return cls(**{name: it for name, it in _fields(record).items() if it is not None or name not in optional})


_FACT = TypeAdapter(Fact)


def _fields(record: object) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise TypeError(f"record={record!r}: must be a mapping of field names to values.")
    return record


def same_object(one: str, other: str) -> bool:
    """Whether two objects are the same, except for case and white space: then there is nothing to compare."""
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def joint(prompt: str, space: bool | None = None) -> str:
    """Return what stands between a prompt and its answer: a space or nothing.

    Nothing follows a prompt that ends in a script without spaces, in an opening bracket or quote, or in a sign that
    belongs to what follows it, as in "$5" or "and/or".

    Args:
        prompt: The complete prompt, without white space at its end.
        space: What the fact itself says; see `Fact.space`.
    """
    if space is not None:
        return " " if space else ""
    attached = _ATTACHED.search(prompt) or unicodedata.category(prompt[-1:] or " ") in ("Ps", "Sc")
    return "" if attached else " "


def check_batch(facts: Sequence[Fact]) -> None:
    """Check that a batch can be written at once: it is not empty and asks no question twice.

    Raises:
        ValueError: `facts` is empty, or two of its facts have the same prompt and subject.
    """
    if not facts:
        raise ValueError("facts=[]: a batch needs at least one fact.")
    seen: dict[tuple[str, str], int] = {}
    for i, fact in enumerate(facts):
        first = seen.setdefault(fact.key, i)
        if first == i:
            continue
        pair = f"{_place(facts, first)} and {_place(facts, i)}"
        if facts[first].target_new == fact.target_new:
            raise ValueError(
                f"{pair} are duplicates: both answer {fact.text!r} with {fact.target_new!r}. Drop one of them."
            )
        raise ValueError(
            f"{pair} conflict: they answer {fact.text!r} with {facts[first].target_new!r} and {fact.target_new!r}. "
            "A batch can hold one answer to a question; drop one, or edit them in successive batches."
        )


def _place(facts: Sequence[Fact], i: int) -> str:
    name = facts[i].id
    return f"facts[{i}]" if name is None else f"facts[{i}] (id {name!r})"


def identity(facts: Iterable[Fact]) -> dict[str, Any]:
    """Identify a list of facts in a record: how many there are, and a digest of all that they hold."""
    records = [fact.to_dict() for fact in facts]
    digest = hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest()
    return {"count": len(records), "sha256": digest}


def near_duplicates(facts: Sequence[Fact]) -> list[tuple[Fact, Fact]]:
    """Find pairs of facts that probably ask the same question of the same subject in other words.

    That is: one's prompt is a paraphrase of the other, or more than half of the words around the subject are shared.
    Both can be edited, but if their answers differ, neither may hold.

    Returns:
        Pairs in the order of the facts, each pair once.
    """
    by_subject: dict[str, list[Fact]] = {}
    pairs = []
    for fact in facts:
        others = by_subject.setdefault(fact.subject.casefold(), [])
        pairs += [(other, fact) for other in others if other.key != fact.key and _alike(other, fact)]
        others.append(fact)
    return pairs


def _alike(one: Fact, other: Fact) -> bool:
    if one.text in other.paraphrases or other.text in one.paraphrases:
        return True
    words, others = ({*re.findall(r"\w+", fact.prompt.casefold())} for fact in (one, other))
    return 2 * len(words & others) > len(words | others)


def latest(facts_by_batch: Iterable[Sequence[Fact]]) -> tuple[list[Fact], list[Fact]]:
    """Sort the facts of successive batches into those in force and those that a later fact has replaced.

    A fact replaces the earlier one with the same `key`, also where both have the same target.

    Args:
        facts_by_batch: The batches in the order in which they were edited.

    Returns:
        The facts in force, in the order of their last edit, and the superseded ones, in the order of their replacement.
    """
    in_force: dict[tuple[str, str], Fact] = {}
    superseded: list[Fact] = []
    for fact in (fact for facts in facts_by_batch for fact in facts):
        # Popping first moves an updated fact to the end; plain assignment would keep its old place.
        replaced = in_force.pop(fact.key, None)
        if replaced is not None:
            superseded.append(replaced)
        in_force[fact.key] = fact
    return list(in_force.values()), superseded
