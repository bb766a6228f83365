"""`factpatch apply`: a model and a patch in, the edited model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from factpatch.cli import checks, options, render
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.model.language_model import LanguageModel
    from factpatch.patch.patch import Patch


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
    lm, _ = applied_model(model, loaded, device, dtype)
    checks.save_model(lm, out, model_card(loaded))
    render.say(f"Applied {counted(len(loaded.facts), 'fact')} to layers {render.numbers(loaded.layers)} of {model}.")
    render.say(f"Model: {out}", "bold")


def applied_model(
    model: str, patch: Patch, device: str | None = None, dtype: str | None = None, rebase: bool = False
) -> tuple[LanguageModel, Patch]:
    """Load a model and apply a patch to it; with `rebase`, also if its weights are not those that were edited.

    Returns:
        The edited model, and the patch as it was applied.
    """
    lm = checks.load_model(model, device, dtype, patch=patch)
    applied = patch.rebase(lm) if rebase else patch
    applied.apply(lm)
    return lm, applied
