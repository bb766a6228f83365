"""`factpatch tune`: find settings for a model that has no preset, by editing probe facts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe

if TYPE_CHECKING:
    from factpatch.lab.tuning import Trial, Tuning


@options.with_recipe(
    "preset",
    "variant",
    "effort",
    "settings",
    "critical_layers",
    "remember_keys",
    "corpus_tokens",
    "chat",
    "precision",
    "compiled",
    "shared_expert",
)
def tune(
    model: options.Model,
    recipe: Recipe,
    facts: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    exclude: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
    skip: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
    limit: options.Limit = None,
    minutes: Annotated[float, typer.Option(min=0.1, metavar="M")] = 20.0,
    windows: Annotated[list[str] | None, typer.Option("--layers", metavar="L,L,...")] = None,
    max_perplexity: Annotated[float, typer.Option(min=1.0, metavar="X")] = 1.03,
    steps: Annotated[int, typer.Option(min=2, metavar="N")] = 20,
    perplexity_text: options.PerplexityText = None,
    workers: options.Workers = None,
) -> None:
    """Find critical layers and settings for a model by editing probe facts, and write a preset.

    The facts need a true object, paraphrases and neighbors, as CounterFact has them. A third is held out to check the
    result. The model's files do not change; use the preset with factpatch edit --preset DIR/preset.yaml.

    Args:
        facts: Probe facts, in any format that `factpatch edit` reads, or the name of a data set that was fetched.
            Default: the few that the package ships.
        out: Where to write preset.yaml, the measurements behind it as tuning.json, and a plot. To continue after an
            interruption, give the same directory. Default: tuned-MODEL in the current folder.
        exclude: Skip probe facts whose subject appears in this file: give the facts that you will edit.
        skip: Leave out the first N facts.
        minutes: Start no new trial after this time; only the final check follows.
        windows: Critical layers to try, such as 4,5,6,7,8; may be repeated. Default: windows of five in the lower half
            of the model.
        max_perplexity: The largest perplexity on ordinary text to accept, as the ratio of edited to unedited.
        steps: The largest number of evaluations in the value optimization; at most 8 are tried where a model is also
            read in chats.
    """
    out = checks.default_directory("tuned", model) if out is None else out
    with checks.argument():
        chosen = [Recipe(critical_layers=text).critical_layers or () for text in windows or []]

    from factpatch.data import demo_facts, load_facts
    from factpatch.lab.tuning import search
    from factpatch.lab.tuning.directory import TuningDirectory
    from factpatch.statistics.corpus import corpus_from

    with checks.argument("--out"):
        TuningDirectory.check_place(out)
    end = None if limit is None else skip + limit
    with checks.argument("--facts"):
        probes = demo_facts()[skip:end] if facts is None else load_facts(facts, end)[skip:]
        if skip and not probes:
            raise ValueError(f"--skip {skip} leaves none of them; skip fewer.")
    with checks.argument("--exclude"):
        excluded = [] if exclude is None else load_facts(exclude)
    with checks.argument("--facts" if exclude is None else "--facts, --exclude"):
        search.probes(probes, excluded)
    if facts is None:
        render.note(
            f"--facts: not given, so the probes are {len(probes)} facts that the package ships. Numbers from so few "
            "are coarse; better give 60 to 120 facts of CounterFact that you will not edit.",
            "yellow",
        )
    text = checks.read_text("--perplexity-text", perplexity_text)
    lm = checks.load_model(model, recipe.device, recipe.dtype)
    for layers in chosen:
        with checks.argument("--layers"):
            lm.check_layers(layers)

    with checks.pooled(workers) as pool:
        found = search.tune(
            lm,
            probes,
            None if recipe.corpus is None else corpus_from(recipe.corpus),
            out,
            exclude=excluded,
            method=recipe.row.name,
            minutes=minutes,
            layers=chosen or None,
            most_perplexity=max_perplexity,
            steps=steps,
            text=text,
            seed=recipe.seed,
            changed=_say,
            pool=pool,
        )
    _show(found, out)


def _say(found: Tuning, stage: str) -> None:
    """Print a line about the latest result."""
    if stage == "value optimization":
        made = found.attempts[-1]
        settings = ", ".join(f"{name.removeprefix('target.')}={value}" for name, value in made.settings.items())
        render.say(f"{settings}: loss {made.loss:.3f} after {made.evaluations:.1f} evaluations")
        return
    if stage == "text for the statistics":
        tokens, trial = found.statistics[-1]
        label = f"{tokens} tokens"
    elif stage == "check":
        label, trial = found.checked[-1]
    else:
        trial = found.trials[-1]
        label = str(trial.candidate)
    render.say(f"{label}: {_numbers(trial)}, {trial.facts} facts, {trial.seconds:.0f} s")


def _numbers(trial: Trial) -> str:
    if trial.error is not None:
        return f"failed: {trial.error}"
    return f"S {trial.score:.1f}, perplexity x {trial.perplexity:.3f}"


def _show(found: Tuning, out: Path) -> None:
    made = render.table("on held-out facts", "efficacy", "generalization", "specificity", "said", "score", "perplexity")
    before = [f"{found.unedited[name]:.1f}" for name in ("efficacy", "generalization", "specificity")]
    made.add_row("unedited", *before, "", "", "")
    for what, trial in found.checked:
        numbers = (trial.efficacy, trial.generalization, trial.specificity, trial.said, trial.score)
        made.add_row(
            what, *("" if number is None else f"{number:.1f}" for number in numbers), f"x {trial.perplexity:.3f}"
        )
    render.screen.print(made)
    assert found.preset is not None
    settings = {**found.preset.common, **found.preset.methods[found.method]}
    render.say(f"{found.tried} of {found.candidates} candidates were tried")
    render.say(f"layers {render.numbers(found.preset.critical_layers)}; {found.tokens} tokens for the statistics")
    render.say(", ".join(f"{name}={value}" for name, value in settings.items()))
    render.say(f"Preset: {out / 'preset.yaml'} ({found.seconds / 60:.1f} minutes)", "bold")
