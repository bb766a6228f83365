"""`factpatch undo`: take a patch off a model that was saved with it, or go back in a session."""

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
    patch: Annotated[Path | None, typer.Argument(metavar="[PATCH]", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR")] = None,
    to: Annotated[int | None, typer.Option("--to", min=0, metavar="N")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL")] = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Take a patch off a model that was saved with it, or take batches of a session back.

    factpatch undo MODEL PATCH --out DIR writes the model without the patch. factpatch undo SESSION --to N puts the
    batches after N out of force; it needs no model.

    Args:
        model: A model that holds the patch, or the directory of a session.
        patch: The patch that the model holds.
        out: Where to write the model; a new or empty directory.
        to: Go back to where the session was after batch N; 0: the beginning.
        base: The unedited model, to take its weights from bit for bit. Default: the patch is subtracted, which restores
            the weights to rounding.
    """
    if to is not None:
        if patch is not None or out is not None or base is not None:
            raise checks.BadArgumentError(
                "--to: goes back in a session, factpatch undo SESSION --to N, and nothing else."
            )
        _go_back(Path(model), to)
        return
    for name, value in (("PATCH", patch), ("--out", out)):
        if value is None:
            raise checks.BadArgumentError(f"{name}: is missing; to go back in a session, say --to N.")
    assert patch is not None
    assert out is not None
    checks.check_output_directory("--out", out)

    from factpatch.model.weights import changed_layers
    from factpatch.session import load_patch

    with checks.argument("PATCH"):
        loaded = load_patch(patch)
    checks.check_place(device, dtype)
    lm = checks.load_model(model, device, dtype or loaded.weight_dtype)
    loaded.remove(lm, None if base is None else _base(base, loaded))
    rounded = changed_layers(lm.weights(loaded.layers), loaded.states()[0], loaded.layers)
    checks.save_model(lm, out)
    render.say(f"Removed {len(loaded.facts)} facts from layers {render.numbers(loaded.layers)}.")
    if rounded:
        kind = str(loaded.weight_dtype).removeprefix("torch.")
        render.say(
            f"Layers {render.numbers(rounded)} are those of the unedited model to rounding: within one unit in the "
            f"last place of {kind} for each of {counted(len(loaded.batches), 'batch')}, relative to the "
            "largest magnitude that the weight had. With --base they would be bit-identical.",
            "yellow",
        )
    else:
        render.say("All edited weights are bit-identical to those of the unedited model.", "green")
    render.say(f"Model: {out}", "bold")


def _go_back(directory: Path, to: int) -> None:
    from factpatch.journal import Journal

    with checks.argument("SESSION"):
        session = Journal(directory)
    with session.locked():
        waiting = sum(session.waiting)
        before = len(session.finished)
        with checks.argument("--to"):
            session.undo(to)
    dropped = f", and {waiting} facts that were still to be edited" if waiting else ""
    render.say(
        f"{directory} is where it was after batch {to}: {counted(before - to, 'batch')} out of force{dropped}.",
        "bold",
    )
    render.say("Their patches stay in the directory. A model that was saved with them is not changed by this.")


def _base(base: str, patch: Patch) -> Any:
    """The unedited model as `Patch.remove` takes it: a directory, where there is one, need not be loaded."""
    from factpatch.model.embedded import EMBEDDED, embedded_directory

    if base in EMBEDDED:
        return embedded_directory(base)
    if Path(base).is_dir():
        return Path(base)
    with checks.argument("--base"):
        return checks.load_model(base, None, patch.weight_dtype)
