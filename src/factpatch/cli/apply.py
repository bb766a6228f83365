"""`factpatch apply`: a model and a patch in, the edited model out."""

from __future__ import annotations

from pathlib import Path

from factpatch.cli import checks, options, render
from factpatch.support.words import counted


def apply(
    model: options.Model,
    patch: options.PatchFile,
    out: options.ModelDirectory,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Apply a patch to the model that it was made for, and write the result as a complete model.

    The edited weights are bit-identical to those of the edit. A model with other weights is refused.
    """
    from factpatch.export.card import model_card

    loaded = checks.load_patch("PATCH", patch)
    checks.check_outside(Path(model), out=out)
    checks.check_outside(patch, "session's", out=out)
    lm = checks.load_model(model, device, dtype, patch=loaded)
    loaded.apply(lm)
    checks.save_model(lm, out, model_card(loaded))
    render.say(f"Applied {counted(len(loaded.facts), 'fact')} to layers {render.numbers(loaded.layers)} of {model}.")
    render.say(f"Model: {out}", "bold")
