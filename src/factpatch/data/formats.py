"""Records to facts: our own format and the published ones, each recognized by its fields; and files of facts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from factpatch.data.reading import DataFileError
from factpatch.data.records import Record, convert_records, placed_records, read_optional_text, read_text, read_texts
from factpatch.data.ripples import of_ripple_edits, ripple_of_group, ripples_of_mquake, ripples_of_ripple_edits
from factpatch.data.sources import fetched, resolve_data
from factpatch.data.subjects import last_word, located
from factpatch.facts import UNKNOWN, Fact, Neighbor, RepeatedQuestionsError, Repeats, Ripple, without_repeats
from factpatch.support.files import atomic_write
from factpatch.support.slots import NAMED_SLOT, SLOT, prompt_around, two_readings, with_slot
from factpatch.support.words import counted, quoted

_WIKIBIO = {"text": "prompt", "concept": "subject", "labels": "target_new"}
_FASTEDIT = {"target": "target_new", "queries": "paraphrases"}
_CKNOWEDIT = {"target_old": "ground_truth"}
_WIKIBIGEDIT = {"update": "prompt", "ans": "target_new"}
logger = logging.getLogger(__name__)

_NO_ANSWER = "<|endoftext|>"  # what EasyEdit writes where the true answer is not known
_SAME_QUESTION = "Subject_Aliasing"


@dataclass(frozen=True)
class RecordFormat:
    """One format of records."""

    name: str
    """The name in messages."""
    marks: frozenset[str]
    """Any of these fields marks a record as meant to be in this format, complete or not."""
    convert: Callable[[Record, int], Fact]
    """Turns a record and its place in the file, from 0, into a fact; raises ValueError or TypeError."""
    asks: tuple[str, ...] = ()
    """Fields that may hold the complete prompt, in which the subject is found where the record names none."""


def load_facts(
    path: str | Path, limit: int | None = None, skip_unusable: bool = False, repeats: Repeats | None = None
) -> list[Fact]:
    """Return the facts of a file, in its order.

    Reads `.json` and `.jsonl` (a list of records, an object with the list under "facts", or one record per line), and
    `.csv` and `.tsv` (a header, then one fact per row, in our own format; lists as JSON text). In the JSON files each
    record may be in our own format or in one of the published ones; see `FORMATS`.

    Args:
        path: The file, in UTF-8, or in UTF-16 with a byte order mark; its extension says how it is read. Or the name of
            a published data set that was fetched, such as "counterfact"; see `factpatch.data.sources`.
        limit: How many facts to read, from the start; later records are not checked. None reads all.
        skip_unusable: Skip records that are no facts, and log how many there were. Some files have a few: in those of
            KnowEdit, some prompts do not name their subject.
        repeats: What to do where facts answer the same question: keep the "first" or the "last" of them, and log how
            many were dropped; or raise an "error" that names them all. None keeps all of them.

    Raises:
        DataFileError: The file is missing, empty, of an unknown kind or malformed, a record is not a fact, or questions
            are repeated and that is an error.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive, or `repeats` is unknown.
    """
    (facts,) = load_batches(path, None, limit, skip_unusable, repeats)
    return facts


def load_batches(
    path: str | Path,
    size: int | None,
    limit: int | None = None,
    skip_unusable: bool = False,
    repeats: Repeats | None = "error",
) -> list[list[Fact]]:
    """Return the facts of a file in batches that can be written at once, `size` in each; None for one batch.

    Args:
        path: The file, and `limit`, `skip_unusable` and `repeats`, as for `load_facts`.
        size: How many facts a batch has. A question that is repeated in another batch is an update, and no error;
            "first" and "last" keep one answer in the whole file.

    Raises:
        DataFileError, TypeError, ValueError: As `load_facts`.
    """
    path = resolve_data(path)
    found = placed_records(path, fact_from, limit, skip_unusable, parts_of)
    places, facts = [place for place, _ in found], [fact for _, fact in found]
    _note_equal_answers(path, places, facts)
    _note_found_subjects(path, places, facts)
    _note_slots(path, places, facts)
    if repeats is not None and repeats != "error":
        facts = without_repeats(facts, repeats, places)
    size = size or len(facts)
    batches = [slice(start, start + size) for start in range(0, len(facts), size)]
    try:
        for batch in batches if repeats == "error" else ():
            without_repeats(facts[batch], "error", places[batch])
    except RepeatedQuestionsError as error:
        raise DataFileError(f"{path}: {error}") from error
    return [facts[batch] for batch in batches]


def _note_slots(path: Path, places: Sequence[str], facts: Sequence[Fact]) -> None:
    """Log how many facts have a slot in a text that is asked as it stands, unless their prompt says it is text."""
    texts = [(*fact.paraphrases, *fact.questions, *(neighbor.prompt for neighbor in fact.neighbors)) for fact in facts]
    found = [
        (place, text)
        for place, fact, whole in zip(places, facts, texts, strict=True)
        for text in whole
        if SLOT in text and NAMED_SLOT not in fact.prompt
    ]
    if found:
        logger.warning(
            "%s: %s with {} beside a prompt, asked as they stand: only the prompt has a slot for the subject, so write "
            "them out; the first, in %s: %s",
            path,
            counted(len(found), "text"),
            found[0][0],
            quoted(found[0][1]),
        )


def _note_equal_answers(path: Path, places: Sequence[str], facts: Sequence[Fact]) -> None:
    """Log how many facts have a new answer that equals the true one."""
    same = [
        place for place, fact in zip(places, facts, strict=True) if fact.target_true is not None and fact.other is None
    ]
    if same:
        logger.warning(
            "%s: target_new equals target_true in %s, so the true answer counts as unknown there; the first: %s",
            path,
            counted(len(same), "fact"),
            same[0],
        )


def _note_found_subjects(path: Path, places: Sequence[str], facts: Sequence[Fact]) -> None:
    """Log where facts are written that name no subject."""
    for how, words in (
        ("shared", "without a subject, written at the name that its texts share"),
        ("name", "without a subject, written at the name that its prompt holds"),
        ("last", "without a subject or a name in its prompt, written at its last token"),
    ):
        found = [(place, fact) for place, fact in zip(places, facts, strict=True) if fact.place == how]
        if found:
            place, fact = found[0]
            logger.warning(
                "%s: %s %s; the first: %s, at %s",
                path, counted(len(found), "fact"), words, place, quoted(fact.subject),
            )  # fmt: skip


def save_facts(facts: Iterable[Fact], path: str | Path) -> None:
    """Write facts to a `.json` file in our own format, whole or not at all; `load_facts` reads them back.

    Raises:
        DataFileError: `path` does not end in `.json`.
        OSError: The file cannot be written.
        ValueError: `facts` is empty.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise DataFileError(f"{path}: facts are saved as JSON; choose a name that ends in .json.")
    records = [_record(fact) for fact in facts]
    if not records:
        raise ValueError("facts=[]: there is nothing to save; give at least one fact.")
    text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    # Bytes, so that every system writes the same line ends.
    atomic_write(path, lambda draft: draft.write_bytes(text.encode()))


def _record(fact: Fact) -> Record:
    """A fact as `load_facts` reads it, with a slot that can only be one."""
    record = fact.to_dict()
    if two_readings(fact.prompt, fact.subject) is not None:
        record["prompt"] = with_slot(fact.text[: fact.subject_start], fact.text[fact.subject_end + 1 :], named=True)
    return record


def saved_facts(path: Path) -> list[Fact]:
    """Return the facts of a file that `save_facts` wrote, also an earlier version's; raise as `load_facts` does.

    Unlike there, nothing is taken for another program's record.
    """
    return convert_records(path, lambda record, _: Fact.from_dict(record))


def demo_facts() -> list[Fact]:
    """Return the counterfactual facts that come with the package.

    Each has two paraphrases, a question, four neighbors, three generation prompts and the ids of its reference texts;
    see `factpatch.data.references.demo_references`.
    """
    return load_facts(Path(__file__).with_name("demo_facts.json"))


def facts_at_hand(count: int) -> tuple[list[Fact], str]:
    """Return at most `count` facts for users who name no file, and which they are, in words.

    They are the first of CounterFact, if it was fetched, else of `demo_facts`. Raises DataFileError where the fetched
    file is damaged.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be positive.")
    if fetched("counterfact"):
        facts = load_facts("counterfact", count)
        return facts, f"the first {len(facts)} facts of CounterFact, as fetched"
    facts = demo_facts()[:count]
    return facts, (
        f"{len(facts)} of the facts that come with the package, since CounterFact has not been fetched: factpatch data "
        "fetch counterfact"
    )


def fact_from(record: Record, index: int) -> Fact:
    """Return the fact of a record in whichever format; a TypeError or ValueError says why it is none.

    Numbers become text, as tables write the year 1984, and NaN is a missing value, as pandas writes it. A record that
    holds several facts has several parts; see `parts_of`.
    """
    record = _as_text(record)
    if record.get("subject") in (None, ""):
        record = {name: value for name, value in record.items() if name != "subject"}
    for mark, lacking in _LACKING.items():
        if mark in record and "subject" not in record:
            raise ValueError(f"{lacking}; write prompt, subject and target_new.")
    for record_format in FORMATS:
        if not record_format.marks.isdisjoint(record):
            asked = next((name for name in record_format.asks if isinstance(record.get(name), str)), None)
            if asked is None or "subject" in record:
                return _completed(record, record_format.convert(record, index))
            word = last_word(read_text(record, asked))  # stands for the subject until the other texts are read
            return _completed(record, located(record_format.convert({**record, "subject": word}, index)))
    known = "; ".join(record_format.name for record_format in FORMATS)
    raise ValueError(f"fields {quoted(list(record))} belong to no known format; known: {known}.")


def _completed(record: Record, fact: Fact) -> Fact:
    """The fact of a record with `forget`, which any format may have; in our own, the fact itself knows."""
    how = record.get("forget")
    if not how or fact.forget:
        return fact
    # What such a record puts in as the new answer is not what a model says that has forgotten the true one.
    return replace(fact, target_new=UNKNOWN, forget="silence" if how is True else how)


def parts_of(record: Record) -> Sequence[Record]:
    """Split a record of MQuAKE (arXiv:2305.14795), which has several edits, into records of CounterFact's format.

    Their id is that of the case, followed by the edit's number, from 1, if there are several. The question that is
    asked about an edit is its paraphrase; those about the case follow from all of its edits and are ripples of the
    last.
    """
    edits = record.get("requested_rewrite")
    if not isinstance(edits, list):
        return [record]
    if not edits or not all(isinstance(edit, Mapping) for edit in edits):
        raise ValueError(f"requested_rewrite={quoted(edits)}: must be an object, or a list of objects as in MQuAKE.")
    parts = []
    for number, edit in enumerate(edits, start=1):
        part = {"requested_rewrite": edit, "neighborhood_prompts": []}
        part["paraphrase_prompts"] = [] if edit.get("question") is None else [edit["question"]]
        if record.get("case_id") is not None:
            part["case_id"] = f"{record['case_id']}-{number}" if len(edits) > 1 else record["case_id"]
        if number == len(edits):
            part["ripples"] = ripples_of_mquake(record)
        parts.append(part)
    return parts


def _as_text(value: Any) -> Any:
    """A value of JSON with its numbers as texts and its NaN as null."""
    if isinstance(value, dict):
        return {name: _as_text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)  # tables make 42.0 of 42 next to a missing number
    return str(value) if type(value) is int else value


def fact_from_own(record: Record, index: int) -> Fact:
    """Return the fact of a record in our own format: the fields of `Fact`, by their names.

    `target_new` may be a list: the first is the answer, the others are aliases. A neighbor is an object with `prompt`
    and `target_true`, or a plain prompt, whose answer is then the fact's own `target_true`. A prompt with `{}` that
    holds the subject in full too is refused: other programs write so where the braces are text.
    """
    prompt, subject = record.get("prompt"), _subject(record)
    readings = two_readings(prompt, subject) if isinstance(prompt, str) else None
    if readings is not None:
        raise ValueError(
            f"prompt={quoted(prompt)}: holds {{}} and the subject {quoted(subject)} in full, so it may ask "
            f"{quoted(readings[0])} or, if the braces are text, {quoted(readings[1])}; write {{subject}} where the "
            "subject goes."
        )
    record = {**record, **_several(record)}
    neighbors, target_true = record.get("neighbors"), record.get("target_true")
    if not isinstance(neighbors, list):
        return Fact.from_dict(record)
    for i, neighbor in enumerate(neighbors):
        if isinstance(neighbor, str) and target_true is None:
            raise ValueError(
                f"neighbors[{i}]={quoted(neighbor)} is a plain prompt, which takes the fact's target_true, but the "
                'record has none; add target_true, or write {"prompt": ..., "target_true": ...}.'
            )
    full = [{"prompt": one, "target_true": target_true} if isinstance(one, str) else one for one in neighbors]
    return Fact.from_dict({**record, "neighbors": full})


def fact_from_counterfact(record: Record, index: int) -> Fact:
    """Return the fact of a CounterFact record, as published with ROME (arXiv:2202.05262) and MEMIT.

    CounterFact picks neighbors that share the fact's true answer, so `target_true` answers all of them. A record
    without `case_id` takes `index` as id. The relation, the target's id and the generation prompts are missing in some
    mirrors. `questions`, a list that later work adds, asks the same in natural words. Other fields are ignored: no
    published metric reads them.
    """
    target_true = read_text(record, "requested_rewrite.target_true.str")
    return Fact(
        prompt=_template(read_text(record, "requested_rewrite.prompt")),
        subject=read_text(record, "requested_rewrite.subject"),
        target_new=read_text(record, "requested_rewrite.target_new.str"),
        target_true=target_true,
        id=record.get("case_id", str(index)),
        paraphrases=tuple(read_texts(record, "paraphrase_prompts")),
        neighbors=tuple(Neighbor(prompt, target_true) for prompt in read_texts(record, "neighborhood_prompts")),
        generation_prompts=tuple(read_texts(record, "generation_prompts")) if "generation_prompts" in record else (),
        relation_id=read_optional_text(record, "requested_rewrite.relation_id"),
        target_new_id=read_optional_text(record, "requested_rewrite.target_new.id"),
        questions=tuple(read_texts(record, "questions")) if record.get("questions") is not None else (),
        ripples=record.get("ripples", ()),
    )


def fact_from_ripple_edits(record: Record, index: int) -> Fact:
    """Return the fact of a RippleEdits record (arXiv:2307.12976) with its test queries as ripples; its id is `index`.

    The record states the edit as a sentence and names its subject by an id only, see `ripples.of_ripple_edits`.
    """
    edited = of_ripple_edits(record)
    prompt, subject = prompt_around(edited.prompt, edited.subject) or (edited.prompt, edited.subject)
    return Fact(
        prompt=prompt,
        subject=subject,
        target_new=edited.target_new,
        target_true=edited.target_true,
        id=str(index),
        target_new_id=read_optional_text(record, "edit.target_id"),
        ripples=ripples_of_ripple_edits(record),
    )


def fact_from_zsre(record: Record, index: int) -> Fact:
    """Return the fact of a zsRE record in the format of MEND (arXiv:2110.11309); its id is `index`.

    The new target is the first of `answers`. There is no true target: `alt` and `pred` are not read. The one neighbor
    is the unrelated question `loc`, which the files write without a question mark, so it gets one. Like the published
    loader of ROME, this one leaves the marker "nq question: " in front of it: published figures are measured so.
    """
    prompt, subject = _prompt_around(record, "src")
    answers = read_texts(record, "answers")
    if not answers:
        raise ValueError("answers=[]: its first item is the new target, so it needs at least one.")
    return Fact(
        prompt=prompt,
        subject=subject,
        target_new=answers[0],
        id=str(index),
        paraphrases=(read_text(record, "rephrase"),),
        neighbors=(Neighbor(read_text(record, "loc") + "?", read_text(record, "loc_ans")),),
    )


def fact_from_wikibio(record: Record, index: int) -> Fact:
    """Return the fact of a WikiBio record of KnowEdit: after a passage about `concept`, `labels` is the answer."""
    for name in _WIKIBIO:
        read_text(record, name)  # an error must show the name in the file
    return fact_from_easyedit(_renamed(record, _WIKIBIO), index)


def fact_from_fastedit(record: Record, index: int) -> Fact:
    """Return the fact of a request of FastEdit: `target` is the new answer, and `queries` are its paraphrases."""
    if "target_new" in record:  # a field of our own, misspelled
        return fact_from_own(record, index)
    renamed = _renamed(record, _FASTEDIT)
    if isinstance(renamed.get("paraphrases"), list):
        asked = _template(read_text(record, "prompt")).replace("{}", _subject(record))
        renamed["paraphrases"] = [query for query in renamed["paraphrases"] if query != asked]
    return fact_from_own(renamed, index)


def fact_from_cknowedit(record: Record, index: int) -> Fact:
    """Return the fact of a CKnowEdit record (arXiv:2409.05806), which names no subject.

    `target_old` is what the model says now; `locality` is a list of objects with `prompt` and `answer`.
    """
    return fact_from_easyedit(_renamed(record, _CKNOWEDIT), index)


def fact_from_wikibigedit(record: Record, index: int) -> Fact:
    """Return the fact of a WikiBigEdit record (arXiv:2503.05683), or of UltraEditBench, which calls `update` `prompt`.

    `personas` asks the same as `rephrase`, in the words of somebody else; `mhop` asks what follows, and is a ripple.
    """
    same = [record.get(name) for name in ("rephrase", "rephrase_prompt", "personas")]
    renamed = _renamed(record, _WIKIBIGEDIT)
    fact = fact_from_easyedit({**renamed, "rephrase_prompt": [one for one in same if one is not None]}, index)
    hop, answer = (read_optional_text(record, name) for name in ("mhop", "mhop_ans"))
    if hop is None or answer is None:
        return fact
    return replace(fact, ripples=(Ripple("multi_hop", hop, (answer,)),))


def _renamed(record: Record, names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in record.items()}


def fact_from_easyedit(record: Record, index: int) -> Fact:
    """Return the fact of an EasyEdit request (arXiv:2308.07269) or of a KnowEdit record (arXiv:2401.01286).

    - Without `case_id`, its id is `index`.
    - `prompt` holds the subject in full, and every brace is text; or, if it does not, `{}` in its place. `{subject}`
      in its place leaves no doubt.
    - `ground_truth` is the true answer. Where answers are lists, or lists of spellings, the first is taken, as EasyEdit
      does, and other new ones are aliases; none, or "<|endoftext|>", means that it is not known.
    - Paraphrases are `rephrase_prompt`, or `rephrase`, and those prompts of `portability` that ask the same with
      another name of the subject (Subject_Aliasing) and expect the new answer. What its groups Reasoning and
      Logical_Generalization ask follows from the edit, and is a ripple.
    - Neighbors are the prompts of `locality`, in all its groups, `locality_prompt` and `loc`; most of them ask
      something else about the same subject. A prompt without an answer is skipped.
    """
    prompt, subject = read_text(record, "prompt"), _subject(record)
    if prompt.count("{subject}") != 1:
        prompt, subject = prompt_around(prompt, subject, words_only="{}" in prompt) or (prompt, subject)
    record = {**record, **_several(record)}
    target_new = read_text(record, "target_new").strip()
    neighbors = [*_probes(record, "locality")]
    further = [*_probes(record, "portability")]
    same = (
        question
        for group, question, answers in further
        if group == _SAME_QUESTION and target_new.casefold() in map(str.casefold, answers)
    )
    # EasyEdit's own CounterFact files have two fields in place of `locality`, and other sets have two as zsRE has them.
    for prompts, truths in (("locality_prompt", "locality_ground_truth"), ("loc", "loc_ans")):
        neighbors += _pairs(prompts, "", {"prompt": record.get(prompts), "ground_truth": record.get(truths)})
    return Fact(
        prompt=prompt,
        subject=subject,
        target_new=target_new,
        target_true=next(_answers("ground_truth", record.get("ground_truth")), None),
        id=record.get("case_id", str(index)),
        aliases=record.get("aliases") or (),
        paraphrases=(*_rephrased(record), *same),
        neighbors=tuple(Neighbor(question, answers[0]) for _, question, answers in neighbors if answers),
        ripples=tuple(ripple for one in further for ripple in ripple_of_group(*one)),
    )


# The first match wins: later formats share names with earlier ones, our own with all.
FORMATS = tuple(
    RecordFormat(name, frozenset(marks.split()), convert, tuple(asks.split()))
    for name, marks, convert, asks in (
        ("CounterFact and MQuAKE (requested_rewrite, ...)", "requested_rewrite", fact_from_counterfact, ""),
        ("WikiBigEdit (subject, update, ans, rephrase, ...)", "update ans", fact_from_wikibigedit, "update prompt"),
        ("RippleEdits (example_type, edit, ...)", "example_type", fact_from_ripple_edits, ""),
        ("zsRE (subject, src, answers, ...)", "src answers", fact_from_zsre, "src"),
        ("KnowEdit's WikiBio (text, concept, labels, locality)", "concept labels", fact_from_wikibio, ""),
        ("CKnowEdit (prompt, target_old, target_new, ...)", "target_old", fact_from_cknowedit, "prompt"),
        (
            "EasyEdit and KnowEdit (prompt, subject, target_new, ground_truth, rephrase_prompt, locality, portability)",
            "ground_truth rephrase_prompt rephrase locality portability locality_prompt loc loc_ans",
            fact_from_easyedit,
            "prompt",
        ),
        ("FastEdit (prompt, subject, target, queries)", "target queries", fact_from_fastedit, "prompt"),
        ("factpatch (prompt, subject, target_new, ...)", "prompt subject target_new", fact_from_own, "prompt"),
    )
)
# What marks the records of published sets that hold no facts, and what they lack.
_LACKING = {
    "ent": "ConvSent's records (ent, pos, neg) hold a topic and opinions about it, but no prompt with one answer",
}


def _subject(record: Record) -> str:
    if record.get("subject") is None:
        raise ValueError(
            "missing field 'subject': what the prompt is about, in the prompt's own words, as France in 'The capital "
            "of France is'; add it to the record."
        )
    return read_text(record, "subject")


def _prompt_around(record: Record, text: str) -> tuple[str, str]:
    """Return the text in a field with a slot in place of the subject, and the subject as found."""
    whole, name = read_text(record, text), _subject(record)
    found = prompt_around(whole, name)
    if found is None:
        raise ValueError(f"{text}={quoted(whole)} does not contain the subject {quoted(name.strip())}, in any case.")
    return found


def _template(prompt: str) -> str:
    """A prompt whose `{}` is its slot, whatever else stands there."""
    before, slot, after = prompt.partition("{}")
    return with_slot(before, after) if slot and "{}" not in after else prompt


def _several(record: Record) -> dict[str, Any]:
    """The new answer and its aliases where a record has a list of answers, or of lists of spellings."""
    answers = record.get("target_new")
    found = list(_answers("target_new", answers)) if isinstance(answers, list) else []
    if not found:
        return {}
    aliases = record.get("aliases") or []
    # What is no list is for the fact to refuse.
    return {"target_new": found[0], "aliases": [*found[1:], *aliases] if isinstance(aliases, list) else aliases}


def _rephrased(record: Record) -> list[str]:
    for name in ("rephrase_prompt", "rephrase"):
        if isinstance(record.get(name), str):
            return [read_text(record, name)]
        if record.get(name) is not None:
            return read_texts(record, name)
    return []


def _probes(record: Record, field: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield every prompt of `locality` or `portability` with the name of its group and its answers.

    A group is a list of objects with `prompt` and `ground_truth`, as in KnowEdit, or one such object, as in requests.
    In either, both may be lists of the same length. In CKnowEdit, `answer` is the ground truth, and there is one group.
    """
    groups = record.get(field) or {}
    for group, items in _object(field, {"list": groups} if isinstance(groups, list) else groups).items():
        for item in items if isinstance(items, list) else [items or {}]:
            yield from _pairs(f"{field}.{group}", group, item)


def _pairs(place: str, group: str, item: object) -> Iterator[tuple[str, str, list[str]]]:
    held = _object(place, item)
    prompts, truths = held.get("prompt"), held.get("ground_truth", held.get("answer"))
    if prompts is None:
        return
    if isinstance(prompts, str):
        prompts, truths = [prompts], [truths]
    if not isinstance(prompts, list) or not isinstance(truths, list) or len(prompts) != len(truths):
        raise ValueError(
            f"{place}={quoted(item)}: must hold a prompt and its ground_truth, or two lists of equal length."
        )
    for prompt, truth in zip(read_texts({"prompt": prompts}, "prompt"), truths, strict=True):
        yield group, prompt, list(_answers(f"{place}.ground_truth", truth))


def _answers(name: str, value: object) -> Iterator[str]:
    """Yield the answers in a text, a list of texts or a list of lists of spellings, in order."""
    if isinstance(value, list):
        for item in value:
            yield from _answers(name, item)
    elif isinstance(value, str):
        if value.strip() and value != _NO_ANSWER:
            yield value.strip()
    elif value is not None:
        raise TypeError(f"{name}={quoted(value)}: must be a string or a list of strings.")


def _object(name: str, value: object) -> Record:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={quoted(value)}: must be an object.")
    return value
