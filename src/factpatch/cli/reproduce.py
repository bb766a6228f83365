"""`factpatch reproduce`: a table or a figure of the paper on any model, by one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.cli.run import OtherVersions, begin, carry_out
from factpatch.recipe import Recipe


@options.with_recipe("method", "settings", "remember_keys", "corpus_tokens", "chat", "precision")
def reproduce(
    recipe: Recipe,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL")] = None,
    dataset: Annotated[list[str] | None, typer.Option("--dataset", metavar="FACTS")] = None,
    facts: Annotated[int | None, typer.Option("--facts", min=1, metavar="N")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, metavar="B")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", metavar="NAME")] = None,
    earlier_keys: Annotated[bool | None, typer.Option("--earlier-keys/--no-earlier-keys")] = None,
    text_facts: Annotated[int, typer.Option("--text-facts", min=1, metavar="N")] = 100,
    references: Annotated[str | None, typer.Option("--references", metavar="DIR")] = None,
    capability_data: Annotated[Path | None, typer.Option("--capability-data", metavar="DIR")] = None,
    capability_items: Annotated[int | None, typer.Option("--capability-items", min=1, metavar="N")] = None,
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE")] = "known_1000",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR")] = None,
    other_versions: OtherVersions = False,
) -> None:
    """Edit and measure as the paper does, and print its table; write it as Markdown, LaTeX and CSV.

    The settings are the paper's unless an option says otherwise; each model has those of its preset. Called again after
    it was stopped, the command goes on where it was.

    Args:
        name: table2, table3, table4, table5, figure6, figure7, figure9 or figure10.
        model: Default: the paper's.
        dataset: A file of facts, or the name of a published one; repeat for several. Default: counterfact and zsre.
        facts: How many to edit. Default: the paper's number.
        batch_size: Default: the paper's.
        method: Repeat for several. Default: the paper's.
        earlier_keys: Whether every method preserves the keys of earlier batches. Default: AlphaEdit alone, as
            published.
        text_facts: Write texts for the first N facts.
        references: Folder with the reference texts and TF-IDF files that consistency is measured against. Default: the
            published ones, if they were fetched.
        capability_data: Folder of the capability tasks' files.
        capability_items: Items of each capability task.
        prompts: Factual prompts whose hidden states are compared.
        out: The run's directory. Default: NAME in this folder.
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
            remember_keys=earlier_keys,
            text={"facts": text_facts, "references": references},
            capability={"data": str(capability_data), **({"limit": capability_items} if capability_items else {})},
            drift={"prompts": prompts},
            **{name: getattr(recipe, name) for name in ("preset", "critical_layers", "corpus", "device", "dtype")},
        )
    directory = begin(out or Path(name), config, name)
    render.heading(what.title)
    carry_out(directory, name, what.outputs, other_versions)
