"""`factpatch second-moment`: compute the statistics of ordinary text that solvers use, and cache them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe, choose, shared_expert_of
from factpatch.support.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

    from factpatch.statistics.second_moment import SecondMoment


@options.with_recipe(
    "method", "variant", "effort", "settings", "remember_keys", "corpus_tokens", "chat", "precision", "compiled", "seed"
)
def second_moment(
    model: options.Model,
    recipe: Recipe,
    tokens: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    threshold: Annotated[float | None, typer.Option(metavar="X")] = None,
    workers: options.Workers = None,
) -> None:
    """Compute and cache the second moment of the keys of every critical layer, and show its spectrum.

    To continue after an interruption, repeat the command.

    Args:
        tokens: How many tokens to read. Default: the preset's, or 5 per key dimension.
        threshold: Count the eigenvalues below X, as AlphaEdit does. Default: alphaedit's threshold.
    """
    if threshold is not None and not threshold > 0:
        raise checks.BadArgumentError(f"--threshold {threshold}: must be positive.")

    import torch

    from factpatch.model.replicas import Replicas
    from factpatch.statistics.corpus import corpus_from
    from factpatch.statistics.second_moment import TOKENS_PER_DIMENSION, SecondMoment, no_corpus
    from factpatch.strategies import NullSpace
    from factpatch.support.cache import cache_directory

    opened = corpus_from(recipe.corpus)
    limit = NullSpace().threshold if threshold is None else threshold
    lm = checks.load_model(model, recipe.device, recipe.dtype)
    with checks.argument():
        lm = shared_expert_of(lm) if recipe.shared_expert else lm
        chosen = choose(recipe, lm)
    if recipe.corpus is None and not chosen.preset.shipped_corpus:
        raise checks.BadArgumentError(f"--corpus: {no_corpus(lm)}")
    tokens = tokens or chosen.preset.corpus_tokens
    expected = tokens or TOKENS_PER_DIMENSION * lm.d_key
    with checks.pooled(workers) as pool, bar("reading the second moment", expected) as advance:
        with checks.argument():
            replicas = None if pool is None else Replicas(lm, pool)
        places = [place for layer in chosen.critical_layers for place in chosen.method.solver.reads(layer)]
        places = sorted({*chosen.critical_layers, *places})
        moments = SecondMoment.read(lm, places, opened, tokens, progress=advance, replicas=replicas)
    columns = ("layer", "tokens", "trace", "largest", "median", "smallest", "condition", f"below {limit:g}")
    made = render.table(*columns)
    for column in made.columns:
        column.justify = "right"
    for name, tokens_seen, matrix in _matrices(moments):
        values = torch.linalg.eigvalsh(matrix.double())
        smallest, median, largest = float(values[0]), float(values.median()), float(values[-1])
        condition = f"{largest / smallest:.2e}" if smallest > 0 else "singular"
        below = f"{int((values < limit).sum())} of {len(values)}"
        row = (f"{float(values.sum()):.4g}", f"{largest:.3g}", f"{median:.3g}", f"{smallest:.3g}", condition, below)
        made.add_row(name, str(tokens_seen), *row)
    render.screen.print(made)
    render.say(f"Cache: {cache_directory() / 'second_moment'}")


def _matrices(moments: Mapping[int, SecondMoment]) -> Iterator[tuple[str, int, Tensor]]:
    """The name, the number of tokens and the matrix of each layer, or of each of its experts."""
    from factpatch.model.places import name_of

    for layer, moment in moments.items():
        if moment.counts is None:
            yield name_of(layer), moment.tokens, moment.matrix
        else:
            for expert, (count, matrix) in enumerate(zip(moment.counts.tolist(), moment.matrix, strict=True)):
                yield f"{layer}, expert {expert}", count, matrix
