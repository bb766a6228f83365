"""`factpatch edit`: facts in, a verified patch out; many batches in a session's directory, if asked."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render

if TYPE_CHECKING:
    from factpatch.editor import Editor
    from factpatch.report import EditReport
    from factpatch.session import Session


def edit(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="An embedded model (see `factpatch models`), a directory, or an id of the Hugging Face Hub.",
            show_default=False,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            "--facts",
            metavar="FILE",
            help="Facts as .json, .jsonl or .csv; the CounterFact and zsRE formats are recognized.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATCH", help="Where to write the patch. Only a session can do without."),
    ] = None,
    limit: options.Limit = None,
    method: options.Method = "memit-blue",
    variant: options.Variant = None,
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
    session: Annotated[
        Path | None,
        typer.Option(
            "--session",
            metavar="DIR",
            help="Set down every batch in this directory as it is edited: a new one, or a session to go on with.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="DIR",
            help="Go on with a session that was interrupted. What it edits and how is in DIR; give only outputs.",
        ),
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

    With --session, a run that is killed goes on where it was: factpatch edit --resume DIR.
    """
    how: dict[str, Any] = {
        "model": model,
        "method": method,
        "variant": variant,
        "chat": chat,
        "settings": settings or [],
        "layers": layers,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "corpus": corpus,
        "corpus_tokens": corpus_tokens,
        "remember_keys": not no_remember_keys,
    }
    outputs: dict[str, Any] = {
        "out": out,
        "save_model": save_model,
        "report": report,
        "perplexity_text": perplexity_text,
        "no_verify": no_verify,
    }
    if resume is None:
        _check_given(model, facts, out, session)
        planned = None
    else:
        planned = _open(resume)
        _check_resumed(ctx, {*outputs, "resume"})
        how = planned.about["about"]
        given = {name: value for name, value in outputs.items() if value not in (None, False)}
        outputs = {**_paths(planned.outputs), **given}
    _check_outputs(how, outputs, facts, session or resume)

    from factpatch.data import load_facts
    from factpatch.facts import check_batch

    batches = []
    with checks.argument("--facts"):
        if facts is not None:
            read = load_facts(facts, limit)
            size = batch_size or len(read)
            batches = [read[start : start + size] for start in range(0, len(read), size)]
            for batch in batches:
                check_batch(batch)
    text = _text(outputs["perplexity_text"])
    seconds: dict[str, float] = {}
    editor = _editor(how, seconds)
    run: dict[str, Any] = {name: how[name] for name in ("corpus", "corpus_tokens")}
    if session is not None:
        planned = _plan(session, editor, batches, how, outputs)
    elif planned is None:
        run |= {"batch_size": size, "limit": limit}

    from factpatch.files import write_json
    from factpatch.report import edit_and_report

    with planned.locked() if planned is not None else nullcontext():
        done = edit_and_report(
            editor,
            batches,
            session=planned,
            text=text,
            out=outputs["out"],
            save_model=outputs["save_model"],
            measure=not outputs["no_verify"],
            seconds=seconds,
        )
    done = replace(done, model=how["model"], settings={**done.settings, **run})
    if outputs["report"] is not None:
        write_json(outputs["report"], done.to_dict())
    _show(done, outputs, None if planned is None else planned.directory)


def _check_given(model: str | None, facts: Path | None, out: Path | None, session: Path | None) -> None:
    """Raise BadArgumentError unless there is all that a run needs which does not resume another."""
    for name, value in (("MODEL", model), ("--facts", facts), ("--out", out or session)):
        if value is None:
            raise checks.BadArgumentError(f"{name}: is missing; only factpatch edit --resume DIR does without it.")


def _check_resumed(ctx: typer.Context, allowed: set[str]) -> None:
    """Raise BadArgumentError if something was given that the session has settled."""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            option = "MODEL" if name == "model" else f"--{name.replace('_', '-').replace('settings', 'set')}"
            raise checks.BadArgumentError(
                f"{option}: the session says that already. Leave it out to resume; to edit more facts in the session, "
                "give --session DIR instead of --resume DIR."
            )


def _open(directory: Path) -> Session:
    from factpatch.session import Session

    with checks.argument("--resume"):
        return Session(directory)


def _paths(outputs: dict[str, Any]) -> dict[str, Any]:
    """Outputs as a session's journal holds them, with paths again."""
    return {name: Path(value) if isinstance(value, str) else value for name, value in outputs.items()}


def _check_outputs(how: dict[str, Any], outputs: dict[str, Any], facts: Path | None, session: Path | None) -> None:
    out, report, save_model = outputs["out"], outputs["report"], outputs["save_model"]
    model, corpus = Path(how["model"]), how["corpus"]
    checks.check_output_file("--out", out)
    checks.check_output_file("--report", report)
    checks.check_output_directory("--save-model", save_model)
    checks.check_distinct(
        model=model,
        facts=facts,
        corpus=None if corpus is None else Path(corpus),
        perplexity_text=outputs["perplexity_text"],
        out=out,
        report=report,
        save_model=save_model,
        session=session,
    )
    for folder in (model, save_model, session):
        checks.check_outside(folder, out=out, report=report)
    checks.check_outside(model, session=session)


def _text(path: Path | None) -> str | None:
    with checks.argument("--perplexity-text"):
        text = None if path is None else path.read_text("utf-8")
        if text is not None and not text.strip():
            raise ValueError(f"{path}: the file is empty.")
        return text


def _editor(how: dict[str, Any], seconds: dict[str, float]) -> Editor:
    """The editor that the arguments describe, those of the command line or those a session has kept."""
    chosen = checks.parse_layers(how["layers"])

    from factpatch.editor import Editor
    from factpatch.methods import method_named
    from factpatch.progress import timed
    from factpatch.second_moment import corpus_from
    from factpatch.settings import parse_assignments, with_settings

    with checks.argument("--method"):
        row = method_named(how["method"])
    with checks.argument("--set"):
        assigned = parse_assignments(how["settings"])
        with_settings(row, assigned)
    checks.check_place(how["device"], how["dtype"])
    with checks.argument("--corpus"):
        opened = None if how["corpus"] is None else corpus_from(how["corpus"])
    with timed(seconds, "load"):
        lm = checks.load_model(how["model"], how["device"], how["dtype"], how["chat"])
    checks.check_layers(lm, chosen)
    checks.check_variant(lm, how["variant"])
    return Editor(
        lm,
        method=how["method"],
        variant=how["variant"],
        critical_layers=chosen,
        settings=assigned,
        corpus=opened,
        corpus_tokens=how["corpus_tokens"],
        remember_keys=how["remember_keys"],
        seed=how["seed"],
    )


def _plan(directory: Path, editor: Editor, batches: list[Any], how: dict[str, Any], outputs: dict[str, Any]) -> Session:
    """A new session with these batches, or one that is there with these batches added."""
    from factpatch.session import Session

    kept = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in outputs.items()}
    how = {**how, "model": _lasting(how["model"]), "corpus": _lasting(how["corpus"])}
    with checks.argument("--session"):
        if not directory.is_dir() or not any(directory.iterdir()):
            return Session.create(directory, editor, batches, how, kept)
        session = Session(directory)
        differing = [name for name, value in how.items() if session.about["about"].get(name) != value]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{directory} was begun with other settings: {name} is {session.about['about'].get(name)!r} there and "
                f"{how[name]!r} here. Give the same, or begin another session."
            )
        with session.locked():
            session.plan(batches, kept)
        return session


def _lasting(place: str | None) -> str | None:
    """A path that also holds when the session is resumed from another folder."""
    return str(Path(place).absolute()) if place is not None and Path(place).exists() else place


def _show(done: EditReport, outputs: dict[str, Any], session: Path | None) -> None:
    if done.verification is not None:
        render.screen.print(render.fact_table(done.verification))
        pair = (done.perplexity_before, done.perplexity_after)
        render.screen.print(render.metric_table(done.verification, pair))
        render.show_unlearned(done.unlearned)
    render.show_superseded(done.superseded)
    render.show_similar(done.similar)
    render.show_times(done.seconds)
    if session is not None:
        render.say(f"Session: {session} ({len(done.attempted)} facts; factpatch log {session} shows them)", "bold")
    if outputs["out"] is not None:
        where = f"{len(done.attempted)} facts in layers {render.numbers(done.patch.layers)}"
        render.say(f"Patch: {outputs['out']} ({render.size(outputs['out'])}; {where})", "bold")
    for what, path in (("Model", outputs["save_model"]), ("Report", outputs["report"])):
        if path is not None:
            render.say(f"{what}: {path}")
