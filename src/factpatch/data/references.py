"""Reference texts, with which generated texts are compared: about other subjects that share a fact's new object."""

from __future__ import annotations

import importlib.resources
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factpatch.data.reading import convert_records
from factpatch.data.records import read_text, read_texts
from factpatch.data.sources import resolve_data
from factpatch.facts import Fact


@dataclass(frozen=True)
class ReferenceTexts:
    """Texts by relation and object.

    Attributes:
        texts: Under a relation and an object, as ids of Wikidata, texts about subjects of which the relation says that
            object: under P103 (native language) and Q1860 (English), about people whose native language is English.
    """

    texts: Mapping[tuple[str, str], tuple[str, ...]]

    @classmethod
    def load(cls, path: str | Path = "attribute_snippets", facts: Collection[Fact] | None = None) -> ReferenceTexts:
        """Return the texts of a file in the format of ROME's `attribute_snippets.json`.

        That is a list of objects with `relation_id`, `target_id` and `samples`, each with a `text`. The published file
        has 926 MB and needs several times that memory while it is read.

        Args:
            path: The file, or the name under which one was fetched.
            facts: Keep only the texts for these. None keeps all.

        Raises:
            DataFileError: The file cannot be read or has another format.
        """
        wanted = None if facts is None else {(fact.relation_id, fact.target_new_id) for fact in facts}
        texts: dict[tuple[str, str], tuple[str, ...]] = {}
        for key, found in convert_records(resolve_data(path), _texts):
            if wanted is None or key in wanted:
                texts[key] = texts.get(key, ()) + found
        return cls(texts)

    def for_fact(self, fact: Fact) -> tuple[str, ...] | None:
        """Return the texts about subjects that share a fact's new object, or None where there are none.

        None also where the fact has no `relation_id` or no `target_new_id`. A metric that needs the texts is then
        missing; it is not 0.
        """
        if fact.relation_id is None or fact.target_new_id is None:
            return None
        return self.texts.get((fact.relation_id, fact.target_new_id)) or None


def demo_references() -> ReferenceTexts:
    """Return the texts that come with the package, three for each of the demo facts."""
    resource = importlib.resources.files("factpatch.data").joinpath("demo_references.json")
    with importlib.resources.as_file(resource) as path:
        return ReferenceTexts.load(path)


def _texts(record: Mapping[str, Any], index: int) -> tuple[tuple[str, str], tuple[str, ...]]:
    samples = record.get("samples")
    if not isinstance(samples, list):
        raise TypeError(f"field 'samples' is {samples!r}; it must be a list of objects with a text.")
    texts = [sample.get("text") if isinstance(sample, Mapping) else sample for sample in samples]
    key = (read_text(record, "relation_id"), read_text(record, "target_id"))
    return key, tuple(read_texts({"samples": texts}, "samples"))
