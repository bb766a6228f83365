"""CounterFact records, as published with ROME (arXiv:2202.05262) and, as MultiCounterFact, with MEMIT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from factpatch.data.records import read_optional_text, read_text, read_texts
from factpatch.facts import Fact, Neighbor


def is_counterfact(record: Mapping[str, Any]) -> bool:
    """Say whether a record is in the published CounterFact format."""
    return "requested_rewrite" in record


def fact_from_counterfact(record: Mapping[str, Any], index: int) -> Fact:
    """Return the fact of a published CounterFact record.

    CounterFact picks neighbors that share the fact's true answer, so `target_true` answers all of them. A record
    without `case_id` takes `index`, its place in the file, as id. The relation, the target's id and the generation
    prompts may be missing, as they are in some mirrors. Other fields are passed over: no published metric reads them.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is missing or blank, or the prompt does not hold exactly one `{}`.
    """
    target_true = read_text(record, "requested_rewrite.target_true.str")
    neighbors = [Neighbor(prompt, target_true) for prompt in read_texts(record, "neighborhood_prompts")]
    return Fact(
        prompt=read_text(record, "requested_rewrite.prompt"),
        subject=read_text(record, "requested_rewrite.subject"),
        target_new=read_text(record, "requested_rewrite.target_new.str"),
        target_true=target_true,
        id=record.get("case_id", str(index)),
        paraphrases=tuple(read_texts(record, "paraphrase_prompts")),
        neighbors=tuple(neighbors),
        generation_prompts=tuple(read_texts(record, "generation_prompts")) if "generation_prompts" in record else (),
        relation_id=read_optional_text(record, "requested_rewrite.relation_id"),
        target_new_id=read_optional_text(record, "requested_rewrite.target_new.id"),
    )
