"""Where a router sends the tokens of ordinary text, and how many an edit sends elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from factpatch.evaluation.perplexity import WINDOW, held_out_text, windows
from factpatch.model.batching import batches, padded
from factpatch.model.experts import Routed
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces

Routes = dict[int, Tensor]
"""By layer with a router, which experts each token is sent to, (tokens, experts per token), ascending."""


def read_routes(
    lm: LanguageModel, text: str | None = None, window: int | None = None, tokens: int | None = None
) -> Routes:
    """Return where each token of a text is sent; empty for a model without routers.

    Args:
        lm: The model; it is left as it was.
        text: One or more documents with blank lines between them; by default `held_out_text()`.
        window: Tokens that are read together, as in `factpatch.evaluation.perplexity.text_loss`, and `tokens`.

    Raises:
        ValueError: `window` is below 2, or no document has two tokens.
    """
    layers = {layer: lm.down_projection(layer) for layer in range(lm.num_layers) if lm.experts(layer)}
    if not layers:
        return {}
    window = lm.window(WINDOW) if window is None else window
    rows = windows(lm.tokenizer, held_out_text() if text is None else text, window, tokens)
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def read(batch: Sequence[int]) -> dict[int, Tensor]:
        ids, mask = padded([rows[row] for row in batch], device=lm.device)
        with captured(inputs=layers) as seen:
            lm.body(input_ids=ids, attention_mask=mask, use_cache=False)
        real = mask.flatten().bool().cpu()
        sent: dict[int, Tensor] = {}
        for layer, routed in seen.items():
            assert isinstance(routed, Routed)
            sent[layer] = routed.index.cpu()[real].sort(dim=1).values
        return sent

    with torch.inference_mode(), lm.quiet():
        for batch in batches([len(row) for row in rows]):
            for _, sent in in_pieces(read, batch):
                for layer, experts in sent.items():
                    found[layer].append(experts)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def rerouted(before: Routes | None, after: Routes | None) -> float | None:
    """The share of tokens and layers, from 0 to 1, whose experts are not the same; None without routers.

    Args:
        before: As `read_routes` returned it; None if nothing was read.
        after: The same of the same text, on the edited model.
    """
    if not before or not after:
        return None
    moved = torch.cat([(before[layer] != after[layer]).any(dim=1) for layer in before])
    return float(moved.double().mean())
