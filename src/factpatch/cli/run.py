"""`factpatch run`: edit and measure every method on every dataset with every seed, and continue after interruptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from factpatch.cli import checks, options, render

if TYPE_CHECKING:
    from factpatch.lab.runs.config import RunConfig
    from factpatch.lab.runs.directory import RunDirectory
    from factpatch.lab.runs.reproductions import Output
    from factpatch.lab.runs.tables import Table
    from factpatch.pool import Pool


@options.documented
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    out: Annotated[Path, typer.Option(metavar="DIR")],
    other_versions: options.OtherVersions = False,
    workers: options.LineWorkers = None,
) -> None:
    """Edit and measure as a configuration file says, in sequential batches, and print a table.

    Patches, measurements and texts are kept in the run's directory. To continue after an interruption, repeat the
    command; the numbers are the same.

    Args:
        config: The configuration: what to edit and what to measure.
        out: The run's directory: new, or from an earlier call.
    """
    from factpatch.lab.runs.config import load_config

    with checks.argument("CONFIG.yaml"):
        loaded = load_config(config)
    outputs: tuple[Output, ...] = ("comparison",) if loaded.evaluate.curve is None else ("comparison", "curves")
    with checks.pooled(workers) as pool:  # first: a new run keeps to the number of threads of its workers
        directory = begin(out, loaded, "CONFIG.yaml", pool)
        carry_out(directory, outputs=outputs, other_versions=other_versions, pool=pool)


def begin(out: Path, config: RunConfig, origin: str, pool: Pool | None) -> RunDirectory:
    """Begin a run, or open it if it was begun before; `origin` is the argument to blame for an error in the config."""
    from factpatch.lab.runs.config import ConfigError
    from factpatch.lab.runs.directory import RunDirectory
    from factpatch.lab.runs.execute import check_known_to

    if not RunDirectory.is_begun(out):
        with checks.argument("--workers"):  # before the run is bound to the workers' number of threads
            check_known_to(pool, [method.name for method in config.methods])
    with checks.argument("--out"):
        try:
            return RunDirectory.create(out, config)
        except ConfigError as error:
            raise checks.BadArgumentError(f"{origin}: {error}") from error


def carry_out(
    directory: RunDirectory,
    name: str = "table",
    outputs: Sequence[Output] = ("comparison",),
    other_versions: bool = False,
    pool: Pool | None = None,
) -> None:
    """Complete a run, then print and write the outputs that were asked for."""
    from factpatch.lab.runs.execute import execute
    from factpatch.lab.runs.outputs import draw_up
    from factpatch.lab.runs.results import read_results

    checks.silence_transformers()
    with checks.extras():
        execute(directory, render.note, other_versions, pool)
    results = read_results(directory.path)
    for output in outputs:
        drawn = draw_up(output, results, directory.path, name)
        if drawn.table is not None:
            _show(drawn.table)
        for line in drawn.sentences:
            render.say(line)
        for path in drawn.files:
            render.note(f"Written: {path}")
    # The table has what papers report; an object that is preferred need not be said.
    render.note(f"What is said and exact, perplexity and the rest: factpatch report {directory.path} --out report.html")
    for line, reason in results.failed.items():
        render.say(f"Failed: {line}: {reason}", "red")
    if results.missing:
        render.say(f"Not finished: {', '.join(results.missing)}.", "red")


def _show(table: Table) -> None:
    """Print a table for each dataset with a line for each method; what BLUE improved is in red, as in the paper."""
    datasets = dict.fromkeys(column.dataset for column in table.columns)
    for dataset in datasets:
        here = [(place, column) for place, column in enumerate(table.columns) if column.dataset == dataset]
        shown = render.table(
            table.stub, *(column.header for _, column in here), title=dataset if len(datasets) > 1 else None
        )
        for label, cells in table.lines:
            pairs = ((cells[place], column.decimals) for place, column in here)
            shown.add_row(label, *(Text(cell.text(digits), "red" if cell.improved else "") for cell, digits in pairs))
        render.screen.print(shown)
