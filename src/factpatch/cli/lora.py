"""`factpatch lora`: a short name for `factpatch export --to peft`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options
from factpatch.cli.export import finished_patch, write_peft


@options.documented
def lora(
    patch: options.PatchFile,
    out: Annotated[Path, typer.Option(metavar="DIR", callback=checks.new_directory)],
    rank: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    base_model_name: Annotated[str | None, typer.Option(metavar="NAME")] = None,
) -> None:
    """Write a patch as a LoRA adapter, which peft and servers load on the unedited model: export --to peft.

    No model is needed. A patch that has no low rank, such as RECT's, needs --rank, which truncates it.

    Args:
        out: Where to write the adapter: a new or empty directory.
        rank: The largest rank to write. Default: exact to rounding.
        base_model_name: What the adapter calls its base model, so that AutoPeftModel and servers find it: an ID on the
            Hugging Face Hub, or a directory. Default: the ID that the model was loaded by.
    """
    if base_model_name is not None and not base_model_name.strip():
        raise checks.BadArgumentError("--base-model-name: is blank; leave it out to write none.")
    write_peft(finished_patch(patch), out, rank, base_model_name=base_model_name)
