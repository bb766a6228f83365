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
) -> None:
    """Write a patch as a LoRA adapter, which peft and servers load on the unedited model.

    No model is needed. A patch that has no low rank, such as RECT's, needs --rank, which truncates it.

    Args:
        out: Where to write the adapter: a new or empty directory.
        rank: The largest rank to write. Default: exact to rounding.
    """
    from factpatch.export.lora import WEIGHTS

    loaded = checks.load_patch("PATCH", patch)
    with checks.extras(), checks.argument("--rank"):
        ranks = loaded.to_lora(out, rank)
    for layer, count in ranks.items():
        render.say(f"Layer {layer}: rank {count}")
    render.say(f"Adapter: {out} ({render.size(out / WEIGHTS)}; rank {max(ranks.values())})", "bold")
    base = loaded.config.get("_name_or_path") or "the unedited model"
    render.say(f"To load it: peft.PeftModel.from_pretrained(model, {str(out)!r}), where model is {base}")
