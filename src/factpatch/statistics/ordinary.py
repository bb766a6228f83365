"""What memories learn from tokens of ordinary text before any batch, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from factpatch.model.batching import padded
from factpatch.model.fingerprint import fingerprint
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import in_pieces
from factpatch.model.places import GATE, place_of
from factpatch.model.precision import Precision
from factpatch.statistics.cache import Entry
from factpatch.statistics.corpus import Corpus
from factpatch.statistics.second_moment import WINDOW, CorpusError, shown, text_batches
from factpatch.strategies.memory import ENDING, Memory
from factpatch.strategies.solver import Ordinary, Solver
from factpatch.support.cache import cache_directory
from factpatch.values.gradients import Text, read_gradients

Read = dict[int, tuple[Tensor, Tensor]]
"""What is read at some tokens, by layer, as `Memory.warm` takes it."""


def warm(
    lm: LanguageModel,
    memories: Mapping[int, Memory],
    solver: Solver,
    corpus: Corpus,
    precision: Precision,
    progress: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Let the memories of layers learn from ordinary text, as the unedited model reads it.

    What a memory learns is kept in the cache, by all that it depends on, and taken from there the next time.

    Args:
        memories: New ones of the solver, by layer.
        solver: Says what is read, and at how many tokens of the text: `ordinary` and `ordinary_tokens`.
        corpus: The text.
        precision: Of the gradients.
        progress: Called with the number of tokens read since the last call.

    Raises:
        CorpusError: The text has too few tokens. The memories are of no use then.
    """
    tokens = solver.ordinary_tokens
    entries = _entries(lm, memories, solver, corpus, precision)
    held = {layer: entry.read(()) for layer, entry in entries.items()}
    for layer, found in held.items():
        if found is not None:
            memories[layer].learn(found[0])
    missing = [layer for layer in memories if held.get(layer) is None]
    if not missing:
        progress(tokens)
        return
    for seen in _READERS[solver.ordinary](lm, missing, corpus, tokens, precision):
        for layer, (rows, with_rows) in seen.items():
            memories[layer].warm(rows.cpu(), with_rows.cpu())
        progress(len(next(iter(seen.values()))[0]))
    for layer in missing:
        learned = memories[layer].learned()
        if learned is not None and layer in entries:
            entries[layer].write({name: tensor.contiguous() for name, tensor in learned.items()})


def _entries(
    lm: LanguageModel, memories: Mapping[int, Memory], solver: Solver, corpus: Corpus, precision: Precision
) -> dict[int, Entry]:
    """Where what each layer's memory learns is kept; nowhere if the weights cannot be hashed."""
    model = fingerprint(lm)
    if model is None:
        return {}
    about = {
        "model": model,
        "corpus": corpus.identity,
        "window": str(lm.window(WINDOW)),
        "dtype": str(lm.dtype).removeprefix("torch."),
        **shown(lm),
    }
    return {
        layer: Entry(
            cache_directory() / "warm_up",
            f"what layer {layer} begins with",
            {
                **about,
                "layer": str(layer),
                "memory": f"{type(memory).__module__}.{type(memory).__qualname__}",
                "learns_from": memory.learns_from() or f"{solver!r} {precision!r}",
            },
        )
        for layer, memory in memories.items()
    }


def ordinary_gradients(
    lm: LanguageModel, layers: Sequence[int], corpus: Corpus, tokens: int, precision: Precision
) -> Iterator[Read]:
    """Read keys and negative gradients of layers at tokens of a text, each predicted from those before it.

    Args:
        tokens: How many tokens are predicted, in all.

    Yields:
        By layer, (n, d_key) and (n, d_value) of some of the tokens.

    Raises:
        CorpusError: At the end, if the corpus has fewer tokens.
    """
    left = tokens
    # A window has a first token, which nothing predicts: so twice as many hold enough, even with two tokens each.
    for windows in text_batches(lm, corpus, 2 * tokens):
        texts = [Text(tuple(window[:-1]), tuple(window[1:])) for window in windows if len(window) > 1]
        some = []
        for text in texts:
            if left > 0:
                kept = len(text.targets[:left])
                some.append(Text(text.ids[:kept], text.targets[:kept]))
                left -= kept
        if some:
            gradients = read_gradients(lm, some, layers, precision)
            yield {layer: (read.keys, -read.slopes) for layer, read in gradients.items()}
        if left == 0:
            return
    raise CorpusError(
        f"corpus: it holds {tokens - left} tokens after the first of a text, fewer than warm_up={tokens}; give a "
        "longer text, or set solver.warm_up to less."
    )


def ordinary_inputs(
    lm: LanguageModel, layers: Sequence[int], corpus: Corpus, tokens: int, precision: Precision
) -> Iterator[Read]:
    """Read what the MLPs of layers get at tokens of a text.

    Args:
        tokens: How many tokens are read; a shorter corpus is read to its end.
        precision: Of gradients, which are not read here.

    Yields:
        By layer, (n, d_value) of some of the tokens, and (n, `ENDING`), the ids of the last tokens up to each, −1
        before the window begins.
    """
    gates = {layer: lm.projection(place_of(layer, GATE)) for layer in layers}

    def read(windows: Sequence[Sequence[int]]) -> Read:
        ids, mask = padded(windows, device=lm.device)
        with torch.inference_mode(), lm.quiet(), captured(inputs=gates, stop_at=gates[max(layers)]) as inputs:
            lm.body(input_ids=ids, attention_mask=mask, use_cache=False)
        kept = mask.bool().cpu()
        before = torch.cat([ids.new_full((len(ids), ENDING - 1), -1), ids], dim=1).cpu()
        ends = before.unfold(1, ENDING, 1)[kept]
        # Copies, which are no inference tensors.
        return {layer: (inputs[layer][kept.to(inputs[layer].device)].clone(), ends) for layer in layers}

    for windows in text_batches(lm, corpus, tokens):
        for _, found in in_pieces(read, windows):
            yield found


_READERS = {Ordinary.GRADIENTS: ordinary_gradients, Ordinary.INPUTS: ordinary_inputs}
