"""Keys and gradients on ordinary text: what a solver's statistics begin with, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from factpatch.model.fingerprint import fingerprint
from factpatch.model.language_model import LanguageModel
from factpatch.model.precision import Precision
from factpatch.statistics.cache import Entry
from factpatch.statistics.corpus import Corpus
from factpatch.statistics.second_moment import WINDOW, CorpusError, shown, text_batches
from factpatch.strategies.memory import Memory
from factpatch.strategies.solver import Solver
from factpatch.support.cache import cache_directory
from factpatch.values.gradients import Gradients, Text, read_gradients


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
        solver: Says at how many tokens of the text keys and gradients are read, its `ordinary_tokens`.
        corpus: The text.
        precision: Of the gradients.
        progress: Called with the number of tokens read since the last call.

    Raises:
        CorpusError: The text has fewer tokens. The memories are of no use then.
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
    read = 0
    for gradients in ordinary_gradients(lm, missing, corpus, tokens, precision):
        for layer, of_layer in gradients.items():
            memories[layer].warm(of_layer.keys.cpu(), -of_layer.slopes.cpu())
        rows = len(next(iter(gradients.values())).keys)
        progress(rows)
        read += rows
    if read < tokens:
        raise CorpusError(
            f"corpus: it holds {read} tokens after the first of a text, fewer than warm_up={tokens}; give a longer "
            "text, or set solver.warm_up to less."
        )
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
        "precision": repr(precision),
        "solver": repr(solver),
        **shown(lm),
    }
    return {
        layer: Entry(
            cache_directory() / "warm_up",
            f"what layer {layer} begins with",
            {**about, "layer": str(layer), "memory": f"{type(memory).__module__}.{type(memory).__qualname__}"},
        )
        for layer, memory in memories.items()
    }


def ordinary_gradients(
    lm: LanguageModel, layers: Sequence[int], corpus: Corpus, tokens: int, precision: Precision
) -> Iterator[dict[int, Gradients]]:
    """Read keys and gradients of layers at tokens of a text, each of which is predicted from those before it.

    Args:
        tokens: How many tokens are predicted, in all; a shorter corpus is read to its end.

    Yields:
        By layer, what some of the tokens have.
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
            yield read_gradients(lm, some, layers, precision)
        if left == 0:
            return
