"""`factpatch apply`: a model and a patch in, the edited model out."""

from __future__ import annotations

from factpatch.cli import checks, options, render


def apply(
    model: options.Model,
    patch: options.PatchFile,
    out: options.OutDirectory,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Apply a patch to the model it was made for and write the result as a complete model.

    The weights are the very bits that the edit gave. A model with other weights is refused.
    """
    checks.check_output_directory("--out", out)

    from factpatch.export.card import model_card
    from factpatch.session import load_patch

    with checks.argument("PATCH"):
        loaded = load_patch(patch)
    checks.check_place(device, dtype)
    lm = checks.load_model(model, device, dtype or loaded.weight_dtype)
    loaded.apply(lm)
    checks.save_model(lm, out, model_card(loaded))
    render.say(f"Applied {len(loaded.facts)} facts to layers {render.numbers(loaded.layers)} of {model}.")
    render.say(f"Model: {out}", "bold")
