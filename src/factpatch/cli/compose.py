"""`factpatch compose`: several patches in, their sum out, also smaller or for other weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factpatch.cli import checks, options, render
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.patch.patch import Patch


@options.documented
def compose(
    patches: Annotated[list[Path], typer.Argument(metavar="PATCH...")],
    out: Annotated[Path, typer.Option("--out", metavar="PATCH")],
    rank: Annotated[int | None, typer.Option("--rank", min=1, metavar="N")] = None,
    energy: Annotated[float | None, typer.Option("--energy", metavar="X")] = None,
    rebase: Annotated[str | None, typer.Option("--rebase", metavar="MODEL")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", metavar="D")] = None,
) -> None:
    """Sum several patches into one; with --rank or --energy into a smaller one that does almost the same.

    One patch may be given alone, to make it smaller or to rebase it.

    Args:
        patches: Patches of one model, in the order in which they were edited: one after the other, or each on the
            unedited model.
        out: Where to write the sum.
        rank: Keep at most N singular values of each layer.
        energy: Keep as many singular values of each layer as hold the share X of the sum of their squares.
        rebase: Make the patch fit the weights of this model, whatever they are, and note what it leaves in them. Only
            done when asked for: on other weights than those that were edited nothing tells whether the facts hold, so
            verify them afterwards.
        dtype: Load the model of --rebase in this dtype. Default: the dtype of the patches.
    """
    checks.check_output_file("--out", out)
    for path in patches:
        if os.path.realpath(path) == os.path.realpath(out):
            raise checks.BadArgumentError(f"--out {out}: is one of the patches; choose another name.")
    if rank is not None and energy is not None:
        raise checks.BadArgumentError(f"--rank {rank}, --energy {energy}: give one of them.")
    if energy is not None and not 0 < energy <= 1:
        raise checks.BadArgumentError(f"--energy {energy:g}: must be a share above 0, at most 1, as 0.95.")
    if rebase is None and dtype is not None:
        raise checks.BadArgumentError(f"--dtype {dtype}: is for the model of --rebase; give that, or leave it out.")

    from factpatch.patch.patch import Patch
    from factpatch.session import load_patch

    with checks.argument("PATCH"):
        parts = [load_patch(path) for path in patches]
        composed = Patch.compose(parts)
    in_chat = [str(path) for path, part in zip(patches, parts, strict=True) if part.chat]
    if in_chat and not composed.chat:
        render.note(
            f"{', '.join(in_chat)}: edited in a chat, the rest was not. factpatch verify asks for all facts of the sum "
            "in one way: plainly, or with --chat in a chat.",
            "yellow",
        )
    checks.check_place(None, dtype)
    if rank is not None or energy is not None:
        composed = composed.shrink(rank, energy)
    same = True
    if rebase is not None:
        before = composed.states()[0]
        composed = composed.rebase(checks.load_model(rebase, None, dtype or composed.weight_dtype))
        same = composed.states()[0] == before
    composed.save(out)
    _show(composed)
    what = f"{counted(len(patches), 'patch')}, {counted(len(composed.facts), 'fact')}"
    render.say(f"Patch: {out} ({render.size(out)}; {what} in layers {render.numbers(composed.layers)})", "bold")
    if rebase is None:
        render.say("It does not say which weights it leaves: `factpatch undo` takes it off a model only with --base.")
    elif same:
        render.say(f"The weights of {rebase} are those that were edited.", "green")
    else:
        render.say(f"The weights of {rebase} are not those that were edited: verify the facts there.", "yellow")


def _show(patch: Patch) -> None:
    """The rank of every layer, and the error of those that were shrunk."""
    from factpatch.patch.shift import LowRank

    (batch,) = patch.batches
    shrunk = patch.settings.get("shrunk", {}).get("layers", {})
    for layer, shift in batch.shifts.items():
        rank = f"rank {shift.up.shape[1]}" if isinstance(shift, LowRank) else "no low rank"
        told = shrunk.get(str(layer))
        if told is not None:
            rank = f"rank {told['rank']}, relative error {100 * told['error']:.2g} %"
        render.say(f"Layer {layer}: {rank}")
