"""Facts that a model knows already, in the format of ROME's `known_1000.json` (arXiv:2202.05262)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factpatch.data.reading import convert_records
from factpatch.data.records import read_optional_text, read_text
from factpatch.data.sources import resolve_data


@dataclass(frozen=True)
class KnownFact:
    """A prompt that a model answers rightly, for looking at its hidden states; nothing is edited.

    Attributes:
        prompt: The complete prompt, ending right before the answer. It may go on behind the filled template with words
            that the model wrote itself.
        subject: What the fact is about; the prompt contains it.
        attribute: The answer.
        template: The beginning of the prompt, with `{}` where the subject goes.
        relation_id: What the fact says of its subject, as a Wikidata property.

    Raises:
        ValueError: The prompt does not begin with the filled template.
    """

    prompt: str
    subject: str
    attribute: str
    template: str
    relation_id: str | None = None

    def __post_init__(self) -> None:
        filled = self.template.replace("{}", self.subject, 1)
        if "{}" not in self.template or not self.prompt.startswith(filled):
            raise ValueError(
                f"prompt={self.prompt!r} does not begin with the template {self.template!r} filled with the subject "
                f"{self.subject!r}."
            )

    @property
    def subject_end(self) -> int:
        """The index in `prompt` of the last character of the subject."""
        return self.template.index("{}") + len(self.subject) - 1


def load_known_facts(path: str | Path = "known_1000", limit: int | None = None) -> list[KnownFact]:
    """Return the known facts of a file, in its order.

    Args:
        path: The file, or the name under which one was fetched.
        limit: How many to read, from the start. None reads all.

    Raises:
        DataFileError: The file cannot be read, or a record is not a known fact.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive.
    """
    return convert_records(resolve_data(path), known_fact_from, limit)


def is_known(record: Mapping[str, Any]) -> bool:
    """Say whether a record is in the format of known_1000.json."""
    return "attribute" in record


def known_fact_from(record: Mapping[str, Any], index: int) -> KnownFact:
    """Return the known fact of a record; `index`, its place in its file, is not used.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or blank, or the prompt does not begin with the filled template.
    """
    return KnownFact(
        prompt=read_text(record, "prompt"),
        subject=read_text(record, "subject"),
        attribute=read_text(record, "attribute"),
        template=read_text(record, "template"),
        relation_id=read_optional_text(record, "relation_id"),
    )
