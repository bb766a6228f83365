"""`factpatch log`: what a session has edited."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted


@options.documented
def log(
    session: Annotated[Path, typer.Argument(metavar="DIR")],
    facts: Annotated[bool, typer.Option("--facts")] = False,
) -> None:
    """Show a session's batches: when each was finished, how many of its facts the model then held, how long it took.

    The last column counts a fact that a later batch replaced as well. A batch can be gone back to with
    `factpatch undo DIR --to N`.

    Args:
        session: The directory of a session.
        facts: Also show every fact, and whether it was learned.
    """
    from factpatch.journal import Journal

    with checks.argument("DIR"):
        opened = Journal(session)
    about = opened.record
    render.say(f"{about['method']} on {about['model']}, begun {about['created']}", "bold")
    table = render.table("batch", "finished", "facts", "learned", "seconds", "patch")
    table.columns[-1].no_wrap = True
    for number, batch in enumerate(opened.finished, start=1):
        learned = f"{sum(batch.learned)}/{batch.facts}" if batch.learned else "not asked"
        table.add_row(
            str(number), batch.time, str(batch.facts), learned, f"{sum(batch.seconds.values()):.1f}", batch.patch
        )
    render.screen.print(table)
    batches = opened.batches  # only now: the table says which batch a damaged patch is of
    if facts:
        for number, (batch, edited) in enumerate(zip(opened.finished, batches, strict=False), start=1):
            render.heading(f"Batch {number}")
            for index, fact in enumerate(edited):
                mark = "" if not batch.learned else "learned      " if batch.learned[index] else "not learned  "
                style = "red" if mark.startswith("not") else ""
                render.say(f"  {mark}{render.printable(fact.text)} {render.printable(fact.target_new)}", style)
    if opened.undone:
        render.say(f"Taken back: {counted(opened.undone, 'batch')}; the patches are still in the directory.")
    if opened.waiting:
        render.say(
            f"Still to be edited: {sum(opened.waiting)} facts in {len(opened.waiting)} batches; "
            f"factpatch edit --resume {session}",
            "yellow",
        )
