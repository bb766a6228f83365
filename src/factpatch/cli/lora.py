"""`factpatch lora`: a patch in, a LoRA adapter out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render


@options.documented
def lora(
    patch: options.PatchFile,
    out: Annotated[Path, typer.Option(metavar="DIR", callback=checks.new_directory)],
    rank: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    base_model_name: Annotated[str | None, typer.Option(metavar="NAME")] = None,
) -> None:
    """Write a patch as a LoRA adapter, which peft and servers load on the unedited model.

    No model is needed. A patch that has no low rank, such as RECT's, needs --rank, which truncates it.

    Args:
        out: Where to write the adapter: a new or empty directory.
        rank: The largest rank to write. Default: exact to rounding.
        base_model_name: What the adapter calls its base model, so that AutoPeftModel and servers find it: an ID on the
            Hugging Face Hub, or a directory. Default: the ID that the model was loaded by.
    """
    from factpatch.export.lora import WEIGHTS
    from factpatch.export.origin import known_base

    if base_model_name is not None and not base_model_name.strip():
        raise checks.BadArgumentError("--base-model-name: is blank; leave it out to write none.")
    loaded = checks.load_patch("PATCH", patch)
    with checks.extras(), checks.argument("--rank"):
        ranks = loaded.to_lora(out, rank, base_model_name)
    for layer, count in ranks.items():
        render.say(f"Layer {layer}: rank {count}")
    render.say(f"Adapter: {out} ({render.size(out / WEIGHTS)}; rank {max(ranks.values())})", "bold")
    base = base_model_name or known_base(loaded.config)
    if base is None:
        render.say(
            "The adapter does not name its base model, which was not loaded from the Hub; AutoPeftModel and servers "
            "look for the name. To write it: --base-model-name NAME, an ID on the Hub or a directory.",
            "yellow",
        )
    model = base or loaded.config.get("_name_or_path") or "the unedited model"
    render.say(f"To load it: peft.PeftModel.from_pretrained(model, {str(out)!r}), where model is {model}")
