"""`factpatch rebase`: a patch in, the same patch for other weights out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render


@options.documented
def rebase(
    model: options.Model,
    patch: options.PatchFile,
    out: Annotated[Path, typer.Option(metavar="PATCH", callback=checks.new_patch)],
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Make a patch fit other weights of the same architecture, such as those of a fine-tuned model.

    The shifts stay the same. Nothing guarantees that the facts hold there: verify them.

    Args:
        out: Where to write the patch for MODEL, which `factpatch apply` and the other commands then take.
    """
    checks.check_outside(Path(model), out=out)
    checks.check_outside(patch, "session's", out=out)
    checks.check_no_input(out, [patch])
    loaded = checks.load_patch("PATCH", patch)
    rebased = loaded.rebase(checks.load_model(model, device, dtype, patch=loaded))
    rebased.save(out)
    render.say(f"Patch: {out} ({render.size(out)}; layers {render.numbers(rebased.layers)})", "bold")
    show_weights(model, rebased.states()[0] == loaded.states()[0])


def show_weights(model: str, same: bool) -> None:
    """Print whether a model has the weights that were edited."""
    if same:
        render.say(f"The weights of {model} are those that were edited.", "green")
    else:
        render.say(f"The weights of {model} are not those that were edited: verify the facts there.", "yellow")
