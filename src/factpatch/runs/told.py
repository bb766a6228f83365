"""A run in plain words, for people who know none of the metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence

from factpatch.runs.outcomes import Outcome, State
from factpatch.runs.pace import in_words
from factpatch.runs.results import Results
from factpatch.runs.rows import When


def told(results: Results, label: str, dataset: str, some: Sequence[Outcome]) -> str:
    """What a method learned, what moved beside it and what it cost. What was not measured is left out.

    Args:
        some: What became of the facts of this dataset under this method; those of several seeds are added up.

    Returns:
        For example "178 of 200 facts learned; 12 more were learned and then forgotten; 350 of 400 paraphrases agree;
        1,620 of 2,000 neighbors are right, 1,750 before; perplexity 20.61 → 21.30 (+3.3 %); editing took 12 min".
    """
    states = [one.state for one in some]
    parts = [f"{states.count(State.LEARNED):,} of {len(some):,} facts learned"]
    if forgotten := states.count(State.FORGOTTEN):
        parts.append(f"{forgotten:,} more {'was' if forgotten == 1 else 'were'} learned and then forgotten")
    agreeing = [(one.paraphrases, len(one.fact.paraphrases)) for one in some if one.paraphrases is not None]
    if agreeing:
        parts.append(f"{sum(yes for yes, _ in agreeing):,} of {sum(all_ for _, all_ in agreeing):,} paraphrases agree")
    beside = [one for one in some if one.neighbors is not None and one.neighbors_before is not None]
    if beside:
        now, was = (sum(getattr(one, name) for one in beside) for name in ("neighbors", "neighbors_before"))
        parts.append(
            f"{now:,} of {sum(len(one.fact.neighbors) for one in beside):,} neighbors are right, {was:,} before"
        )
    before, after = _perplexity(results, "", dataset), _perplexity(results, label, dataset)
    if before is not None and after is not None:
        parts.append(f"perplexity {before:,.2f} → {after:,.2f} ({100 * (after / before - 1):+,.1f} %)")
    records = [one for one in results.records if one["label"] == label and one["dataset"] == dataset]
    took = [seconds for record in records for seconds in record.get("seconds", {}).values()]
    if took:
        shared = math.fsum(record.get("shared_seconds", 0.0) for record in records)
        more = f", besides {in_words(shared)} for value targets that had been optimized before" if shared else ""
        parts.append(f"editing took {in_words(sum(took))}{more}")
    return "; ".join(parts)


def _perplexity(results: Results, label: str, dataset: str) -> float | None:
    rows = results.rows
    when = When.END if label else When.BEFORE
    chosen = rows[
        (rows["metric"] == "perplexity")
        & (rows["label"] == label)
        & (rows["dataset"] == dataset)
        & (rows["when"] == when.value)
    ]["value"].dropna()
    return float(chosen.mean()) if len(chosen) else None
