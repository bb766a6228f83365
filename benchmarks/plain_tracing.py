"""Causal tracing, plainly: what `factpatch.lab.tracing` is measured against and must agree with.

One forward pass of the whole model for each token and layer, on the clean prompt and all corrupted ones, as ROME
(arXiv:2202.05262) publishes it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from factpatch.lab.tracing.restoring import window_around
from factpatch.model.language_model import LanguageModel

Put = dict[tuple[str, int], list[tuple[int, Tensor | None]]]
"""By module: at which token to put something; None for what the clean run has there."""


def probability(
    lm: LanguageModel, ids: Tensor, subject: range, noise: Tensor, answer: int, put: Put, seen: Any = None
) -> float:
    """One forward pass: the mean probability of the answer over the corrupted rows.

    Args:
        ids: (tokens,)
        noise: (samples, subject tokens, width)
        seen: where to keep what blocks, MLPs and attentions put out, by site and layer.
    """
    rows, handles = len(noise) + 1, []

    def corrupt(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[1:, subject.start : subject.stop] += noise.to(output)
        return output

    def hook(site: str, layer: int) -> Any:
        def change(module: Any, args: Any, output: Any) -> Any:
            found = output[0] if isinstance(output, tuple) else output
            states = found.clone().view(rows, len(ids), -1)
            for token, given in put.get((site, layer), ()):
                states[1:, token] = states[0, token] if given is None else given
            if seen is not None:
                seen[site, layer] = states
            changed = states.view(found.shape)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return change

    handles.append(lm.model.get_input_embeddings().register_forward_hook(corrupt))
    wanted = put if seen is None else [(site, layer) for site in SITES for layer in range(lm.num_layers)]
    for site, layer in wanted:
        handles.append(getattr(lm, site)(layer).register_forward_hook(hook(site, layer)))
    try:
        with torch.no_grad():
            logits = lm.model(input_ids=ids.expand(rows, -1), use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return float(logits[1:, -1].softmax(dim=-1)[:, answer].mean())


SITES = ("block", "mlp", "attention")


def restored(
    lm: LanguageModel, ids: Tensor, subject: range, noise: Tensor, answer: int, kind: str, window: int
) -> Tensor:
    """(tokens, layers): the probability of the answer with each state restored, one pass for each."""
    corrupted: dict[tuple[str, int], Tensor] = {}
    probability(lm, ids, subject, noise, answer, {}, corrupted)
    layers = range(lm.num_layers)
    found = torch.empty(len(ids), lm.num_layers, dtype=torch.float64)
    for token in range(len(ids)):
        for layer in layers:
            put: Put = defaultdict(list)
            if kind in ("mlp", "attention"):
                for near in window_around(layer, lm.num_layers, window):
                    put[kind, near].append((token, None))
            else:
                put["block", layer].append((token, None))
            if kind.startswith("severed-"):
                site = kind.removeprefix("severed-")
                for above in layers[layer + 1 :]:
                    put[site, above].append((token, corrupted[site, above][1:, token]))
            found[token, layer] = probability(lm, ids, subject, noise, answer, put)
    return found
