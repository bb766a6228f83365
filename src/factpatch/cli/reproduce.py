"""`factpatch reproduce`: a table or a figure of the paper, on any model, with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.cli.run import begin, carry_out
from factpatch.recipe import Recipe


@options.with_recipe(
    "method", "settings", "remember_keys", "corpus_tokens", "chat", "precision", "compiled", "shared_expert"
)
def reproduce(
    recipe: Recipe,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    model: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    dataset: Annotated[list[str] | None, typer.Option(metavar="FACTS")] = None,
    facts: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="B")] = None,
    method: Annotated[list[str] | None, typer.Option(metavar="NAME")] = None,
    earlier_keys: Annotated[bool | None, typer.Option("--earlier-keys/--no-earlier-keys")] = None,
    text_facts: Annotated[int, typer.Option(min=1, metavar="N")] = 100,
    references: Annotated[str | None, typer.Option(metavar="DIR")] = None,
    capability_data: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    capability_items: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    prompts: Annotated[str, typer.Option(metavar="FILE")] = "known_1000",
    out: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    other_versions: options.OtherVersions = False,
    workers: options.LineWorkers = None,
) -> None:
    """Edit and measure as the paper does, and print its table; also write it as Markdown, LaTeX and CSV.

    Settings default to the paper's; those of a model come from its preset. To continue after an interruption, repeat
    the command.

    Args:
        name: table2, table3, table4, table5, figure6, figure7, figure9 or figure10.
        model: The model to edit. Default: the paper's.
        dataset: A file of facts, or the name of a published one; may be repeated. Default: counterfact and zsre.
        facts: How many facts to edit. Default: the paper's number.
        batch_size: How many facts to edit at a time. Default: the paper's.
        method: A method to compare; may be repeated. Default: the paper's.
        earlier_keys: Whether every method preserves the keys of earlier batches. Default: AlphaEdit alone, as
            published.
        text_facts: Write texts for the first N facts.
        references: The folder with the reference texts and TF-IDF files that consistency is measured against. Default:
            the published ones, if they were fetched.
        capability_data: The folder with the files of the capability tasks.
        capability_items: Ask this many items of each capability task.
        prompts: Compare the hidden states of these factual prompts.
        out: The run's directory. Default: NAME in the current folder.
    """
    from factpatch.lab.runs.reproductions import config_for, reproduction_named

    with checks.argument("NAME"):
        what = reproduction_named(name)
    if "capability" in what.evaluate and capability_data is None:
        raise checks.BadArgumentError("--capability-data: give the folder with the files of the tasks.")
    with checks.argument(name):
        config = config_for(
            what,
            dataset or ["counterfact", "zsre"],
            model=model,
            methods=method,
            edits=facts,
            batch_size=batch_size,
            seed=recipe.seed,
            variant=recipe.variant,
            effort=recipe.effort,
            remember_keys=earlier_keys,
            text={"facts": text_facts, "references": references},
            capability={"data": str(capability_data), **({"limit": capability_items} if capability_items else {})},
            drift={"prompts": prompts},
            **{name: getattr(recipe, name) for name in ("preset", "critical_layers", "corpus", "device", "dtype")},
        )
    with checks.pooled(workers) as pool:  # first: a new run keeps to the number of threads of its workers
        directory = begin(out or Path(name), config, name, pool)
        render.heading(what.title)
        carry_out(directory, name, what.outputs, other_versions, pool)
