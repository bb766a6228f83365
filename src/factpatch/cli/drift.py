"""`factpatch drift`: how far a patch moves the hidden states of factual prompts."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from factpatch.cli import checks, options, render


class Place(str, Enum):
    """Where in a prompt its hidden state is read."""

    SUBJECT = "subject"
    PROMPT = "prompt"


@options.documented
def drift(
    model: options.Model,
    patch: Annotated[Path, typer.Option("--patch", metavar="PATCH")],
    prompts: Annotated[str, typer.Option("--prompts", metavar="FILE")] = "known_1000",
    limit: Annotated[int, typer.Option("--limit", min=2, metavar="N")] = 1000,
    layer: Annotated[int | None, typer.Option("--layer", min=0, metavar="L")] = None,
    at: Annotated[Place, typer.Option("--at")] = Place.SUBJECT,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N")] = 0,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.json")] = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Measure how far a patch moves the hidden states of factual prompts. The model stays as it is.

    --plot needs the extras `evaluate` and `plots`.

    Args:
        patch: The patch.
        prompts: Prompts with their subjects, in the format of known_1000.json, or its name.
        limit: Read only the first N prompts.
        layer: The layer whose output is read. Default: the patch's last layer.
        at: At the last token of the subject, where edits write, or of the prompt.
        plot: Draw a map of the states with t-SNE: .png, .svg or .pdf.
        seed: Seed of the map.
        out: Write the numbers, and the map if drawn, as JSON.
    """
    checks.check_output_file("--out", out)
    checks.check_output_file("--plot", plot)
    checks.check_distinct(out=out, plot=plot, patch=patch, prompts=Path(prompts))
    checks.check_place(device, dtype)

    from factpatch.data import load_known_facts
    from factpatch.evaluation.hidden_states import HiddenShift, hidden_states, tsne_map
    from factpatch.lab.drawing.charts import check_plot_file
    from factpatch.lab.drawing.shapes import plot_hidden_shift
    from factpatch.session import load_patch
    from factpatch.support.files import write_json

    if plot is not None:
        with checks.extras(), checks.argument("--plot"):
            check_plot_file(plot)
    with checks.argument("--prompts"):
        facts = load_known_facts(prompts, limit)
    with checks.argument("--patch"):
        loaded = load_patch(patch)
    layer = max(loaded.layers) if layer is None else layer
    lm = checks.load_model(model, device, dtype or loaded.weight_dtype, loaded.chat)
    texts = [fact.prompt for fact in facts]
    ends = [fact.subject_end for fact in facts] if at is Place.SUBJECT else None
    with checks.argument("--layer"):
        lm.check_layers([layer], "layer")
    with checks.argument("--prompts"):
        before = hidden_states(lm, texts, layer, ends)
    with loaded.applied(lm):
        after = hidden_states(lm, texts, layer, ends)
    shift = HiddenShift.between(before, after)

    render.say(f"{shift.prompts} prompts, layer {layer}, at the last token of the {at.value}")
    made = render.table("measure", "value", "without a shift")
    made.add_row("mean relative shift", f"{shift.relative_shift:.4f}", "0")
    made.add_row("linear CKA", f"{shift.cka:.4f}", "1")
    made.add_row("distance of the means / spread", f"{shift.mean_distance:.4f}", "0")
    render.screen.print(made)

    record: dict[str, Any] = {"model": model, "patch": str(patch), "layer": layer, "at": at.value, **asdict(shift)}
    if plot is not None:
        with checks.extras(), checks.argument("--plot"):
            maps = tsne_map(before, after, seed)
        plot_hidden_shift(plot, *maps, title=f"{shift.prompts} prompts, layer {layer}, {loaded.method}")
        record["map"] = {"seed": seed, "before": maps[0].tolist(), "after": maps[1].tolist()}
    if out is not None:
        write_json(out, record)
    for name, path in (("Plot", plot), ("Report", out)):
        if path is not None:
            render.say(f"{name}: {path}")
