"""What the round trips through engines share: the same questions for PyTorch and for a server, and one table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from factpatch import Fact, Verification
from factpatch.evaluation.generation import greedy_answers
from factpatch.evaluation.perplexity import windows
from factpatch.evaluation.questions import answers
from factpatch.evaluation.readings import FORMS, Answer, Reading
from factpatch.evaluation.served import question_count, usable_forms, verify_served
from factpatch.evaluation.server import Server
from factpatch.model.language_model import LanguageModel
from factpatch.support.progress import bar


def arguments(description: str | None, model: str) -> argparse.ArgumentParser:
    """The options of every round trip; `model` says what may be given as one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=model)
    parser.add_argument("--facts", required=True)
    parser.add_argument("--limit", type=int, default=10)
    parser.add_argument("--method", default="memit-blue")
    parser.add_argument("--perplexity-tokens", type=int, default=4000)
    return parser


def asked(lm: LanguageModel, facts: Sequence[Fact], before: Verification | None = None) -> Verification:
    """Ask PyTorch what a server is asked, with the same words."""
    prompts = [neighbor.prompt for fact in facts for neighbor in fact.neighbors]
    around = iter(zip(prompts, greedy_answers(lm, prompts), strict=True))
    readings = [
        Reading(answers=own, neighbor_answers=tuple(Answer("prompt", *next(around)) for _ in fact.neighbors))
        for fact, own in zip(facts, answers(lm, facts), strict=True)
    ]
    return Verification(tuple(facts), tuple(readings), None if before is None else before.after)


def asked_of(server: Server, facts: Sequence[Fact], before: Verification | None = None) -> Verification:
    forms, reasons = usable_forms(server, facts[0])
    assert not reasons, reasons
    with bar(f"asking {server.model}", question_count(forms, facts, True)) as advance:
        return verify_served(server, forms, facts, before, neighbors=True, progress=advance)


def beginning(tokenizer: Any, text: str, tokens: int) -> tuple[str, list[list[int]]]:
    """The first documents of a text that have at most so many tokens together, at least one, and their windows."""
    kept: list[str] = []
    for document in re.split(r"\n\s*\n", text):
        if kept and sum(map(len, windows(tokenizer, "\n\n".join([*kept, document])))) > tokens:
            break
        kept.append(document)
    shortened = "\n\n".join(kept)
    return shortened, windows(tokenizer, shortened)


def shown(here: Verification, there: dict[str, Verification], ratios: Sequence[float]) -> str:
    """The table: PyTorch's column, then one by engine; the ratios of perplexity are in the same order."""
    lines = [f"| | PyTorch | {' | '.join(there)} |", "|---" * (2 + len(there)) + "|"]
    sides = [found.summary() for found in (here, *there.values())]
    for form in FORMS:
        for when in ("before", "after"):
            shares = [side[f"{form}_contained"][when] for side in sides]
            known = [f"{share:.1f} %" for share in shares if share is not None]
            lines.append(f"| said by {form}, {when} | {' | '.join(known)} |")
    unchanged = [found.unchanged_neighbors() or (0, 0) for found in (here, *there.values())]
    lines.append(f"| neighbors' answers unchanged | {' | '.join(f'{same} of {of}' for same, of in unchanged)} |")
    lines.append(f"| perplexity, edited / unedited | {' | '.join(f'{ratio:.4f}' for ratio in ratios)} |")
    for when in ("before", "after"):
        counts = [_alike(getattr(here, when), getattr(found, when)) for found in there.values()]
        lines.append(f"| answers that are PyTorch's, {when} | | {' | '.join(counts)} |")
    return "\n".join(lines)


def _alike(here: Sequence[Reading] | None, there: Sequence[Reading] | None) -> str:
    sides = [
        [answer.said for reading in side or () for answer in (*reading.answers, *reading.neighbor_answers)]
        for side in (here, there)
    ]
    pairs = list(zip(*sides, strict=True))
    return f"{sum(mine == its for mine, its in pairs)} of {len(pairs)}"
