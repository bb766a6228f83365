"""`factpatch log`: what a session has edited."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted, printable


@options.documented
def log(
    session: Annotated[Path, typer.Argument(metavar="DIR")],
    facts: Annotated[bool, typer.Option("--facts")] = False,
) -> None:
    """Show a session's batches: when each was finished, how many facts it has and are exact, how long it took.

    A fact is exact if every token of its new answer was the likeliest right after its batch, and a fact to forget if
    that did not hold of its old one; this also counts facts that a later batch replaced. `factpatch undo DIR --to N`
    takes back the batches after N, `--fact` a single fact.

    Args:
        session: A session directory.
        facts: Also show every fact: its place, such as 2.3 for the third of batch 2, whether it was exact, and its id.
    """
    from factpatch.journal import Journal

    with checks.argument("DIR"):
        opened = Journal(session)
    about = opened.record
    render.say(f"{about['method']} on {about['model']}, begun {about['created']}", "bold")
    table = render.table("batch", "finished", "facts", "exact", "seconds", "patch")
    table.columns[-1].no_wrap = True
    for number, batch in enumerate(opened.finished, start=1):
        exact = f"{sum(batch.exact)}/{batch.facts}" if batch.exact else "not asked"
        seconds = f"{sum(batch.seconds.values()):.1f}"
        table.add_row(str(number), printable(batch.time), str(batch.facts), exact, seconds, batch.patch)
    render.screen.print(table)
    for number, batch in enumerate(opened.finished, start=1):
        if batch.spent:
            render.say(f"Spent after batch {number}: {_spent(batch.spent)}")
    batches = opened.batches  # may raise; by now the table shows which batch a damaged patch belongs to
    if facts:
        for number, (batch, edited) in enumerate(zip(opened.finished, batches, strict=False), start=1):
            render.heading(f"Batch {number}")
            marks = batch.exact or [None] * len(edited)
            for place, (fact, held) in enumerate(zip(edited, marks, strict=True), start=1):
                mark = "" if held is None else "exact      " if held else "not exact  "
                name = "" if fact.id is None else f"{printable(fact.id)}: "
                render.say(f"  {number}.{place}  {mark}{name}{render.fact_line(fact)}", "red" if held is False else "")
    taken = [counted(opened.undone, "batch")] if opened.undone else []
    taken += [f"{counted(opened.gone, 'fact')} one by one"] if opened.gone else []
    if taken:
        render.say(f"Taken back: {', '.join(taken)}; the patches are still in the directory.")
    if opened.stopped:
        render.say(f"Stopped: with the next batch, {printable(opened.stopped)}; it was taken back.", "red")
    if opened.waiting:
        render.say(
            f"Pending: {counted(sum(opened.waiting), 'fact')} in {counted(len(opened.waiting), 'batch')}; "
            f"{render.command(f'edit --resume {session}')}",
            "yellow",
        )


def _spent(spent: dict[str, float | None]) -> str:
    """What the edits had cost the model then."""
    shown = {"perplexity": "perplexity {:+.2f} %", "capability": "capability {:.3f} of the unedited model's"}
    known = [shown[name].format(math.nan if it is None else it) for name, it in spent.items() if name in shown]
    return ", ".join(known)
