"""Read facts from JSON, JSON Lines and CSV files, recognizing the format of each record, and write them."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factpatch.data.counterfact import fact_from_counterfact, is_counterfact
from factpatch.data.easyedit import fact_from_easyedit, fact_from_wikibio, is_easyedit, is_wikibio
from factpatch.data.reading import DataFileError, convert_records
from factpatch.data.records import fact_from_own, is_own
from factpatch.data.sources import fetched, resolve_data
from factpatch.data.zsre import fact_from_zsre, is_zsre
from factpatch.facts import Fact
from factpatch.support.files import atomic_write


@dataclass(frozen=True)
class RecordFormat:
    """One format of records: its name, how it is recognized, and how it becomes a fact.

    Attributes:
        name: The name in messages.
        matches: Says whether a record is meant to be in this format, complete or not.
        convert: Turns a record and its place in the file, from 0, into a fact; raises ValueError or TypeError.
    """

    name: str
    matches: Callable[[Mapping[str, Any]], bool]
    convert: Callable[[Mapping[str, Any], int], Fact]


# The first match wins: later formats share names with earlier ones, our own with all.
FORMATS = (
    RecordFormat("CounterFact (requested_rewrite, ...)", is_counterfact, fact_from_counterfact),
    RecordFormat("zsRE (subject, src, answers, ...)", is_zsre, fact_from_zsre),
    RecordFormat("KnowEdit's WikiBio (text, concept, labels, locality)", is_wikibio, fact_from_wikibio),
    RecordFormat(
        "EasyEdit and KnowEdit (prompt, subject, target_new, ground_truth, rephrase_prompt, locality, portability)",
        is_easyedit,
        fact_from_easyedit,
    ),
    RecordFormat("factpatch (prompt, subject, target_new, ...)", is_own, fact_from_own),
)


def load_facts(path: str | Path, limit: int | None = None, skip_unusable: bool = False) -> list[Fact]:
    """Return the facts of a file, in its order.

    Reads `.json` (a list of records, or an object with the list under "facts"), `.jsonl` (one record per line) and
    `.csv` (a header, then one fact per row, in our own format; lists as JSON text). In the JSON files each record may
    be in our own format or in one of the published ones; see `FORMATS`.

    Args:
        path: The file, in UTF-8; its extension says how it is read. Or the name of a published data set that was
            fetched, such as "counterfact"; see `factpatch.data.sources`.
        limit: How many facts to read, from the start; later records are not checked. None reads all.
        skip_unusable: Pass over records that are no facts, and log how many these were. Some files have a few: in
            those of KnowEdit, some prompts do not name their subject.

    Raises:
        DataFileError: The file is missing, empty, of an unknown kind or malformed, or a record is not a fact.
        TypeError: `limit` is not an integer.
        ValueError: `limit` is not positive.
    """
    return convert_records(resolve_data(path), fact_from, limit, skip_unusable)


def save_facts(facts: Iterable[Fact], path: str | Path) -> None:
    """Write facts to a `.json` file in our own format, which `load_facts` reads back as equal facts.

    The file appears whole or not at all; an interrupted save leaves an earlier file as it was.

    Raises:
        DataFileError: `path` does not end in `.json`.
        OSError: The file cannot be written.
        ValueError: `facts` is empty.
    """
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise DataFileError(f"{path}: facts are saved as JSON; choose a name that ends in .json.")
    records = [fact.to_dict() for fact in facts]
    if not records:
        raise ValueError("facts=[]: there is nothing to save; give at least one fact.")
    text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
    # Bytes, so that every system writes the same line ends.
    atomic_write(path, lambda draft: draft.write_bytes(text.encode()))


def demo_facts() -> list[Fact]:
    """Return the counterfactual facts that come with the package.

    Each has two paraphrases, four neighbors, three generation prompts and the ids that its reference texts go by; see
    `factpatch.data.references.demo_references`.
    """
    resource = importlib.resources.files("factpatch.data").joinpath("demo_facts.json")
    with importlib.resources.as_file(resource) as path:
        return load_facts(path)


def facts_at_hand(count: int) -> tuple[list[Fact], str]:
    """Facts for those who name none: the first ones of CounterFact, if it was fetched, else of `demo_facts`.

    Returns:
        At most `count` facts, and which they are, in words.

    Raises:
        DataFileError: CounterFact was fetched, and its file is damaged.
        ValueError: `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be positive.")
    if fetched("counterfact"):
        facts = load_facts("counterfact", count)
        return facts, f"the first {len(facts)} facts of CounterFact, as it was fetched"
    facts = demo_facts()[:count]
    return facts, (
        f"{len(facts)} of the facts that the package ships, since CounterFact was not fetched: factpatch data fetch "
        "counterfact"
    )


def fact_from(record: Mapping[str, Any], index: int) -> Fact:
    """Return the fact of a record in whichever format it is; `index` is its place in its file.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: The record is in no known format, or is not acceptable.
    """
    for record_format in FORMATS:
        if record_format.matches(record):
            return record_format.convert(record, index)
    known = "; ".join(record_format.name for record_format in FORMATS)
    raise ValueError(f"fields {list(record)} belong to no known format; known: {known}.")
