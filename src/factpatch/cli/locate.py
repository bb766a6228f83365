"""`factpatch locate`: in which layers a model stores what it knows, and which an edit should write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render

if TYPE_CHECKING:
    from factpatch.evaluation.intervals import Mean
    from factpatch.lab.tracing import Summary


@options.documented
def locate(
    model: options.Model,
    facts: Annotated[str, typer.Option(metavar="FILE")] = "known_1000",
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    kinds: Annotated[str, typer.Option(metavar="K,K,...")] = "states,mlp,attention",
    window: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    noise: Annotated[float, typer.Option(metavar="F")] = 3.0,
    samples: Annotated[int, typer.Option(min=1, metavar="N")] = 10,
    seed: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
    size: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", callback=checks.directory)] = None,
    figures: Annotated[int, typer.Option(min=0, metavar="N")] = 10,
    chat: options.Chat = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Trace where a model stores facts that it knows, and propose layers to edit. The model's files do not change.

    Causal tracing, as in ROME: noise corrupts the subject's embeddings, one state is restored, and the result is the
    share of the answer's probability that returns. To continue after an interruption, repeat the command with the same
    --out.

    --out needs the extra `plots`.

    Args:
        facts: Facts that the model may know: prompts in the format of known_1000.json; the name of a data set; or facts
            in any format that `factpatch edit` reads, whose true object the model should know.
        kinds: What to restore: states, mlp, attention, severed-mlp, severed-attention. The proposal is based on mlp.
        window: How many layers of MLPs or attentions to restore at once. Default: 10 of 48, scaled to the model.
        noise: Noise, in standard deviations of the embeddings of subjects.
        samples: How many times to corrupt each subject.
        seed: Seed of the noise.
        size: How many layers to propose. Default: 5; fewer for a shallow model.
        out: Keep every fact's trace, averages and heat maps in this directory: new, or from an earlier call.
        figures: Draw heat maps of this many facts.
    """
    from factpatch.lab.drawing.charts import check_plot_file
    from factpatch.lab.tracing import TraceSettings, load_prompts
    from factpatch.lab.tracing import locate as locate_facts
    from factpatch.lab.tracing.critical import check_size
    from factpatch.lab.tracing.restoring import check_kinds, check_window

    if out is not None:
        with checks.extras():
            check_plot_file(out / "heat_maps.png")
    with checks.argument("--kinds"):
        check_kinds(named := checks.parse_names(kinds))
    with checks.argument("--noise"):
        settings = TraceSettings(tuple(named), window, noise, samples, seed)
    with checks.argument("--facts"):
        prompts = load_prompts(facts, limit, skip_unusable)
    lm = checks.load_model(model, device, dtype, chat)
    for option, number, check in (("--window", window, check_window), ("--size", size, check_size)):
        if number is not None:
            with checks.argument(option):
                check(number, lm.num_layers)
    try:
        found = locate_facts(lm, prompts, settings, directory=out, size=size, figures=figures, progress=True)
    except KeyboardInterrupt:
        if out is not None:
            render.note(f"The traces so far are kept in {out}; the same command continues from there.")
        raise
    _show(found)
    render.written(Written=out)


def _show(found: Summary) -> None:
    traced, totals = len(found.traces), found.totals
    left = found.asked - traced
    render.say(
        f"{traced} of {found.asked} facts are known and traced"
        + (f"; {left} are left out, since the model gives another answer." if left else ".")
    )
    render.say(
        f"Probability of the answer: {_mean(totals.clean)}; with the subject corrupted {_mean(totals.corrupted)}; "
        f"total effect {_mean(totals.total_effect)}"
    )
    render.say("Largest average indirect effect, at its layer:")
    rows = (
        (position, *(_largest(positions[position]) for positions in found.averages.values()))
        for position in next(iter(found.averages.values()))
    )
    render.screen.print(render.table("token", *found.averages, rows=rows))
    if found.critical is not None:
        if found.critical.layers:
            render.say(f"Proposed: --layers {','.join(map(str, found.critical.layers))}", "bold")
        render.paragraph(f"{found.critical.reason} {found.critical.certainty}".strip())


def _mean(mean: Mean) -> str:
    error = "" if mean.error is None else f" ± {mean.error:.3f}"
    return f"{mean.value:.3f}{error}"


def _largest(means: list[Mean]) -> str:
    """The largest mean of any layer, with its layer."""
    known = [(mean.value, layer) for layer, mean in enumerate(means) if mean.value is not None]
    if not known:
        return "-"
    layer = max(known, key=lambda one: one[0])[1]
    return f"{_mean(means[layer])} at {layer}"
