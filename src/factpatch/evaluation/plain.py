"""What an edit did, in a sentence."""

from __future__ import annotations

from factpatch.evaluation.metrics import prefers_new, prefers_true
from factpatch.evaluation.verify import Verification
from factpatch.support.words import counted


def plain_summary(
    verification: Verification,
    perplexity: tuple[float | None, float | None] = (None, None),
    seconds: float | None = None,
) -> str:
    """Return what was learned, what moved beside it and what it cost, for people who know none of the metrics.

    A fact is learned as in `Reading.learned`, and a paraphrase agrees if the new object is likelier than the true one.
    A neighbor has moved if its true object was likelier than the new one before and is not now; without an earlier
    verification, it is told how many are wrong now.

    Args:
        verification: What a model says of the facts.
        perplexity: On ordinary text, before and after.
        seconds: What the edit took.

    Returns:
        For example "38 of 40 facts learned; 70 of 80 paraphrases agree; 3 of 360 neighbors moved; perplexity +1.2 %;
        editing took 40 s". What is not known is left out.
    """
    now = verification.after
    parts = [f"{sum(reading.learned for reading in now)} of {counted(len(now), 'fact')} learned"]
    agree = [prefers_new(probe.nlls) for reading in now for probe in reading.paraphrases]
    known = [one for one in agree if one is not None]
    if known:
        parts.append(f"{sum(known)} of {counted(len(known), 'paraphrase')} agree{'s' if len(known) == 1 else ''}")
    parts += _neighbors(verification)
    before, after = perplexity
    if before is not None and after is not None:
        parts.append(f"perplexity {100 * (after / before - 1):+.1f} %")
    if seconds is not None:
        parts.append(f"editing took {seconds:.0f} s")
    return "; ".join(parts)


def _neighbors(verification: Verification) -> list[str]:
    """How many of the neighbors that were right are not now, or how many are wrong."""
    now = [prefers_true(probe.nlls) for reading in verification.after for probe in reading.neighbors]
    if not now:
        return []
    if verification.before is None:
        return [f"{len(now) - sum(map(bool, now))} of {counted(len(now), 'neighbor')} wrong"]
    was = [prefers_true(probe.nlls) for reading in verification.before for probe in reading.neighbors]
    right = [still for earlier, still in zip(was, now, strict=True) if earlier]
    if not right:
        return [f"none of {counted(len(now), 'neighbor')} was right before"]
    return [f"{len(right) - sum(map(bool, right))} of {counted(len(right), 'neighbor')} moved"]
