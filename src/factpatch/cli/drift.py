"""`factpatch drift`: how far a patch moves the hidden states of factual prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from factpatch.cli import checks, options, render
from factpatch.support.files import write_json


@options.documented
def drift(
    model: options.Model,
    patch: Annotated[Path, typer.Option(metavar="PATCH")],
    prompts: Annotated[str, typer.Option(metavar="FILE")] = "known_1000",
    limit: Annotated[int, typer.Option(min=2, metavar="N")] = 1000,
    layer: Annotated[int | None, typer.Option(min=0, metavar="L")] = None,
    at: Annotated[Literal["subject", "prompt"], typer.Option()] = "subject",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", callback=checks.new_file)] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N")] = None,
    out: options.Report = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Measure how far a patch moves the hidden states of factual prompts. The model's files do not change.

    --plot needs the extras `evaluate` and `plots`.

    Args:
        patch: The patch to measure.
        prompts: Prompts with their subjects, in the format of known_1000.json; or the name of a data set.
        limit: Read only the first N prompts.
        layer: Read the output of this layer. Default: the patch's last layer.
        at: Read at the last token of the subject, where edits write, or of the prompt.
        plot: Draw a map of the states with t-SNE: .png, .svg or .pdf.
        seed: Seed of the map. Default: 0.
        out: Write the numbers, and the map if drawn, as JSON.
    """
    if seed is not None and plot is None:
        raise checks.BadArgumentError(f"--seed {seed}: is that of the map; give --plot too, or leave it out.")
    checks.check_distinct(out=out, plot=plot, patch=patch, prompts=Path(prompts))
    checks.check_outside(Path(model), out=out, plot=plot)
    checks.check_outside(patch, "session's", out=out, plot=plot)

    from factpatch.data import load_known_facts
    from factpatch.evaluation.hidden_states import HiddenShift, hidden_states, tsne_map
    from factpatch.lab.drawing.charts import check_plot_file
    from factpatch.lab.drawing.shapes import plot_hidden_shift

    if plot is not None:
        with checks.extras(), checks.argument("--plot"):
            check_plot_file(plot)
    with checks.argument("--prompts"):
        facts = load_known_facts(prompts, limit)
    loaded = checks.load_patch("--patch", patch)
    layer = max(loaded.layers) if layer is None else layer
    lm = checks.load_model(model, device, dtype, loaded.chat, loaded)
    texts = [fact.prompt for fact in facts]
    ends = [fact.subject_end for fact in facts] if at == "subject" else None
    with checks.argument("--layer"):
        lm.check_layers([layer], "layer")
    with checks.argument("--prompts"):
        before = hidden_states(lm, texts, layer, ends)
    with loaded.applied(lm):
        after = hidden_states(lm, texts, layer, ends)
    shift = HiddenShift.between(before, after)

    render.say(f"{shift.prompts} prompts, layer {layer}, at the last token of the {at}")
    rows = (
        ("mean relative shift", f"{shift.relative_shift:.4f}", "0"),
        ("linear CKA", f"{shift.cka:.4f}", "1"),
        ("distance of the means / spread", f"{shift.mean_distance:.4f}", "0"),
    )
    render.screen.print(render.table("measure", "value", "without a shift", rows=rows))

    record: dict[str, Any] = {"model": model, "patch": str(patch), "layer": layer, "at": at, **asdict(shift)}
    if plot is not None:
        with checks.extras(), checks.argument("--plot"):
            maps = tsne_map(before, after, seed or 0)
        plot_hidden_shift(plot, *maps, title=f"{shift.prompts} prompts, layer {layer}, {loaded.method}")
        record["map"] = {"seed": seed or 0, "before": maps[0].tolist(), "after": maps[1].tolist()}
    if out is not None:
        write_json(out, record)
    render.written(Plot=plot, Report=out)
