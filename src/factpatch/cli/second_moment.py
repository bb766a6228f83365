"""`factpatch second-moment`: compute what solvers know of ordinary text, and keep it in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render

if TYPE_CHECKING:
    from factpatch.model.language_model import LanguageModel
    from factpatch.presets.preset import Preset


def second_moment(
    model: options.Model,
    layers: options.Layers = None,
    corpus: options.Corpus = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            min=1,
            metavar="N",
            help="How many tokens to read. Default: the preset's, or 10 per key dimension.",
        ),
    ] = None,
    preset: options.Preset = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="X",
            help="Count the eigenvalues below X, as AlphaEdit does. Default: the threshold of alphaedit.",
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Compute and cache the second moment of the keys of every critical layer, and show its spectrum.

    A run that was interrupted goes on where it was when it is started again with the same options.
    """
    chosen = checks.parse_layers(layers)
    if threshold is not None and not threshold > 0:
        raise checks.BadArgumentError(f"--threshold {threshold}: must be positive.")

    import torch

    from factpatch.statistics.corpus import corpus_from
    from factpatch.statistics.second_moment import TOKENS_PER_DIMENSION, SecondMoment, no_corpus
    from factpatch.strategies import NullSpace
    from factpatch.support.cache import cache_directory
    from factpatch.support.progress import bar

    checks.check_place(device, dtype)
    with checks.argument("--corpus"):
        opened = corpus_from(corpus)
    limit = NullSpace().threshold if threshold is None else threshold
    lm = checks.load_model(model, device, dtype)
    checks.check_layers(lm, chosen)
    numbers = checks.load_preset(preset, lm)
    if corpus is None and not numbers.shipped_corpus:
        raise checks.BadArgumentError(f"--corpus: {no_corpus(lm)}")
    tokens = tokens or numbers.corpus_tokens
    wanted = chosen or _layers_of(numbers, lm)
    with bar("reading the second moment", tokens or TOKENS_PER_DIMENSION * lm.d_key) as advance:
        moments = SecondMoment.read(lm, wanted, opened, tokens, progress=advance)
    columns = ("layer", "tokens", "trace", "largest", "median", "smallest", "condition", f"below {limit:g}")
    made = render.table(*columns)
    for column in made.columns:
        column.justify = "right"
    for layer, moment in moments.items():
        values = torch.linalg.eigvalsh(moment.matrix.double())
        smallest, median, largest = float(values[0]), float(values.median()), float(values[-1])
        condition = f"{largest / smallest:.2e}" if smallest > 0 else "singular"
        below = f"{int((values < limit).sum())} of {len(values)}"
        row = (f"{float(values.sum()):.4g}", f"{largest:.3g}", f"{median:.3g}", f"{smallest:.3g}", condition, below)
        made.add_row(str(layer), str(moment.tokens), *row)
    render.screen.print(made)
    render.say(f"Cache: {cache_directory() / 'second_moment'}")


def _layers_of(preset: Preset, lm: LanguageModel) -> list[int]:
    """The layers that an editor of the model would write, with a warning where they are another model's."""
    from factpatch.presets.preset import warn_of_assumed

    layers = preset.layers_for(lm.num_layers)
    if preset.assumed:
        warn_of_assumed(preset, lm, layers)
    return layers
