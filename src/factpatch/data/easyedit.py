"""Records of EasyEdit (arXiv:2308.07269): its requests, and its benchmark KnowEdit (arXiv:2401.01286)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from factpatch.data.records import prompt_around, read_text, read_texts
from factpatch.facts import Fact, Neighbor

_FIELDS = frozenset({"ground_truth", "rephrase_prompt", "locality", "portability", "locality_prompt"})
_WIKIBIO_FIELDS = {"text": "prompt", "concept": "subject", "labels": "target_new"}
_NO_ANSWER = "<|endoftext|>"  # what EasyEdit writes where the true answer is not known
_SAME_QUESTION = "Subject_Aliasing"


def is_easyedit(record: Mapping[str, Any]) -> bool:
    """Say whether a record is an EasyEdit request or a KnowEdit record. Ask after WikiBio and zsRE."""
    return not _FIELDS.isdisjoint(record)


def is_wikibio(record: Mapping[str, Any]) -> bool:
    """Say whether a record is from the WikiBio part of KnowEdit, which has names of its own."""
    return "concept" in record or "labels" in record


def fact_from_wikibio(record: Mapping[str, Any], index: int) -> Fact:
    """Return the fact of a WikiBio record: behind a passage about `concept`, the sentence `labels` is the answer.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or blank, or `text` does not contain the concept.
    """
    for name in _WIKIBIO_FIELDS:
        read_text(record, name)  # an error must show the name in the file
    return fact_from_easyedit({_WIKIBIO_FIELDS.get(name, name): value for name, value in record.items()}, index)


def fact_from_easyedit(record: Mapping[str, Any], index: int) -> Fact:
    """Return the fact of an EasyEdit request or of a KnowEdit record; without `case_id`, its id is `index`.

    - `prompt` holds the subject, as `{}` or in full.
    - `ground_truth` is the true answer. Where answers are lists, or lists of spellings, the first is taken, as EasyEdit
      does; none, or "<|endoftext|>", means that it is not known.
    - Paraphrases are `rephrase_prompt`, or `rephrase`, and those prompts of `portability` that ask the same with
      another name of the subject (Subject_Aliasing) and expect the new answer. Its other groups ask something else,
      whose answer follows from the edit: a fact has no place for them.
    - Neighbors are the prompts of `locality`, in all its groups, and `locality_prompt`; most of them ask something else
      about the same subject. A prompt without an answer is passed over.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or blank, or `prompt` does not contain the subject.
    """
    prompt, subject = read_text(record, "prompt"), read_text(record, "subject")
    if "{}" not in prompt:
        prompt, subject = prompt_around(record, "prompt", "subject")
    target_new = read_text(record, "target_new").strip()
    neighbors = [*_probes(record, "locality"), *_flat_locality(record)]
    return Fact(
        prompt=prompt,
        subject=subject,
        target_new=target_new,
        target_true=next(_answers("ground_truth", record.get("ground_truth")), None),
        id=record.get("case_id", str(index)),
        paraphrases=(
            *_rephrased(record),
            *(
                question
                for group, question, answers in _probes(record, "portability")
                if group == _SAME_QUESTION and target_new.casefold() in map(str.casefold, answers)
            ),
        ),
        neighbors=tuple(Neighbor(question, answers[0]) for _, question, answers in neighbors if answers),
    )


def _rephrased(record: Mapping[str, Any]) -> list[str]:
    for name in ("rephrase_prompt", "rephrase"):
        if isinstance(record.get(name), str):
            return [read_text(record, name)]
        if record.get(name) is not None:
            return read_texts(record, name)
    return []


def _probes(record: Mapping[str, Any], field: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield every prompt of `locality` or `portability` with the name of its group and its answers.

    A group is a list of objects with `prompt` and `ground_truth`, as in KnowEdit, or one such object, as in requests.
    In either, both may be lists of the same length.
    """
    for group, items in _object(field, record.get(field) or {}).items():
        for item in items if isinstance(items, list) else [items or {}]:
            yield from _pairs(f"{field}.{group}", group, item)


def _flat_locality(record: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """The same of the fields that EasyEdit's own CounterFact files have instead of `locality`."""
    flat = {"prompt": record.get("locality_prompt"), "ground_truth": record.get("locality_ground_truth")}
    if flat["prompt"] is not None:
        yield from _pairs("locality_prompt", "", flat)


def _pairs(place: str, group: str, item: object) -> Iterator[tuple[str, str, list[str]]]:
    held = _object(place, item)
    prompts, truths = held.get("prompt"), held.get("ground_truth")
    if prompts is None:
        return
    if isinstance(prompts, str):
        prompts, truths = [prompts], [truths]
    if not isinstance(prompts, list) or not isinstance(truths, list) or len(prompts) != len(truths):
        raise ValueError(
            f"field {place!r} is {item!r}; it must hold a prompt and its ground_truth, or two lists of equal length."
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
        raise TypeError(f"field {name!r} is {value!r}; it must be a string or a list of strings.")


def _object(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"field {name!r} is {value!r}; it must be an object.")
    return value
