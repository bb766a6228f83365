"""`factpatch undo`: remove a patch from a model that was saved with it, or take batches of a session back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.facts import find_facts
from factpatch.support.words import counted, printable

if TYPE_CHECKING:
    from factpatch.evaluation.taken_back import TakenBack
    from factpatch.evaluation.verify import Verification
    from factpatch.patch.patch import Patch


@options.documented
def undo(
    model: Annotated[str, typer.Argument(metavar="MODEL|SESSION")],
    patch: Annotated[Path | None, typer.Argument(metavar="PATCH", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", callback=checks.new_directory)] = None,
    to: Annotated[int | None, typer.Option(min=0, metavar="N")] = None,
    fact: Annotated[list[str] | None, typer.Option(metavar="ID")] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Remove a patch from a model that was saved with it, or take batches or single facts of a session back.

    factpatch undo MODEL PATCH --out DIR writes the model without the patch. factpatch undo SESSION --to N takes back
    the batches after N; it needs no model. factpatch undo SESSION --fact ID takes a single fact back: it loads the
    model of the session and solves the batches from that of the fact on again without it. The other facts keep the
    values that were optimized for them; the command asks about all of them and lists those that were lost.

    Args:
        model: A model that contains the patch, or a session directory.
        patch: The patch that the model contains.
        out: Where to write the model: a new or empty directory.
        to: Return a session to its state after batch N; 0 is the beginning.
        fact: Take this fact of a session back: its id, or its place as `factpatch log --facts` shows it. Repeatable.
        base: The unedited model, to copy its weights bit for bit. Default: subtract the patch, which restores the
            weights up to rounding.
    """
    if to is not None or fact:
        option = "--fact" if fact else "--to"
        others = (patch, out, base, device, dtype, to if fact else None)
        if any(other is not None for other in others):
            raise checks.BadArgumentError(
                f"{option}: takes back {'facts' if fact else 'batches'} of a session, as factpatch undo SESSION "
                f"{option} {'ID' if fact else 'N'}, and nothing else."
            )
        if to is None:
            _take_facts_back(Path(model), fact or [])
        else:
            _take_back(Path(model), to)
        return
    if patch is None or out is None:
        missing = "PATCH" if patch is None else "--out"
        raise checks.BadArgumentError(
            f"{missing}: is missing; to take back batches of a session, give --to N; facts, --fact ID."
        )

    from factpatch.model.weights import changed_layers

    loaded = checks.load_patch("PATCH", patch)
    checks.check_outside(Path(model), out=out)
    checks.check_outside(patch, "session's", out=out)
    lm = checks.load_model(model, device, dtype, patch=loaded)
    with checks.argument("--out"):
        lm.check_savable()
    loaded.remove(lm, None if base is None else _base(base, loaded))
    rounded = changed_layers(lm.weights(loaded.places), loaded.states()[0], loaded.places)
    checks.save_model(lm, out)
    render.say(f"Removed {counted(len(loaded.facts), 'fact')} from layers {render.numbers(loaded.layers)}.")
    if rounded:
        kind = str(loaded.weight_dtype).removeprefix("torch.")
        render.say(
            f"Layers {render.numbers(rounded)} equal those of the unedited model up to rounding: within one unit in "
            f"the last place of {kind} for each of {counted(len(loaded.batches), 'batch')}, relative to the largest "
            "magnitude that the weight had. With --base they would be bit-identical.",
            "yellow",
        )
    else:
        render.say("All edited weights are bit-identical to those of the unedited model.", "green")
    render.say(f"Model: {out}", "bold")


def _take_back(directory: Path, to: int) -> None:
    from factpatch.journal import Journal

    with checks.argument("SESSION"):
        session = Journal(directory)
    with session.locked():
        waiting, before = sum(session.waiting), len(session.finished)
        with checks.argument("--to"):
            session.undo(to)
    dropped = f", and {counted(waiting, 'pending fact')} dropped" if waiting else ""
    render.say(
        f"{directory} is back to its state after batch {to}: {counted(before - to, 'batch')} taken back{dropped}.",
        "bold",
    )
    render.say("Their patches stay in the directory. Patches and models that were saved with them do not change.")
    if to:
        render.say(f"To write the patch of what is left: {render.command(f'edit --resume {directory} --out PATCH')}")


def _take_facts_back(directory: Path, names: list[str]) -> None:
    with checks.argument("SESSION"):
        session = checks.open_session(directory)
        recipe = session.settled
    with session.locked():
        with checks.argument("--fact"):
            find_facts(session.batches[: len(session.finished)], names)  # before the model is loaded
        editor = checks.make_editor(str(session.source), recipe, {})
        session.attach(editor)
        found = session.undo_fact(editor, *names)
    assert found.gone is not None  # asked for by default
    _show_taken(found, found.gone)
    render.say(
        f"{directory}: {counted(len(found.gone.facts), 'fact')} taken back, {counted(found.batches, 'batch')} solved "
        "again.",
        "bold",
    )
    render.say("The earlier patches stay in the directory.")
    if session.finished:
        render.say(f"To write the new one: {render.command(f'edit --resume {directory} --out PATCH')}")


def _show_taken(found: TakenBack, gone: Verification) -> None:
    table = render.table("fact taken back", "the unedited model says", "it says now")
    for fact, was, now in zip(gone.facts, gone.before or (), gone.after, strict=True):
        table.add_row(*(printable(text) for text in (render.fact_line(fact), was.answer or "", now.answer or "")))
    render.screen.print(table)
    same = len(gone.facts) - len(found.differing)
    render.say(f"{same} of {counted(len(gone.facts), 'fact')} answered as by the unedited model.")
    if found.others is not None:
        counts = ", ".join(f"{now} {word} ({was} before)" for word, (was, now) in found.counts().items())
        render.say(f"Of {counted(len(found.others.facts), 'other fact')}: {counts}.")
    render.show_facts("Lost with it", found.lost, "red")


def _base(base: str, patch: Patch) -> Any:
    """The unedited model as `Patch.remove` takes it; a directory need not be loaded."""
    from factpatch.model.embedded import EMBEDDED, embedded_directory
    from factpatch.model.gguf import find_gguf

    if base in EMBEDDED:
        return embedded_directory(base)
    with checks.argument("--base"):
        file = find_gguf(base)
    if file is not None or Path(base).is_dir():
        return file or Path(base)
    with checks.argument("--base"):
        return checks.load_model(base, None, None, patch=patch)
