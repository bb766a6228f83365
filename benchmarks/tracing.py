"""Causal tracing beside one forward pass for each token and layer (benchmarks/plain_tracing.py), in turns.

Prints for each kind of restoration the median seconds of both sides and their ratio, the largest difference between two
probabilities, the forward passes of both sides, and how many times as many tokens the plain side runs in blocks.

    python benchmarks/tracing.py smollm2-135m --facts known_1000.json --limit 20 --traced 4 --repeat 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from plain_tracing import restored
from speed import Side, in_turns, line
from torch import Tensor

from factpatch.lab.tracing import KINDS, load_prompts
from factpatch.lab.tracing.noise import FACTOR, SAMPLES, Noise, embedding_spread
from factpatch.lab.tracing.prompts import TokenizedPrompt, known_prompts, tokenize_prompts
from factpatch.lab.tracing.restoring import PUBLISHED, scaled_window
from factpatch.lab.tracing.trace import trace
from factpatch.model.hooks import first_tensor
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model


class Work:
    """Counts forward passes of a model, and how many tokens its blocks run."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.passes = self.tokens = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        def add_pass(module: Any, args: Any) -> None:
            self.passes += 1

        def add_tokens(module: Any, args: Any, output: Any) -> None:
            found = first_tensor(output)
            self.tokens += found.numel() // found.shape[-1]

        self.passes = self.tokens = 0
        handles = [self.lm.attention(layer).register_forward_hook(add_tokens) for layer in range(self.lm.num_layers)]
        handles.append(self.lm.model.base_model.register_forward_pre_hook(add_pass))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--limit", type=int, default=20, help="facts to read")
    parser.add_argument("--traced", type=int, default=4, help="of these, how many known ones to trace")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=PUBLISHED)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    options = parser.parse_args()

    lm = load_language_model(options.model, device=options.device, dtype=options.dtype)
    rows = tokenize_prompts(lm, load_prompts(options.facts, options.limit))
    noise = Noise(FACTOR * embedding_spread(lm, rows), options.samples)
    known = known_prompts(lm, rows)[: options.traced]
    width, window = lm.model.get_input_embeddings().weight.shape[-1], scaled_window(lm.num_layers)
    plain_work, our_work = Work(lm), Work(lm)

    def plainly(kind: str) -> list[Tensor]:
        def one_by_one(one: TokenizedPrompt) -> Tensor:
            ids = torch.tensor(one.ids, device=lm.device)
            drawn = noise.draw(one, width).to(lm.device)
            return restored(lm, ids, one.subject, drawn, one.answer[0], kind, window)

        with plain_work.counted(), lm.quiet():
            return [one_by_one(one) for one in known]

    def ours(kind: str) -> list[Tensor]:
        with our_work.counted():
            return [one.restored[kind] for one in trace(lm, known, noise, (kind,), window)]

    def compare(found: list[Tensor], expected: list[Tensor]) -> str:
        worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        times = plain_work.tokens / our_work.tokens
        return f"{worst:.1e}; {plain_work.passes} and {our_work.passes} passes, {times:.1f} times the tokens in blocks"

    tokens = ", ".join(f"{len(one.ids)} ({one.subject.start}-{one.subject.stop - 1})" for one in known)
    print(
        f"{len(known)} facts of so many tokens (subject): {tokens}; {lm.num_layers} layers, {options.samples} samples"
    )
    print("kind                 plain s   ours s   ratio   difference and work")
    for kind in options.kinds:
        sides = Side(lambda kind=kind: ours(kind)), Side(lambda kind=kind: plainly(kind))
        print(line(in_turns(kind, *sides, options.repeat, compare, count=False), 1.0), flush=True)


if __name__ == "__main__":
    main()
