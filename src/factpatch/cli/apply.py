"""`factpatch apply`: a model and a patch in, the edited model out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.model.language_model import LanguageModel
    from factpatch.patch.patch import Patch


@options.documented
def apply(
    model: options.Model,
    patch: options.PatchFile,
    out: options.ModelDirectory,
    rebase: Annotated[bool, typer.Option("--rebase")] = False,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Apply a patch to the model that it was made for, and write the result as a complete model.

    The edited weights are bit-identical to those of the edit. A model with other weights is refused, unless --rebase
    says that the patch is meant for these too.

    Args:
        rebase: Accept other weights of the same shapes, such as the original of a GGUF file, and ask the model about
            the facts without and with the patch.
    """
    from factpatch.export.card import model_card

    loaded = checks.load_patch("PATCH", patch)
    checks.check_outside(Path(model), out=out)
    checks.check_outside(patch, "session's", out=out)
    lm, applied = applied_model(model, loaded, device, dtype, rebase)
    checks.save_model(lm, out, model_card(applied))
    render.say(f"Applied {counted(len(loaded.facts), 'fact')} to layers {render.numbers(loaded.layers)} of {model}.")
    render.say(f"Model: {out}", "bold")


def applied_model(
    model: str, patch: Patch, device: str | None = None, dtype: str | None = None, rebase: bool = False
) -> tuple[LanguageModel, Patch]:
    """Load a model and apply a patch to it; with `rebase`, also to other weights, after asking about the facts.

    Returns:
        The edited model, and the patch as it was applied.
    """
    lm = checks.load_model(model, device, dtype, patch.chat, patch)
    lm.check_savable()
    applied = rebased_and_asked(lm, patch) if rebase else patch
    applied.apply(lm)
    return lm, applied


def rebased_and_asked(lm: LanguageModel, patch: Patch) -> Patch:
    """Make a patch fit the weights of a model, and show what the model says of the facts without and with it."""
    from factpatch.edit_report import ask, not_trained_by
    from factpatch.evaluation.verify import plain_summary

    rebased = patch.rebase(lm)
    facts = not_trained_by(rebased, rebased.facts)
    _, done = checks.before_and_after(lm, rebased, lambda what, before: ask(lm, facts, what, before))
    render.show_verification(done, plain_summary(done))
    return rebased
