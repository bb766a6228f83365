"""Records to facts: our own format and the published ones, each recognized by its fields; and files of facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factpatch.data.records import DataFileError, convert_records, read_optional_text, read_text, read_texts
from factpatch.data.sources import fetched, resolve_data
from factpatch.facts import Fact, Neighbor, prompt_around, two_readings, with_slot
from factpatch.support.files import atomic_write
from factpatch.support.words import quoted

Record = Mapping[str, Any]
_WIKIBIO = {"text": "prompt", "concept": "subject", "labels": "target_new"}
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


def load_facts(path: str | Path, limit: int | None = None, skip_unusable: bool = False) -> list[Fact]:
    """Return the facts of a file, in its order.

    Reads `.json` (a list of records, or an object with the list under "facts"), `.jsonl` (one record per line) and
    `.csv` (a header, then one fact per row, in our own format; lists as JSON text). In the JSON files each record may
    be in our own format or in one of the published ones; see `FORMATS`.

    Args:
        path: The file, in UTF-8; its extension says how it is read. Or the name of a published data set that was
            fetched, such as "counterfact"; see `factpatch.data.sources`.
        limit: How many facts to read, from the start; later records are not checked. None reads all.
        skip_unusable: Skip records that are no facts, and log how many there were. Some files have a few: in those of
            KnowEdit, some prompts do not name their subject.

    Raises:
        DataFileError: The file is missing, empty, of an unknown kind or malformed, or a record is not a fact.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive.
    """
    return convert_records(resolve_data(path), fact_from, limit, skip_unusable)


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

    Each has two paraphrases, four neighbors, three generation prompts and the ids of its reference texts; see
    `factpatch.data.references.demo_references`.
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
    """Return the fact of a record in whichever format; a TypeError or ValueError says why it is none."""
    for record_format in FORMATS:
        if not record_format.marks.isdisjoint(record):
            return record_format.convert(record, index)
    known = "; ".join(record_format.name for record_format in FORMATS)
    raise ValueError(f"fields {list(record)} belong to no known format; known: {known}.")


def fact_from_own(record: Record, index: int) -> Fact:
    """Return the fact of a record in our own format: the fields of `Fact`, by their names.

    A neighbor is an object with `prompt` and `target_true`, or a plain prompt, whose answer is then the fact's own
    `target_true`. A prompt with `{}` that holds the subject in full too is refused: other programs write so where the
    braces are text.
    """
    prompt, subject = record.get("prompt"), record.get("subject")
    readings = two_readings(prompt, subject) if isinstance(prompt, str) and isinstance(subject, str) else None
    if readings is not None:
        raise ValueError(
            f"prompt={quoted(prompt)}: holds {{}} and the subject {quoted(subject)} in full, so it may ask "
            f"{quoted(readings[0])} or, if the braces are text, {quoted(readings[1])}; write {{subject}} where the "
            "subject goes."
        )
    neighbors, target_true = record.get("neighbors"), record.get("target_true")
    if not isinstance(neighbors, list):
        return Fact.from_dict(record)
    for i, neighbor in enumerate(neighbors):
        if isinstance(neighbor, str) and target_true is None:
            raise ValueError(
                f"neighbors[{i}]={neighbor!r} is a plain prompt, which takes the fact's target_true, but the record "
                'has none; add target_true, or write {"prompt": ..., "target_true": ...}.'
            )
    full = [{"prompt": one, "target_true": target_true} if isinstance(one, str) else one for one in neighbors]
    return Fact.from_dict({**record, "neighbors": full})


def fact_from_counterfact(record: Record, index: int) -> Fact:
    """Return the fact of a CounterFact record, as published with ROME (arXiv:2202.05262) and MEMIT.

    CounterFact picks neighbors that share the fact's true answer, so `target_true` answers all of them. A record
    without `case_id` takes `index` as id. The relation, the target's id and the generation prompts are missing in some
    mirrors. Other fields are ignored: no published metric reads them.
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
    )


def fact_from_zsre(record: Record, index: int) -> Fact:
    """Return the fact of a zsRE record in the format of MEND (arXiv:2110.11309); its id is `index`.

    The new target is the first of `answers`. There is no true target: `alt` and `pred` are not read. The one neighbor
    is the unrelated question `loc`, which the files write without a question mark, so it gets one. Like the published
    loader of ROME, this one leaves the marker "nq question: " in front of it: published figures are measured so.
    """
    prompt, subject = _prompt_around(record, "src", "subject")
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
    return fact_from_easyedit({_WIKIBIO.get(name, name): value for name, value in record.items()}, index)


def fact_from_easyedit(record: Record, index: int) -> Fact:
    """Return the fact of an EasyEdit request (arXiv:2308.07269) or of a KnowEdit record (arXiv:2401.01286).

    - Without `case_id`, its id is `index`.
    - `prompt` holds the subject in full, and every brace is text; or, if it does not, `{}` in its place. `{subject}`
      in its place leaves no doubt.
    - `ground_truth` is the true answer. Where answers are lists, or lists of spellings, the first is taken, as EasyEdit
      does; none, or "<|endoftext|>", means that it is not known.
    - Paraphrases are `rephrase_prompt`, or `rephrase`, and those prompts of `portability` that ask the same with
      another name of the subject (Subject_Aliasing) and expect the new answer. Its other groups ask something else,
      whose answer follows from the edit: a fact has no place for them.
    - Neighbors are the prompts of `locality`, in all its groups, and `locality_prompt`; most of them ask something else
      about the same subject. A prompt without an answer is skipped.
    """
    prompt, subject = read_text(record, "prompt"), read_text(record, "subject")
    if prompt.count("{subject}") != 1:
        prompt, subject = prompt_around(prompt, subject, words_only="{}" in prompt) or (prompt, subject)
    target_new = read_text(record, "target_new").strip()
    same = (
        question
        for group, question, answers in _probes(record, "portability")
        if group == _SAME_QUESTION and target_new.casefold() in map(str.casefold, answers)
    )
    # EasyEdit's own CounterFact files have two fields in place of `locality`.
    flat = {"prompt": record.get("locality_prompt"), "ground_truth": record.get("locality_ground_truth")}
    neighbors = [*_probes(record, "locality"), *_pairs("locality_prompt", "", flat)]
    return Fact(
        prompt=prompt,
        subject=subject,
        target_new=target_new,
        target_true=next(_answers("ground_truth", record.get("ground_truth")), None),
        id=record.get("case_id", str(index)),
        paraphrases=(*_rephrased(record), *same),
        neighbors=tuple(Neighbor(question, answers[0]) for _, question, answers in neighbors if answers),
    )


# The first match wins: later formats share names with earlier ones, our own with all.
FORMATS = tuple(
    RecordFormat(name, frozenset(marks.split()), convert)
    for name, marks, convert in (
        ("CounterFact (requested_rewrite, ...)", "requested_rewrite", fact_from_counterfact),
        ("zsRE (subject, src, answers, ...)", "src loc loc_ans", fact_from_zsre),
        ("KnowEdit's WikiBio (text, concept, labels, locality)", "concept labels", fact_from_wikibio),
        (
            "EasyEdit and KnowEdit (prompt, subject, target_new, ground_truth, rephrase_prompt, locality, portability)",
            "ground_truth rephrase_prompt locality portability locality_prompt",
            fact_from_easyedit,
        ),
        ("factpatch (prompt, subject, target_new, ...)", "prompt subject target_new", fact_from_own),
    )
)


def _prompt_around(record: Record, text: str, subject: str) -> tuple[str, str]:
    """Return the text in one field with a slot in place of the subject in another, and the subject as found."""
    whole, name = read_text(record, text), read_text(record, subject)
    found = prompt_around(whole, name)
    if found is None:
        raise ValueError(f"{text}={quoted(whole)} does not contain the subject {quoted(name.strip())}, in any case.")
    return found


def _template(prompt: str) -> str:
    """A prompt whose `{}` is its slot, whatever else stands there."""
    before, slot, after = prompt.partition("{}")
    return with_slot(before, after) if slot and "{}" not in after else prompt


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
    In either, both may be lists of the same length.
    """
    for group, items in _object(field, record.get(field) or {}).items():
        for item in items if isinstance(items, list) else [items or {}]:
            yield from _pairs(f"{field}.{group}", group, item)


def _pairs(place: str, group: str, item: object) -> Iterator[tuple[str, str, list[str]]]:
    held = _object(place, item)
    prompts, truths = held.get("prompt"), held.get("ground_truth")
    if prompts is None:
        return
    if isinstance(prompts, str):
        prompts, truths = [prompts], [truths]
    if not isinstance(prompts, list) or not isinstance(truths, list) or len(prompts) != len(truths):
        raise ValueError(f"{place}={item!r}: must hold a prompt and its ground_truth, or two lists of equal length.")
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
        raise TypeError(f"{name}={value!r}: must be a string or a list of strings.")


def _object(name: str, value: object) -> Record:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r}: must be an object.")
    return value
