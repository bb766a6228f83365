"""`factpatch demo`: watch a real model learn new facts, and forget them again to the last bit."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.support.files import write_json
from factpatch.support.progress import timed

MODEL = "smollm2-135m"


@options.documented
def demo(
    method: Annotated[str, options.recipe_option("method")] = "memit-blue",
    facts: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    report: options.Report = None,
) -> None:
    """Edit the embedded model with facts that the package ships, show what changed, and undo it.

    No preparation is needed. The facts are false on purpose, so that no model can know them beforehand.

    Args:
        facts: Edit only the first N facts. Default: all.
    """
    from factpatch.data import demo_facts
    from factpatch.edit_report import edit_and_report
    from factpatch.editor import Editor
    from factpatch.methods import method_named
    from factpatch.model.embedded import EMBEDDED

    with checks.argument("--method"):
        method_named(method)
    chosen = demo_facts()
    if facts is not None and facts > len(chosen):
        raise checks.BadArgumentError(f"--facts {facts}: the demo has {len(chosen)} facts.")
    chosen = chosen[:facts]

    render.heading("1. The model")
    render.paragraph(f"{EMBEDDED[MODEL].source}. The first time, it is downloaded and converted, which takes a minute.")
    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        lm = checks.load_model(MODEL, None, None)
    untouched = parameter_hash(lm.model)
    size = sum(parameter.numel() for parameter in lm.model.parameters())
    render.paragraph(f"Loaded in {seconds['load']:.1f} s: {size / 1e6:.0f} million parameters.")

    render.heading(f"2. Editing {len(chosen)} facts with {method}")
    render.paragraph(
        "First, the model is asked about all facts. Statistics of ordinary text show which directions of its memory "
        "are in use (they are cached for the next time). For every fact, an optimization finds the value that makes "
        "the model say the new answer, and a few weights are shifted to produce it. Then the model is asked again."
    )
    editor = Editor(lm, method=method)
    done = replace(edit_and_report(editor, [chosen], seconds=seconds), model=MODEL)
    checked = done.verification
    assert checked is not None
    share = done.patch.num_bytes / sum(weight.numel() * weight.element_size() for weight in lm.model.parameters())
    render.paragraph(
        f"Edited in {done.editing:.1f} s, after {done.seconds['second_moment']:.1f} s for the statistics. "
        f"Written: layers {render.numbers(done.patch.layers)}, as a patch of "
        f"{done.patch.num_bytes / 1e6:.2f} MB, {100 * share:.2g} % of the model's size."
    )

    render.heading("3. What it said before, and says now")
    both = done.perplexity_before, done.perplexity_after
    render.show_verification(checked, done.plain, both, done.perplexity_error)
    render.show_times(done.seconds)

    render.heading("4. Undoing the edit")
    edited = parameter_hash(lm.model)
    editor.undo()
    restored = parameter_hash(lm.model)
    for name, digest in (("before the edit", untouched), ("edited", edited), ("after the undo", restored)):
        render.say(f"  SHA-256 of all parameters, {name + ':':<17} {digest[:16]}...")
    identical = restored == untouched
    if report is not None:
        hashes = {"before": untouched, "edited": edited, "undone": restored, "bit_identical": identical}
        write_json(report, {**done.to_dict(), "undo": hashes})
    render.written(Report=report)
    if not identical:
        raise RuntimeError("the undo did not restore the model bit for bit; this is a bug, please report it.")
    render.say("The model is bit-identical to what it was.", "bold green")


def parameter_hash(model: Any) -> str:
    """SHA-256 of the names and bytes of all parameters and buffers of a PyTorch module."""
    from factpatch.model.weights import content_hash

    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name}:{content_hash(tensor)}\n".encode())
    return digest.hexdigest()
