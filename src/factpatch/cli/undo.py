"""`factpatch undo`: take a patch off a model that was saved with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render

if TYPE_CHECKING:
    from factpatch.patch import Patch


def undo(
    model: options.Model,
    patch: options.PatchFile,
    out: options.OutDirectory,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="The unedited model, to take its weights from bit for bit. Default: the patch is subtracted, which "
            "restores the weights to rounding.",
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Take a patch off a model that was saved with it and write the result as a complete model."""
    checks.check_output_directory("--out", out)

    from factpatch.model.weights import changed_layers
    from factpatch.patch import Patch

    with checks.argument("PATCH"):
        loaded = Patch.load(patch)
    checks.check_place(device, dtype)
    lm = checks.load_model(model, device, dtype or loaded.weight_dtype)
    loaded.remove(lm, None if base is None else _base(base, loaded))
    original: dict[int, str] = {}
    for batch in reversed(loaded.batches):
        original.update(batch.before)
    rounded = changed_layers(lm.weights(loaded.layers), original, loaded.layers)
    checks.save_model(lm, out)
    render.say(f"Removed {len(loaded.facts)} facts from layers {render.numbers(loaded.layers)}.")
    if rounded:
        kind = str(loaded.weight_dtype).removeprefix("torch.")
        render.say(
            f"Layers {render.numbers(rounded)} are those of the unedited model to rounding: within one unit in the "
            f"last place of {kind} for each of {len(loaded.batches)} batches, relative to the largest magnitude "
            "that the weight had. With --base they would be bit-identical.",
            "yellow",
        )
    else:
        render.say("All edited weights are bit-identical to those of the unedited model.", "green")
    render.say(f"Model: {out}", "bold")


def _base(base: str, patch: Patch) -> Any:
    """The unedited model as `Patch.remove` takes it: a directory, where there is one, need not be loaded."""
    from factpatch.model.embedded import EMBEDDED, embedded_directory

    if base in EMBEDDED:
        return embedded_directory(base)
    if Path(base).is_dir():
        return Path(base)
    with checks.argument("--base"):
        return checks.load_model(base, None, patch.weight_dtype)
