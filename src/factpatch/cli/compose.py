"""`factpatch compose`: several patches in, their sum out; smaller or for other weights, if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import factpatch
from factpatch.cli import checks, options, render
from factpatch.cli.rebase import show_weights
from factpatch.support.words import counted


@options.documented
def compose(
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH")],
    out: Annotated[Path, typer.Option(metavar="PATCH", callback=checks.new_patch)],
    rank: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    energy: Annotated[float | None, typer.Option(metavar="X")] = None,
    rebase: Annotated[str | None, typer.Option(metavar="MODEL")] = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Sum several patches into one. With --rank or --energy, shrink the sum, which then differs a little.

    To shrink a single patch, give it alone. To move a patch to other weights as it is, batch by batch, there is
    factpatch rebase.

    Args:
        patches: Patches of one model, in the order in which they were edited: one after the other, or each on the
            unedited model.
        out: Where to write the sum.
        rank: Keep at most N singular values of each layer.
        energy: Keep as many singular values of each layer as hold the share X of the sum of their squares.
        rebase: Make the patch fit the weights of this model, even if they differ from those that were edited. Whether
            the facts then hold is not known: verify them afterwards.
        dtype: The dtype to load the model of --rebase in. Default: the dtype of the patches.
    """
    checks.check_no_input(out, patches)
    if rank is not None and energy is not None:
        raise checks.BadArgumentError(f"--rank {rank}, --energy {energy}: give one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise checks.BadArgumentError(f"--energy {energy:g}: must be a share above 0 and at most 1, such as 0.95.")
    if rebase is None and dtype is not None:
        raise checks.BadArgumentError(
            f"--dtype {dtype}: applies to the model of --rebase; give that too, or leave it out."
        )

    for folder in patches:
        checks.check_outside(folder, "session's", out=out)
    checks.check_outside(None if rebase is None else Path(rebase), out=out)
    parts = [checks.load_patch("PATCH", path) for path in patches]
    with checks.argument("PATCH"):
        composed = factpatch.Patch.compose(parts)
    in_chat = [str(path) for path, part in zip(patches, parts, strict=True) if part.chat]
    if in_chat and not composed.chat:
        render.note(
            f"{', '.join(in_chat)}: edited in a chat, unlike the rest. factpatch verify asks about all facts of the "
            "sum in one way: plainly, or with --chat in a chat.",
            "yellow",
        )
    if rank is not None or energy is not None:
        composed = composed.shrink(rank, energy)
    edited_weights = composed.states()[0]
    if rebase is not None:
        composed = composed.rebase(checks.load_model(rebase, None, dtype, patch=composed))
    composed.save(out)
    _show(composed)
    what = f"{counted(len(patches), 'patch')}, {counted(len(composed.facts), 'fact')}"
    render.say(f"Patch: {out} ({render.size(out)}; {what} in layers {render.numbers(composed.layers)})", "bold")
    if rebase is None:
        render.say(
            "It does not record the weights that it leaves: `factpatch undo` removes it from a model only with --base."
        )
    else:
        show_weights(rebase, composed.states()[0] == edited_weights)


def _show(patch: factpatch.Patch) -> None:
    """Print the rank of every layer, and the error of those that were shrunk."""
    from factpatch.model.places import name_of
    from factpatch.patch.shift import LowRank

    (batch,) = patch.batches
    shrunk = patch.settings.get("shrunk", {}).get("layers", {})
    for layer, shift in batch.shifts.items():
        rank = f"rank {shift.up.shape[1]}" if isinstance(shift, LowRank) else "no low rank"
        kept = shrunk.get(name_of(layer))
        if kept is not None:
            rank = f"rank {kept['rank']}, relative error {100 * kept['error']:.2g} %"
        render.say(f"Layer {name_of(layer)}: {rank}")
