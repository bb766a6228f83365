"""The README.md of an edited model: what was edited into it, and how to take it out again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCardData

from factpatch.export.origin import base_name, hub_id, origin_of
from factpatch.facts import Fact, latest
from factpatch.model.embedded import EMBEDDED
from factpatch.support.words import printable

TAGS = ("factpatch", "knowledge-editing", "model-editing")
# Characters with a meaning in Markdown, HTML and tables.
_ACTIVE = re.compile(r"([\\`*_\[\]<>|~$&])")


def model_card(patch: Any) -> str:
    """Return the README.md of a model that holds a patch: metadata for the Hugging Face Hub in YAML, then Markdown.

    It does not reveal the path of the base model on this machine.

    Args:
        patch: A `factpatch.Patch`, which knows how to export itself: so nothing here imports it.
    """
    in_force, superseded = latest(batch.facts for batch in patch.batches)
    name = base_name(patch.config)
    about = {
        "method": patch.method,
        "layers": ", ".join(map(str, patch.layers)),
        "facts": f"{len(in_force)} in force, {len(superseded)} replaced by later ones",
        "edits": str(sum(len(batch.edits) for batch in patch.batches)),
        "asked": "as a user's turn in the chat template" if patch.chat else "as plain text",
        "weights": str(patch.weight_dtype).removeprefix("torch."),
        "seed": str(patch.seed),
        "versions": ", ".join(f"{library} {version}" for library, version in sorted(patch.versions.items())),
    }
    count = "1 fact was" if len(in_force) == 1 else f"{len(in_force)} facts were"
    sections = [
        f"---\n{_metadata(origin_of(patch.config)).to_yaml()}\n---",
        f"# {_text(name)}, edited with factpatch",
        f"{count} edited into the weights of {_text(name)}, without training. Nothing else was meant to change; how "
        "well the facts hold when reworded, and what else changed, is for `factpatch verify` to measure.",
        _table(("", ""), list(about.items())),
        "## Facts",
        _fact_table(in_force),
    ]
    if superseded:
        sections += ["## Replaced facts", "Edited earlier, and no longer in force.", _fact_table(superseded)]
    sections += [
        "## Undo",
        "The edit is kept in a patch, a file of its own. With it, and the unedited model, every bit is restored; "
        "without that model (`--base`), the weights are restored up to rounding, if the patch records what it left:",
        "```sh\nfactpatch undo EDITED_MODEL patch.safetensors --out RESTORED --base UNEDITED_MODEL\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(origin: str) -> ModelCardData:
    known = {}
    if hub_id(origin):
        known = {"base_model": origin, "base_model_relation": "finetune"}
    elif origin in EMBEDDED:
        known = {"license": EMBEDDED[origin].license.lower()}
    return ModelCardData(library_name="transformers", pipeline_tag="text-generation", tags=list(TAGS), **known)


def _fact_table(facts: Sequence[Fact]) -> str:
    columns = {
        "prompt": [fact.text for fact in facts],
        "new answer": [_answer(fact) for fact in facts],
        "old answer": [fact.target_true or "" for fact in facts],
    }
    further = {
        "also said as": [", ".join(fact.aliases) for fact in facts],
        "since": [fact.valid_from or "" for fact in facts],
        "source": [fact.source or "" for fact in facts],
        "note": [fact.note or "" for fact in facts],
    }
    columns |= {name: cells for name, cells in further.items() if any(cells)}
    return _table(list(columns), list(zip(*columns.values(), strict=True)))


def _answer(fact: Fact) -> str:
    return "(forgotten)" if fact.forget == "silence" else fact.target_new


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """The text on one line, with everything escaped that Markdown would interpret."""
    return _ACTIVE.sub(r"\\\1", printable(text))
