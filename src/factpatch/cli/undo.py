"""`factpatch undo`: remove a patch from a model that was saved with it, or take batches of a session back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.patch.patch import Patch


@options.documented
def undo(
    model: Annotated[str, typer.Argument(metavar="MODEL|SESSION")],
    patch: Annotated[Path | None, typer.Argument(metavar="PATCH", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", callback=checks.new_directory)] = None,
    to: Annotated[int | None, typer.Option(min=0, metavar="N")] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Remove a patch from a model that was saved with it, or take batches of a session back.

    factpatch undo MODEL PATCH --out DIR writes the model without the patch. factpatch undo SESSION --to N takes back
    the batches after N; it needs no model. A patch is undone as a whole and a session batch by batch: to take back a
    single fact, undo its batch and edit the others of that batch again.

    Args:
        model: A model that contains the patch, or a session directory.
        patch: The patch that the model contains.
        out: Where to write the model: a new or empty directory.
        to: Return a session to its state after batch N; 0 is the beginning.
        base: The unedited model, to copy its weights bit for bit. Default: subtract the patch, which restores the
            weights up to rounding.
    """
    if to is not None:
        if patch is not None or out is not None or base is not None:
            raise checks.BadArgumentError(
                "--to: takes back batches of a session, as factpatch undo SESSION --to N, and nothing else."
            )
        _take_back(Path(model), to)
        return
    if patch is None or out is None:
        missing = "PATCH" if patch is None else "--out"
        raise checks.BadArgumentError(f"{missing}: is missing; to take back batches of a session, give --to N.")

    from factpatch.model.weights import changed_layers

    loaded = checks.load_patch("PATCH", patch)
    checks.check_outside(Path(model), out=out)
    checks.check_outside(patch, "session's", out=out)
    lm = checks.load_model(model, device, dtype, patch=loaded)
    with checks.argument("--out"):
        lm.check_savable()
    loaded.remove(lm, None if base is None else _base(base, loaded))
    rounded = changed_layers(lm.weights(loaded.layers), loaded.states()[0], loaded.layers)
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
    render.say("Their patches stay in the directory. Models that were saved with them do not change.")


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
