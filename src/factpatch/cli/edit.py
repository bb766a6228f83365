"""`factpatch edit`: facts in, a verified patch out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from factpatch.cli import checks, options, render


def edit(
    model: options.Model,
    facts: options.Facts,
    out: Annotated[Path, typer.Option("--out", metavar="PATCH", help="Where to write the patch.", show_default=False)],
    limit: options.Limit = None,
    method: options.Method = "memit-blue",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Replace a setting of the method, as in solver.weight=5000; may be given several times. "
            "`factpatch methods --settings` lists them.",
        ),
    ] = None,
    layers: options.Layers = None,
    chat: options.Chat = False,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Edit N facts at a time, in file order. Default: all."),
    ] = None,
    save_model: Annotated[
        Path | None,
        typer.Option("--save-model", metavar="DIR", help="Also write the edited model, to a new or empty directory."),
    ] = None,
    report: options.Report = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    corpus: options.Corpus = None,
    corpus_tokens: options.CorpusTokens = None,
    no_remember_keys: Annotated[
        bool, typer.Option("--no-remember-keys", help="Let a batch move the keys of the batches before it.")
    ] = False,
    perplexity_text: Annotated[
        Path | None,
        typer.Option(
            "--perplexity-text",
            metavar="FILE",
            help="The text that perplexity is measured on. Default: one that the package ships.",
        ),
    ] = None,
    no_verify: Annotated[
        bool,
        typer.Option("--no-verify", help="Neither ask the model before and after the edit nor measure perplexity."),
    ] = False,
) -> None:
    """Edit a model so that it knows new facts, and write the change as a patch.

    Asks the model about every fact before and after the edit and shows both. The model's own files are left as they
    are; with --save-model, the edited model is written beside them.
    """
    chosen = checks.parse_layers(layers)
    checks.check_output_file("--out", out)
    checks.check_output_file("--report", report)
    checks.check_output_directory("--save-model", save_model)
    checks.check_distinct(
        model=Path(model),
        facts=facts,
        corpus=None if corpus is None else Path(corpus),
        perplexity_text=perplexity_text,
        out=out,
        report=report,
        save_model=save_model,
    )
    for folder in (Path(model), save_model):
        checks.check_outside(folder, out=out, report=report)

    from factpatch.data import load_facts
    from factpatch.editor import Editor
    from factpatch.facts import check_batch
    from factpatch.methods import method_named
    from factpatch.progress import timed
    from factpatch.report import edit_and_report, write_json
    from factpatch.second_moment import corpus_from
    from factpatch.settings import parse_assignments, with_settings

    with checks.argument("--method"):
        row = method_named(method)
    with checks.argument("--set"):
        assigned = parse_assignments(settings or [])
        with_settings(row, assigned)
    checks.check_place(device, dtype)
    with checks.argument("--facts"):
        read = load_facts(facts, limit)
        size = batch_size or len(read)
        batches = [read[start : start + size] for start in range(0, len(read), size)]
        for batch in batches:
            check_batch(batch)
    with checks.argument("--perplexity-text"):
        text = None if perplexity_text is None else perplexity_text.read_text("utf-8")
        if text is not None and not text.strip():
            raise ValueError(f"{perplexity_text}: the file is empty.")
    with checks.argument("--corpus"):
        opened = None if corpus is None else corpus_from(corpus)

    seconds: dict[str, float] = {}
    with timed(seconds, "load"):
        lm = checks.load_model(model, device, dtype, chat)
    editor = Editor(
        lm,
        method=method,
        critical_layers=checks.critical_layers(lm, model, chosen),
        settings=assigned,
        corpus=opened,
        corpus_tokens=corpus_tokens,
        remember_keys=not no_remember_keys,
        seed=seed,
    )
    done = edit_and_report(
        editor, batches, text=text, out=out, save_model=save_model, measure=not no_verify, seconds=seconds
    )
    run = {"corpus": corpus, "corpus_tokens": corpus_tokens, "batch_size": size, "limit": limit}
    done = replace(done, model=model, settings={**done.settings, **run})
    if report is not None:
        write_json(report, done.to_dict())

    if done.verification is not None:
        render.screen.print(render.fact_table(done.verification))
        pair = (done.perplexity_before, done.perplexity_after)
        render.screen.print(render.metric_table(done.verification, pair))
        render.show_unlearned(done.unlearned)
    render.show_superseded(done.superseded)
    render.show_times(done.seconds)
    where = f"{len(read)} facts in layers {render.numbers(done.patch.layers)}"
    render.say(f"Patch: {out} ({render.size(out)}; {where})", "bold")
    for what, path in (("Model", save_model), ("Report", report)):
        if path is not None:
            render.say(f"{what}: {path}")
