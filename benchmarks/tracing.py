"""Causal tracing beside one forward pass for each token and layer (benchmarks/plain_tracing.py), in turns.

Prints for each kind of restoration the median seconds of both sides and their ratio, floating-point operations and
what share of the machine's matrix-product rate they ran at, the largest difference between two probabilities, and the
forward passes of both sides.

    python benchmarks/tracing.py smollm2-135m --facts known_1000.json --limit 20 --traced 4 --repeat 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from plain_tracing import restored
from speed import Side, in_turns, line, matrix_rate
from torch import Tensor

from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.tracing import KINDS, load_prompts
from factpatch.tracing.knowledge import KnownPrompt, known_prompts
from factpatch.tracing.noise import FACTOR, SAMPLES, Noise, embedding_spread
from factpatch.tracing.prompts import tokenize_prompts
from factpatch.tracing.restorations import scaled_window
from factpatch.tracing.trace import trace


class Passes:
    """Counts the forward passes of a model."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        def add(*given: Any) -> None:
            self.count += 1

        self.count = 0
        handle = self.lm.model.base_model.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--limit", type=int, default=20, help="facts to read")
    parser.add_argument("--traced", type=int, default=4, help="of these, how many known ones to trace")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS)[:3])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    options = parser.parse_args()

    lm = load_language_model(options.model, device=options.device, dtype=options.dtype)
    rows = tokenize_prompts(lm, load_prompts(options.facts, options.limit))
    noise = Noise(FACTOR * embedding_spread(lm, rows), options.samples)
    known = known_prompts(lm, rows)[: options.traced]
    width, window = lm.model.get_input_embeddings().weight.shape[-1], scaled_window(lm.num_layers)
    passes = {side: Passes(lm) for side in ("plain", "ours")}

    def plainly(kind: str) -> list[Tensor]:
        def one_by_one(one: KnownPrompt) -> Tensor:
            ids = torch.tensor(one.row.ids, device=lm.device)
            drawn = noise.draw(one.row, width).to(lm.device)
            return restored(lm, ids, one.row.subject, drawn, one.answer, kind, window)

        with passes["plain"].counted(), lm.quiet():
            return [one_by_one(one) for one in known]

    def ours(kind: str) -> list[Tensor]:
        with passes["ours"].counted():
            return [one.restored[kind] for one in trace(lm, known, noise, (kind,), window)]

    def compare(found: list[Tensor], expected: list[Tensor]) -> str:
        worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        return f"{worst:.1e}; passes {passes['plain'].count} and {passes['ours'].count}"

    tokens = ", ".join(f"{len(one.row.ids)} ({one.row.subject.start}-{one.row.subject.stop - 1})" for one in known)
    print(
        f"{len(known)} facts of so many tokens (subject): {tokens}; {lm.num_layers} layers, {options.samples} samples"
    )
    print("kind                 plain s   ours s   ratio   plain GFLOP (share)   ours GFLOP (share)   difference")
    rate = matrix_rate()
    for kind in options.kinds:
        sides = Side(lambda kind=kind: ours(kind)), Side(lambda kind=kind: plainly(kind))
        print(line(in_turns(kind, *sides, options.repeat, compare), rate), flush=True)


if __name__ == "__main__":
    main()
