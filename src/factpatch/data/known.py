"""Facts that a model knows already, in the format of ROME's `known_1000.json` (arXiv:2202.05262)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from factpatch.data.records import convert_records
from factpatch.data.sources import resolve_data
from factpatch.facts import Text
from factpatch.support.validation import explaining
from factpatch.support.words import quoted


@explaining
@dataclass(frozen=True)
class KnownFact:
    """A prompt that a model answers correctly, for looking at its hidden states; nothing is edited.

    Attributes:
        prompt: The complete prompt, ending right before the answer. The filled template may be followed by words that
            the model wrote itself.
        subject: What the fact is about; the prompt contains it.
        attribute: The answer.
        template: The beginning of the prompt, with `{}` where the subject goes.
        relation_id: What the fact says of its subject, as a Wikidata property.

    Raises:
        TypeError: A field is not a string.
        ValueError: A field is missing or blank, or the prompt does not begin with the filled template.
    """

    prompt: Text
    subject: Text
    attribute: Text
    template: Text
    relation_id: Text | None = None

    def __post_init__(self) -> None:
        filled = self.template.replace("{}", self.subject, 1)
        if "{}" not in self.template or not self.prompt.startswith(filled):
            raise ValueError(
                f"prompt={quoted(self.prompt)} does not begin with the template {quoted(self.template)} filled with "
                f"the subject {quoted(self.subject)}"
            )

    @property
    def subject_end(self) -> int:
        """The index in `prompt` of the last character of the subject."""
        return self.template.index("{}") + len(self.subject) - 1


def load_known_facts(path: str | Path = "known_1000", limit: int | None = None) -> list[KnownFact]:
    """Return the known facts of a file, or of one that was fetched under a name; raise as `load_facts` does."""
    return convert_records(resolve_data(path), known_fact_from, limit)


def is_known(record: Mapping[str, Any]) -> bool:
    """Say whether a record is in the format of known_1000.json."""
    return "attribute" in record


def known_fact_from(record: Mapping[str, Any], index: int) -> KnownFact:
    """Return the known fact of a record, whose other fields are ignored; raise as `KnownFact` does."""
    return KnownFact(**record)
