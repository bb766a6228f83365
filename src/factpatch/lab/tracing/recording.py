"""The clean and the corrupted runs of some prompts, with everything that restorations read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from factpatch.lab.tracing.noise import Noise
from factpatch.lab.tracing.prompts import TokenizedPrompt
from factpatch.model.batching import log_probability_chunks
from factpatch.model.hooks import adding, captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import PackedRow, Packing, Pool, run_packed

Site = tuple[str, int]
"""The name of a method of `LanguageModel` that gives a module, and a layer; ("block", -1) is what enters layer 0."""


@dataclass(frozen=True)
class Recording:
    """Keys, values and outputs of all tokens of the clean and the corrupted runs.

    A token has one place everywhere: in the pool and in the outputs.
    """

    pool: Pool
    outputs: dict[Site, Tensor]
    """(places, d_value) each."""
    clean: list[range]
    """By prompt: the places of its tokens in the clean run."""
    corrupted: list[list[range]]
    """By prompt and noise sample: the places of its tokens from the subject's first one on."""
    probability: list[float]
    """By prompt: the probability of the answer in the clean run."""
    corrupted_probability: list[Tensor]
    """By prompt: (samples,), that in the corrupted runs, float64."""


def record(lm: LanguageModel, prompts: Sequence[TokenizedPrompt], noise: Noise, sites: Sequence[str]) -> Recording:
    """Run prompts as they are, and with their subjects corrupted. Call it inside `packed_attention`.

    Tokens before a subject are the same in both, and run once.

    Args:
        prompts: Those that are traced together.
        noise: What is added to the embeddings of the subjects' tokens.
        sites: Modules whose outputs are kept, apart from those of the blocks.
    """
    width = lm.model.get_input_embeddings().weight.shape[-1]
    clean = _run(lm, [_Row(one.ids, (), one.answer[0], torch.empty(0, width)) for one in prompts], Pool(), sites)
    rows = []
    for one, places in zip(prompts, clean.places, strict=True):
        first = one.subject.start
        for drawn in noise.draw(one, width):
            rows.append(_Row(one.ids[first:], tuple(places[:first]), one.answer[0], drawn))
    corrupted = _run(lm, rows, clean.pool, sites)
    before = clean.pool.tokens
    shifted = [range(before + own.start, before + own.stop) for own in corrupted.places]
    starts = range(0, len(rows), noise.samples)
    return Recording(
        pool=Pool.joined([clean.pool, corrupted.pool]),
        # One after another: nothing is held twice.
        outputs={site: torch.cat([clean.outputs.pop(site), corrupted.outputs.pop(site)]) for site in [*clean.outputs]},
        clean=clean.places,
        corrupted=[shifted[start : start + noise.samples] for start in starts],
        probability=clean.probabilities.tolist(),
        corrupted_probability=[corrupted.probabilities[start : start + noise.samples] for start in starts],
    )


@dataclass(frozen=True)
class _Row:
    """A text, or the end of one whose beginning has run."""

    ids: tuple[int, ...]
    prefix: tuple[int, ...]
    """The places of its beginning in the pool."""
    answer: int
    noise: Tensor
    """(tokens, width): what is added to the embeddings of its first tokens."""


@dataclass(frozen=True)
class _Ran:
    """The results of running some rows, each by row or by place."""

    places: list[range]
    probabilities: Tensor
    """(rows,): of the answers, float64."""
    outputs: dict[Site, Tensor]
    pool: Pool


def _run(lm: LanguageModel, rows: Sequence[_Row], pool: Pool, sites: Sequence[str]) -> _Ran:
    # Rows of equal length become neighbors.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    ordered = [rows[index] for index in order]
    packing = Packing([PackedRow(len(row.ids), row.prefix) for row in ordered], lm.stream_dtype, lm.device)
    ends = list(accumulate(row.tokens for row in packing.rows))
    places = [range(end - row.tokens, end) for row, end in zip(packing.rows, ends, strict=True)]
    noisy = [place for own, row in zip(places, ordered, strict=True) for place in own[: len(row.noise)]]
    noise = torch.cat([row.noise for row in ordered])[:, None].to(lm.work_dtype)
    wanted = {(site, layer): getattr(lm, site)(layer) for site in ("block", *sites) for layer in range(lm.num_layers)}
    with (
        adding([lm.model.get_input_embeddings()], torch.tensor(noisy, dtype=torch.long), noise),
        captured(inputs={("block", -1): lm.block(0)}, outputs=wanted) as outputs,
    ):
        ids = torch.tensor([token for row in ordered for token in row.ids])
        last, own_pool = run_packed(lm, packing, pool, ids=ids, collect=True)
    answers = torch.tensor([row.answer for row in ordered])
    probabilities = answer_probabilities(lm, last[packing.last.to(last.device)], answers)
    back = sorted(range(len(rows)), key=order.__getitem__)
    flat = {site: output.reshape(-1, output.shape[-1]) for site, output in outputs.items()}
    return _Ran([places[index] for index in back], probabilities[back], flat, own_pool)


def answer_probabilities(lm: LanguageModel, hidden: Tensor, answers: Tensor) -> Tensor:
    """Read the probability of one token, of (texts,), after each text, whose last hidden states are (texts, d_value).

    Returns:
        (texts,), float64, on the CPU.
    """
    found = torch.empty(len(answers), dtype=torch.float64)
    for chunk, table in log_probability_chunks(lm, hidden):
        found[chunk] = table.gather(1, answers[chunk, None].to(table.device))[:, 0].to("cpu", torch.float64)
    return found.exp()
