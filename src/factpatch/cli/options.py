"""Options that several subcommands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = typer.Argument(
    metavar="MODEL",
    help="An embedded model (see `factpatch models`), a directory, or an id of the Hugging Face Hub.",
    show_default=False,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
PatchFile = Annotated[
    Path,
    typer.Argument(
        metavar="PATCH", help="A patch that `factpatch edit` wrote, or the directory of a session.", show_default=False
    ),
]
_FACTS = typer.Option(
    "--facts",
    metavar="FILE",
    help="Facts as .json, .jsonl or .csv; the formats of CounterFact, zsRE, EasyEdit and KnowEdit are recognized. Or "
    "the name of a data set that `factpatch data fetch` has downloaded.",
    show_default=False,
)
Facts = Annotated[Path, _FACTS]
OptionalFacts = Annotated[Path | None, _FACTS]
SkipUnusable = Annotated[
    bool,
    typer.Option(
        "--skip-unusable",
        help="Pass over records that are no facts, such as prompts without their subject, and say how many.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Read only the first N facts of the file.")
]
PerplexityText = Annotated[
    Path | None,
    typer.Option(
        "--perplexity-text",
        metavar="FILE",
        help="The text that perplexity is measured on. Default: one that the package ships.",
    ),
]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE.json", help="Write a report as JSON.")]
OutDirectory = Annotated[
    Path,
    typer.Option(
        "--out", metavar="DIR", help="Where to write the model; a new or empty directory.", show_default=False
    ),
]
PatchToMeasure = Annotated[
    Path | None,
    typer.Option("--patch", metavar="PATCH", help="Ask without this patch and with it. The model stays as it is."),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="D", help="cpu, cuda, cuda:1, ...; auto spreads the model. Default: cpu."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="D",
        help="float32, bfloat16, float16 or float64 (exact mode). Default: what the checkpoint has.",
    ),
]
PatchDtype = Annotated[
    str | None,
    typer.Option("--dtype", metavar="D", help="Load the model in this dtype. Default: the dtype the patch is for."),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="L,L,...",
        help="Critical layers, counted from 0, ascending, as 4,5,6,7,8. Default: those of the model's preset, or of "
        "the nearest one, scaled to the model's depth.",
    ),
]
Corpus = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        metavar="TEXT",
        help="Text for the second moment of the keys: a file with blank lines between documents, or hf:NAME for a "
        "dataset. Default: the text that the package ships.",
    ),
]
CorpusTokens = Annotated[
    int | None,
    typer.Option("--corpus-tokens", min=1, metavar="N", help="How many tokens to read. Default: 10 per key dimension."),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Ask every prompt as a user's turn of a chat, in the model's own chat template; answers begin the "
        "assistant's turn.",
    ),
]
Method = Annotated[str, typer.Option("--method", metavar="NAME", help="One that `factpatch methods` lists.")]
Preset = Annotated[
    Path | None,
    typer.Option(
        "--preset",
        metavar="FILE",
        help="Settings of the model, as `factpatch tune` writes them. Default: those that the package ships.",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="NAME",
        help="A variant of the model's preset, as equal-settings; `factpatch presets` lists them.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the texts that facts are embedded in.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Replace a setting of the method, as in solver.weight=5000; may be given several times. "
        "`factpatch methods --settings` lists them.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="P",
        help="What the value optimization computes in: exact (float64), float32, or fast (matrix products in 16 "
        "bits, the rest in float32). Default: what the model is loaded in.",
    ),
]
