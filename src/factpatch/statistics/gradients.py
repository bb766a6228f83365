"""Keys and gradients on ordinary text: what a solver's statistics begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from factpatch.model.language_model import LanguageModel
from factpatch.model.precision import Precision
from factpatch.statistics.corpus import Corpus
from factpatch.statistics.second_moment import text_batches
from factpatch.values.gradients import Gradients, Text, read_gradients


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
