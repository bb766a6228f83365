"""`factpatch report`: what runs have measured, as one page that a browser shows offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render


@options.documented
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN")],
    out: Annotated[Path, typer.Option(metavar="FILE.html", callback=checks.new_file)] = Path("report.html"),
    worst: Annotated[int, typer.Option(min=1, metavar="N")] = 5,
) -> None:
    """Write a page about runs: a summary, tables with intervals, curves, the worst facts and the settings.

    The page is a single HTML file that includes its charts. Needs the extra `runs`.

    Args:
        runs: Directories of runs, finished or not.
        out: Where to write the page.
        worst: Show N of the worst facts of each method and dataset.
    """
    from factpatch.lab.runs.execute import check_extra
    from factpatch.lab.runs.report import write_report
    from factpatch.lab.runs.results import read_results

    with checks.extras():
        check_extra("a report")
    with checks.argument("RUN"):
        results = [read_results(run) for run in runs]
    with render.messages.status("drawing charts"):
        write_report(results, out, worst)
    render.say(f"Report: {out}")
