"""Facts: what a model should answer from now on, and the probes that show whether it does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from factpatch.support.words import suggestion

_SLOT = "{}"


@dataclass(frozen=True)
class Neighbor:
    """A complete prompt about something else, mostly another subject, whose answer must not move in an edit.

    Attributes:
        prompt: The question as a text that ends right before its answer. It has no slot to fill.
        target_true: The answer that is right before and after the edit, without a leading space.

    Raises:
        TypeError: A field is not a string.
        ValueError: A field is blank.
    """

    prompt: str
    target_true: str

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        object.__setattr__(self, "target_true", _check_text("target_true", self.target_true).strip())

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
        _check_fields(cls, record, required=("prompt", "target_true"))
        return cls(prompt=record["prompt"], target_true=record["target_true"])


@dataclass(frozen=True)
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
        ValueError: `prompt` does not hold exactly one `{}`, or a text is blank.
    """

    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    id: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[Neighbor, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation_id: str | None = None
    target_new_id: str | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        object.__setattr__(self, "subject", _check_text("subject", self.subject).strip())
        object.__setattr__(self, "target_new", _check_text("target_new", self.target_new).strip())
        for name in ("target_true", "relation_id", "target_new_id"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _check_text(name, value).strip())
        object.__setattr__(self, "id", _check_id(self.id))
        for name in ("paraphrases", "generation_prompts"):
            prompts = _check_items(name, getattr(self, name), "strings")
            for i, prompt in enumerate(prompts):
                _check_text(f"{name}[{i}]", prompt)
            object.__setattr__(self, name, prompts)
        neighbors = _check_items("neighbors", self.neighbors, "Neighbor objects")
        for i, neighbor in enumerate(neighbors):
            if not isinstance(neighbor, Neighbor):
                raise TypeError(f"neighbors[{i}]={neighbor!r} is {_kind(neighbor)}; each one must be a Neighbor.")
        object.__setattr__(self, "neighbors", neighbors)

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        return self.prompt.replace(_SLOT, self.subject, 1)

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
        record = {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name)}
        for name in ("paraphrases", "generation_prompts"):
            if name in record:
                record[name] = list(record[name])
        if self.neighbors:
            record["neighbors"] = [neighbor.to_dict() for neighbor in self.neighbors]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fact:
        """Build a fact from a record as `to_dict` makes it; an optional field may be absent or None.

        Raises:
            TypeError: `record` is not a mapping, or a field has the wrong type.
            ValueError: A field is missing, unknown, or not acceptable to `Fact`.
        """
        _check_fields(cls, record, required=("prompt", "subject", "target_new"))
        given = dict(record)
        for field in fields(cls):
            # Not those without a default, so that a required one which is None is refused as such.
            if field.default is not MISSING and given.get(field.name) is None:
                given.pop(field.name, None)
        if "neighbors" in given:
            items = _check_items("neighbors", given["neighbors"], "objects with prompt and target_true")
            given["neighbors"] = tuple(_neighbor_at(i, item) for i, item in enumerate(items))
        return cls(**given)


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


def identity(facts: Iterable[Fact]) -> dict[str, Any]:
    """What tells facts from others in a record: how many they are, and a digest of all that they hold."""
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
    """Sort the facts of successive batches into those in force and those a later fact has replaced.

    A fact replaces the earlier one with the same `key`, also where both have the same target.

    Args:
        facts_by_batch: The batches in the order in which they were edited.

    Returns:
        The facts in force, in the order of their last edit, and the superseded ones, in the order of their replacement.
    """
    in_force: dict[tuple[str, str], Fact] = {}
    superseded: list[Fact] = []
    for facts in facts_by_batch:
        for fact in facts:
            # Popping first moves an updated fact to the end; plain assignment would keep its old place.
            replaced = in_force.pop(fact.key, None)
            if replaced is not None:
                superseded.append(replaced)
            in_force[fact.key] = fact
    return list(in_force.values()), superseded


def _place(facts: Sequence[Fact], i: int) -> str:
    name = facts[i].id
    return f"facts[{i}]" if name is None else f"facts[{i}] (id {name!r})"


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _check_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is {_kind(value)}; it must be a string.")
    if not value.strip():
        raise ValueError(f"{name}={value!r} is blank; give at least one character that is not white space.")
    return value


def _check_prompt(prompt: object) -> None:
    text = _check_text("prompt", prompt)
    slots = text.count(_SLOT)
    if slots != 1:
        found = "no {}" if slots == 0 else f"{slots} times {{}}"
        raise ValueError(f"prompt={text!r} holds {found}; it must hold {{}} exactly once, where the subject goes.")


def _check_id(value: object) -> str | None:
    if value is None:
        return None
    # bool is an int to Python, but True is no identifier.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"id={value!r} is {_kind(value)}; it must be a string, an integer or None.")
    return _check_text("id", value)


def _check_items(name: str, value: object, items: str) -> tuple[Any, ...]:
    # A string is a sequence too, but of single characters: surely a forgotten pair of brackets.
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}={value!r} is {_kind(value)}; it must be a list or tuple of {items}.")
    return tuple(value)


def _check_fields(cls: type[Fact] | type[Neighbor], record: object, required: Sequence[str]) -> None:
    if not isinstance(record, Mapping):
        raise TypeError(f"record={record!r} is {_kind(record)}; it must be a mapping of field names to values.")
    known = [field.name for field in fields(cls)]
    for name in record:
        if name not in known:
            raise ValueError(f"unknown field {name!r}.{suggestion(str(name), known)}")
    for name in required:
        if name not in record:
            raise ValueError(f"missing field {name!r}; required: {', '.join(required)}.")


def _neighbor_at(i: int, item: object) -> Neighbor:
    if isinstance(item, Neighbor):
        return item
    if not isinstance(item, Mapping):
        raise TypeError(f"neighbors[{i}]={item!r} is {_kind(item)}; it must be an object with prompt and target_true.")
    try:
        return Neighbor.from_dict(item)
    except (TypeError, ValueError) as error:
        raise type(error)(f"neighbors[{i}]: {error}") from error
