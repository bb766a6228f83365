"""Facts: what a model should answer from now on, and the probes that show whether it does."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from datetime import date
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Strict, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from factpatch.support.slots import NAMED_SLOT, SLOT, around_slot, prompt_around, with_slot
from factpatch.support.validation import explaining
from factpatch.support.words import counted, quoted

logger = logging.getLogger(__name__)

_DATE = re.compile(r"[0-9]{4}(-[0-9]{2}){0,2}")
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    if not text.isascii() and (half := _HALF.search(text)):
        raise ValueError(f"holds half of a character, {half[0]!r}, without its other half; write the whole one")
    return text


def _listed(value: object) -> object:
    # A string is a sequence too, but of single characters: surely a forgotten pair of brackets.
    if not isinstance(value, (list, tuple)):
        raise PydanticCustomError("list_type", "must be a list or tuple")
    return tuple(value)


def _numbered(value: object) -> object:
    return str(value) if type(value) is int else value  # True is an int to Python, but no identifier


def _dated(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        if not _DATE.fullmatch(text):
            raise ValueError
        date.fromisoformat(text + "-01-01"[len(text) - 10 :] if len(text) < 10 else text)
    except ValueError:
        raise ValueError("must be a year, a month or a day, as 2024, 2024-05 or 2024-05-31") from None
    return text


Text = Annotated[str, Strict(), AfterValidator(_not_blank)]
"""A text that is not blank, kept as it is."""
Name = Annotated[Text, AfterValidator(str.strip)]
"""A text that is not blank, without the white space around it."""
Question = Annotated[Text, AfterValidator(str.rstrip)]
"""A text that is not blank and ends where its answer begins, so without white space at its end."""
_Questions = Annotated[tuple[Question, ...], BeforeValidator(_listed)]
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

    prompt: Question
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


CRITERIA = (
    "logical_generalization",
    "compositionality_i",
    "compositionality_ii",
    "subject_aliasing",
    "relation_specificity",
    "forgetfulness",
    "reasoning",
    "multi_hop",
)
"""The kinds of ripples: the first six are those of RippleEdits (arXiv:2307.12976, section 3), "reasoning" is KnowEdit's
(arXiv:2401.01286), and "multi_hop" MQuAKE's (arXiv:2305.14795) and WikiBigEdit's (arXiv:2503.05683)."""


def _known_criterion(name: str) -> str:
    if name not in CRITERIA:
        raise ValueError(f"must be one of {', '.join(CRITERIA)}")
    return name


def _some(answers: tuple[str, ...]) -> tuple[str, ...]:
    if not answers:
        raise ValueError("must hold at least one answer")
    return answers


@explaining
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Ripple:
    """A complete prompt about something else whose answer follows from an edit, or must survive it.

    Attributes:
        criterion: What it tests, one of `CRITERIA`.
        prompt: The question as a text that ends right before its answer. It has no slot to fill.
        answers: Spellings of the answers that are right after the edit, any of which will do. Lists are accepted.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or blank, there is no answer, or the criterion is unknown.
    """

    criterion: Annotated[Name, AfterValidator(_known_criterion)]
    prompt: Question
    answers: Annotated[tuple[Name, ...], BeforeValidator(_listed), AfterValidator(_some)]


Forgetting = Literal["silence", "refuse"]
"""What becomes of a question whose answer is to be forgotten. *silence*: the answer `target_true` becomes improbable,
and nothing is put in its place. *refuse*: the model says `target_new` instead, which admits that it does not know."""
UNKNOWN = "unknown"
"""What stands for a refusal: as the new answer of a fact whose answer is refused, it means the model's own words; see
`factpatch.evaluation.forgetting`."""


Place = Literal["shared", "name", "last"]
"""How the subject of a fact was found that came without one: *shared*, since its texts have it in common; as a *name*,
by its capital letters; or not at all, so that the *last* word of the prompt stands for it. See
`factpatch.data.subjects`."""


def _how_to_forget(value: object) -> object:
    return {True: "refuse", False: None}[value] if isinstance(value, bool) else value


@explaining
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Fact:
    """One edit: after it, `prompt` filled with `subject` is answered by `target_new`.

    The subject and the targets lose surrounding white space, and prompts that are asked lose it at their end, since the
    editor itself decides whether a space comes before an answer.

    Where the subject goes, `prompt` holds `{subject}`, once: then every other brace is text. Or `{}`, once. If it holds
    neither, or several `{}`, the subject is looked for in the prompt, as it is spelled and then ignoring case, and its
    first place counts. The fact keeps the prompt with `{}`, or with `{subject}` if the rest holds `{}`, and the subject
    as the prompt spells it. Nothing goes through `str.format`.

    Attributes:
        prompt: The question, with a slot where the subject goes, ending right before the answer.
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
        space: Whether a space comes between the prompt and its answer. None: as the end of the prompt suggests.
        questions: The same as complete questions, as people ask them; see `factpatch.evaluation.questions`. Lists are
            accepted.
        ripples: Prompts whose answers follow from the edit, or must survive it. Lists are accepted.
        trained: Questions that the edit itself was made in, so that none of them is asked. Lists are accepted.
        forget: Whether the model is to stop giving the answer `target_true`, and what it does instead, see
            `Forgetting`; True means "refuse", False and None a fact that is taught. `Forget` makes such a fact. Without
            `target_true`, what the model itself answers is forgotten.
        place: How the subject was found, see `Place`; None if it was named.
        aliases: Other spellings of the answer, and other answers, any of which counts as said; of a fact to forget,
            those of the old one. The edit is made with the answer itself. Lists are accepted.
        valid_from: Since when the fact holds: a year, a month or a day, as 2024, 2024-05 or 2024-05-31.
        source: Where it is from.
        note: Anything else to keep with it.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or unknown, a text is blank, `prompt` shows no place for the subject, or the
            answer to forget is the one to give.
    """

    prompt: Question
    subject: Name
    target_new: Name
    target_true: Name | None = None
    id: Annotated[Text | None, BeforeValidator(_numbered)] = None
    paraphrases: _Questions = ()
    neighbors: Annotated[tuple[Neighbor, ...], BeforeValidator(_listed)] = ()
    generation_prompts: _Texts = ()
    relation_id: Name | None = None
    target_new_id: Name | None = None
    space: Annotated[bool | None, Strict()] = None
    questions: _Questions = ()
    ripples: Annotated[tuple[Ripple, ...], BeforeValidator(_listed)] = ()
    trained: _Questions = ()
    forget: Annotated[Forgetting | None, BeforeValidator(_how_to_forget)] = None
    place: Place | None = None
    aliases: Annotated[tuple[Name, ...], BeforeValidator(_listed)] = ()
    valid_from: Annotated[Name | None, BeforeValidator(_numbered), AfterValidator(_dated)] = None
    source: Name | None = None
    note: Name | None = None

    def __post_init__(self) -> None:
        if self.forget and self.target_true is not None and same_object(self.target_true, self.target_new):
            raise ValueError(
                f"target_new={quoted(self.target_new)}: is the answer to forget, target_true; leave target_new out, or "
                "give words that refuse."
            )
        around = around_slot(self.prompt)
        found = prompt_around(self.prompt, self.subject) if around is None else (with_slot(*around), self.subject)
        if found is None:
            several = f"holds {SLOT} {self.prompt.count(SLOT)} times, and " if SLOT in self.prompt else ""
            raise ValueError(
                f"prompt={quoted(self.prompt)}: {several}does not contain the subject {quoted(self.subject)}, in any "
                f"case; write {NAMED_SLOT} where the subject goes, once, as in 'The capital of {NAMED_SLOT} is'"
            )
        for name, value in zip(("prompt", "subject"), found, strict=True):
            object.__setattr__(self, name, value)

    @property
    def _around(self) -> tuple[str, str]:
        """What stands before and after the subject."""
        around = around_slot(self.prompt)
        assert around is not None  # what __post_init__ wrote
        return around

    @property
    def text(self) -> str:
        """The prompt with the subject in its slot."""
        before, after = self._around
        return f"{before}{self.subject}{after}"

    @property
    def subject_start(self) -> int:
        """The index in `text` of the first character of the subject."""
        return len(self._around[0])

    @property
    def other(self) -> str | None:
        """The true object, with which the new one is compared; None if it is unknown, or the same."""
        known = self.target_true is not None and not same_object(self.target_true, self.target_new)
        return self.target_true if known else None

    @property
    def answers(self) -> tuple[str, ...]:
        """The new answers, any of which counts as said; of a fact to forget, only the words that refuse."""
        return (self.target_new,) if self.forget else (self.target_new, *self.aliases)

    @property
    def old_answers(self) -> tuple[str, ...]:
        """The old answers, any of which counts as said; none if it is not known."""
        old = () if self.target_true is None else (self.target_true,)
        return (*old, *self.aliases) if self.forget and old else old

    @property
    def subject_end(self) -> int:
        """The index in `text` of the last character of the subject."""
        return self.subject_start + len(self.subject) - 1

    @property
    def key(self) -> str:
        """The question it answers, whatever its subject is found to be. Facts with equal keys cannot both hold."""
        return unicodedata.normalize("NFC", self.text)

    def to_dict(self) -> dict[str, Any]:
        """Return the fact as a JSON-able record that `from_dict` reads back, without its empty fields."""
        record: dict[str, Any] = _FACT.dump_python(self, mode="json", exclude_defaults=True)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Fact:
        """Build a fact from a record as `to_dict` makes it; an optional field may be absent or None.

        A record whose `forget` is true and that has no `target_new` is silenced; with one, that is said instead.

        Raises:
            TypeError: `record` is not a mapping, or a field has the wrong type.
            ValueError: A field is missing, unknown, or not acceptable to `Fact`.
        """
        given = {name: it for name, it in _fields(record).items() if it is not None or name not in _OPTIONAL}
        if given.get("forget") and not given.get("target_new"):
            given |= {"target_new": UNKNOWN, "forget": "silence" if given["forget"] is True else given["forget"]}
        if "target_new" not in given and given.get("target_true"):
            raise ValueError("missing field 'target_new'; to make a model forget target_true, add \"forget\": true.")
        return cls(**given)


# It stands beside `Fact` and reads like it.
def Forget(  # noqa: N802
    prompt: str, subject: str, target_true: str | None = None, *, instead: str | None = None, **fields: Any
) -> Fact:
    """Return the fact that the answer to a question is to be forgotten.

    Args:
        prompt: The question, and `subject` what it is about, as in `Fact`.
        target_true: The answer to forget; by default what the model says when it is edited.
        instead: What the model is to say: words that refuse, or "unknown" for the model's own. By default nothing is
            put in the answer's place.
        **fields: Further fields of `Fact`, such as paraphrases and neighbors, with which it is measured.

    Raises:
        TypeError, ValueError: As `Fact`.
    """
    how: Forgetting = "silence" if instead is None else "refuse"
    return Fact(prompt, subject, instead or UNKNOWN, target_true, forget=how, **fields)


LATER_FIELDS = frozenset({"forget", "place", "aliases", "valid_from", "source", "note"})
"""Fields of a fact that versions before 0.3 refuse. A file that holds one has a format number that says so."""
_FACT = TypeAdapter(Fact)
_OPTIONAL = frozenset(field.name for field in fields(Fact) if field.default is not MISSING)


def _fields(record: object) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise TypeError(f"record={quoted(record)}: must be a mapping of field names to values.")
    return record


def same_object(one: str, other: str) -> bool:
    """Whether two objects differ in no more than case, white space and Unicode's forms: nothing to compare."""
    spelled, respelled = (unicodedata.normalize("NFC", " ".join(text.split()).casefold()) for text in (one, other))
    return spelled == respelled


Repeats = Literal["first", "last", "error"]
"""Which of several facts that answer the same question is kept; or that they are an error."""
_SHOWN = 20
"""How many repeated questions an error lists."""


class RepeatedQuestionsError(ValueError):
    """Facts that are to be written at once answer the same question."""


def check_batch(facts: Sequence[Fact]) -> None:
    """Check that a batch can be written at once: it is not empty and asks no question twice.

    Raises:
        RepeatedQuestionsError: Facts ask the same; the message lists all of them, as far as that is of use.
        ValueError: `facts` is empty.
    """
    if not facts:
        raise ValueError("facts=[]: a batch needs at least one fact.")
    without_repeats(facts, "error")


def without_repeats(
    facts: Sequence[Fact], repeats: Repeats = "error", places: Sequence[str] | None = None
) -> list[Fact]:
    """Keep one fact for every question, and log what was dropped: exact duplicates, and other answers.

    Args:
        facts: They answer the same question where their texts are the same.
        repeats: Which of them to keep; or "error", to refuse them.
        places: What messages call each fact; by default its index and its id.

    Returns:
        The facts that are kept, in their order.

    Raises:
        RepeatedQuestionsError: A question is repeated, and `repeats` is "error".
        ValueError: `repeats` is unknown.
    """
    if repeats not in get_args(Repeats):
        raise ValueError(f"repeats={repeats!r}: must be one of {', '.join(get_args(Repeats))}.")
    order = range(len(facts))
    kept: dict[str, int] = {}
    again: list[tuple[int, int]] = []  # the fact that is kept, and another
    for i in reversed(order) if repeats == "last" else order:
        first = kept.setdefault(facts[i].key, i)
        if first != i:
            again.append((first, i))
    if not again:
        return list(facts)
    said = [_repetition(facts, first, i, places) for first, i in sorted(again, key=lambda pair: pair[1])]
    same = sum(facts[first].target_new == facts[i].target_new for first, i in again)
    counts = f"{counted(same, 'exact duplicate')} and {counted(len(again) - same, 'conflicting answer')}"
    if repeats != "error":
        logger.warning("%s dropped, as the %s answer to a question is kept; the first: %s", counts, repeats, said[0])
        return [facts[i] for i in sorted(kept.values())]
    if len(said) > _SHOWN:
        said = [*said[:_SHOWN], f"and {len(said) - _SHOWN} more."]
    listed = said[0] if len(said) == 1 else "\n  ".join([f"{counts}:", *said])
    raise RepeatedQuestionsError(
        f"{listed}{' ' if len(said) == 1 else chr(10)}A batch can hold one answer to a question. Drop the others with "
        "--repeats first or --repeats last (in Python: without_repeats; in a run's configuration: distinct: true), or "
        "edit them in successive batches."
    )


def _repetition(facts: Sequence[Fact], first: int, i: int, places: Sequence[str] | None) -> str:
    first, i = sorted((first, i))
    one, other = facts[first].target_new, facts[i].target_new
    pair, text = f"{_place(facts, first, places)} and {_place(facts, i, places)}", quoted(facts[i].text)
    if one == other:
        return f"{pair} are duplicates: both answer {text} with {quoted(one)}."
    return f"{pair} conflict: they answer {text} with {quoted(one)} and {quoted(other)}."


def _place(facts: Sequence[Fact], i: int, places: Sequence[str] | None) -> str:
    name = facts[i].id
    place = f"facts[{i}]" if places is None else places[i]
    return place if name is None else f"{place} (id {quoted(name)})"


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
    often = Counter(fact.subject.casefold() for fact in facts)
    facts = [
        fact for fact in facts if often[fact.subject.casefold()] > 1
    ]  # the others have nothing to be compared with
    subjects = [fact.subject.casefold() for fact in facts]
    words = [frozenset(re.findall(r"\w+", fact.prompt.casefold())) for fact in facts]
    count = Counter((subject, word) for subject, some in zip(subjects, words, strict=True) for word in some)
    # Of one subject there may be thousands of facts, too many to compare them all. Prompts that share more than half of
    # their words share one of the rarer half of each, and that is where they are looked up.
    known: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    pairs = []
    for i, fact in enumerate(facts):
        subject, text = subjects[i], fact.text
        ordered = sorted(words[i], key=lambda word: (count[subject, word], word))
        rare = [("word", subject, word) for word in ordered[: len(ordered) - len(ordered) // 2]]
        near = {j for key in rare for j in known[key] if 2 * len(words[i] & words[j]) > len(words[i] | words[j])}
        near.update(j for other in fact.paraphrases for j in known["text", subject, other])
        near.update(known["paraphrase", subject, text])
        pairs += [(facts[j], fact) for j in sorted(near) if facts[j].key != fact.key]
        asked = {("paraphrase", subject, other) for other in fact.paraphrases}
        for key in (*rare, *asked, ("text", subject, text)):
            known[key].append(i)
    return pairs


def find_facts(batches: Sequence[Sequence[Fact]], names: Iterable[Fact | str]) -> list[tuple[int, int]]:
    """Return where facts are in successive batches, each as (batch, place), both from 0, in ascending order.

    Args:
        batches: The facts of each batch.
        names: Facts, their ids, or places as `factpatch log --facts` shows them: "2.3" is the third fact of batch 2. An
            id that several facts have means all of them if they answer the same question, and a place every edit of its
            fact.

    Raises:
        ValueError: No name is given, a name is not found, or an id belongs to facts that answer different questions.
    """
    every = [(batch, place) for batch, facts in enumerate(batches) for place in range(len(facts))]
    found: set[tuple[int, int]] = set()
    for name in names:
        places = [(i, j) for i, j in every if name in (batches[i][j], batches[i][j].id) or _asks(name, batches[i][j])]
        if len({batches[i][j].key for i, j in places}) > 1:
            shown = ", ".join(f"{i + 1}.{j + 1}" for i, j in places)
            raise ValueError(
                f"fact={quoted(str(name))}: facts with this id ask different questions; give the place of one: {shown}."
            )
        places = places or [(i, j) for i, j in every if name == f"{i + 1}.{j + 1}"]
        if not places:
            said = quoted(name.text if isinstance(name, Fact) else name)
            raise ValueError(
                f"fact={said}: no batch in force holds it. Give an id, or a place such as 2.3, the third fact of batch "
                "2; factpatch log --facts shows both."
            )
        held = {batches[i][j] for i, j in places}  # one that was edited again has several places
        found.update((i, j) for i, j in every if batches[i][j] in held)
    if not found:
        raise ValueError("fact=[]: name at least one fact.")
    return sorted(found)


def _asks(name: Fact | str, held: Fact) -> bool:
    """Whether a fact to forget is the given one, which an edit has completed."""
    return isinstance(name, Fact) and name.forget == held.forget is not None and name.key == held.key


def latest(facts_by_batch: Iterable[Sequence[Fact]]) -> tuple[list[Fact], list[Fact]]:
    """Sort the facts of successive batches into those in force and those that a later fact has replaced.

    A fact replaces the earlier one with the same `key`, also where both have the same target. One that is edited again,
    unchanged, replaces nothing.

    Args:
        facts_by_batch: The batches in the order in which they were edited.

    Returns:
        The facts in force, in the order of their last edit, and the superseded ones, in the order of their replacement.
    """
    in_force: dict[str, Fact] = {}
    superseded: list[Fact] = []
    for fact in (fact for facts in facts_by_batch for fact in facts):
        # Popping first moves an updated fact to the end; plain assignment would keep its old place.
        replaced = in_force.pop(fact.key, None)
        if replaced not in (None, fact):
            superseded.append(replaced)
        in_force[fact.key] = fact
    return list(in_force.values()), superseded
