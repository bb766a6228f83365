"""`factpatch edit`: facts in, a verified patch out; many batches in a session's directory, if asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.recipe import Recipe
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.edit_report import EditReport
    from factpatch.facts import Fact
    from factpatch.session import Session


@options.with_recipe()
def edit(
    ctx: typer.Context,
    recipe: Recipe,
    model: options.OptionalModel = None,
    facts: options.OptionalFacts = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="PATCH")] = None,
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, metavar="N")] = None,
    session: Annotated[Path | None, typer.Option("--session", metavar="DIR")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="DIR")] = None,
    save_model: Annotated[Path | None, typer.Option("--save-model", metavar="DIR")] = None,
    report: options.Report = None,
    perplexity_text: options.PerplexityText = None,
    no_verify: Annotated[bool, typer.Option("--no-verify")] = False,
) -> None:
    """Edit a model so that it knows new facts, and write the change as a patch.

    Asks the model about every fact before and after the edit and shows both. The model's own files are left as they
    are; with --save-model, the edited model is written beside them.

    With --session, a run that is killed can be continued: factpatch edit --resume DIR.

    Args:
        out: Where to write the patch. Only a session can do without.
        batch_size: Edit N facts at a time, in file order. Default: all.
        session: Record every batch in this directory as it is edited: a new one, or a session to continue.
        resume: Continue a session that was interrupted. DIR says what it edits and how; give only outputs.
        save_model: Also write the edited model, to a new or empty directory.
        no_verify: Neither ask the model before and after the edit nor measure perplexity.
    """
    outputs: dict[str, Any] = {
        "out": out,
        "save_model": save_model,
        "report": report,
        "perplexity_text": perplexity_text,
        "no_verify": no_verify,
    }
    planned = None
    if resume is not None:
        planned = _resumed(ctx, resume, outputs)
        model, recipe, outputs = planned.source, planned.recipe, _outputs(planned, outputs)
    else:
        _check_given(model, facts, out, session)
    assert model is not None
    corpus = recipe.corpus if isinstance(recipe.corpus, str) else None
    _check_outputs(model, corpus, outputs, facts, session or resume)
    batches = _batches(facts, limit, skip_unusable, batch_size)
    text = checks.read_text("--perplexity-text", outputs["perplexity_text"])
    if session is not None:
        model = _lasting(model)
        planned = _begun(session, model, recipe)

    from factpatch.edit_report import check_facts, edit_and_report
    from factpatch.session import Session
    from factpatch.support.files import write_json
    from factpatch.support.progress import timed

    seconds: dict[str, float] = {}
    with ExitStack() as held:
        if planned is not None:
            held.enter_context(_held(planned))
        editor = checks.make_editor(model, recipe, seconds)
        if session is not None:
            with timed(seconds, "contexts"):  # what cannot be edited is not planned
                check_facts(editor.lm, batches, editor.contexts)
            kept = {
                name: str(value.absolute()) if isinstance(value, Path) else value for name, value in outputs.items()
            }
            if planned is None:
                planned = Session.create(session, editor, batches, model, kept)
                held.enter_context(_held(planned))
            else:
                planned.plan(batches, kept)
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
        asked = {"corpus": recipe.corpus, "corpus_tokens": recipe.corpus_tokens}
        if planned is None:
            asked |= {"batch_size": batch_size or len(batches[0]), "limit": limit}
        done = replace(done, model=model, settings={**done.settings, **asked})
        if outputs["report"] is not None:
            write_json(outputs["report"], done.to_dict())
        if planned is not None:
            planned.settle()
    _show(done, outputs, None if planned is None else planned.path)


def _batches(facts: Path | None, limit: int | None, skip_unusable: bool, size: int | None) -> list[list[Fact]]:
    """The facts of a file, so many at a time."""
    from factpatch.data import load_facts
    from factpatch.facts import check_batch

    if facts is None:
        return []
    with checks.argument("--facts"):
        read = load_facts(facts, limit, skip_unusable)
        size = size or len(read)
        batches = [read[start : start + size] for start in range(0, len(read), size)]
        for batch in batches:
            check_batch(batch)
    return batches


def _check_given(model: str | None, facts: Path | None, out: Path | None, session: Path | None) -> None:
    """Raise BadArgumentError unless there is all that a run needs which does not resume another."""
    for name, value in (("MODEL", model), ("--facts", facts), ("--out", out or session)):
        if value is None:
            without = (
                "give it, or --session DIR" if name == "--out" else "only factpatch edit --resume DIR does without it"
            )
            raise checks.BadArgumentError(f"{name}: is missing; {without}.")


def _check_resumed(ctx: typer.Context, allowed: set[str]) -> None:
    """Raise BadArgumentError if something was given that the session has settled."""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            of_recipe = name in Recipe.model_fields
            option = Recipe.flag(name).name if of_recipe else f"--{name.replace('_', '-')}"
            option = "MODEL" if name == "model" else option
            raise checks.BadArgumentError(
                f"{option}: the session says that already. Leave it out to resume; to edit more facts in the session, "
                "give --session DIR instead of --resume DIR."
            )


def _resumed(ctx: typer.Context, directory: Path, outputs: dict[str, Any]) -> Session:
    """The session to continue."""
    from factpatch.session import Session

    _check_resumed(ctx, {*outputs, "resume"})
    with checks.argument("--resume"):
        session = Session(directory)
        if session.source is None:
            raise ValueError(f"{directory}: was begun in Python, with an editor that only Python can make again.")
        if not session.finished and not session.waiting:
            raise ValueError(
                f"{directory}: nothing is in force and nothing is to be edited. To edit facts in it, give --session "
                f"{directory} --facts FILE, and the model and settings that it was begun with."
            )
        _ = session.recipe
        return session


def _outputs(session: Session, given: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a run that resumes a session: those given now and those that were asked for and not written."""
    kept = {name: Path(value) if isinstance(value, str) else value for name, value in session.outputs.items()}
    model = kept.get("save_model")
    # It was vacant when the session was planned, and a model's directory appears whole.
    if model is not None and given["save_model"] is None and model.is_dir() and any(model.iterdir()):
        render.note(f"{model} is there already, so the model is not written again.", "yellow")
        kept["save_model"] = None
    return {**given, **kept, **{name: value for name, value in given.items() if value not in (None, False)}}


@contextmanager
def _held(session: Session) -> Iterator[None]:
    """Keep other processes out, and say how to continue if the work is interrupted."""
    with session.locked():
        try:
            yield
        except BaseException:
            if session.waiting or session.outputs:
                ready = len(session.finished)
                render.note(
                    f"{ready} of {ready + len(session.waiting)} batches are kept; continue with: "
                    f"factpatch edit --resume {session.path}",
                    "yellow",
                )
            raise


def _check_outputs(
    source: str, corpus: str | None, outputs: dict[str, Any], facts: Path | None, session: Path | None
) -> None:
    out, report, save_model, model = outputs["out"], outputs["report"], outputs["save_model"], Path(source)
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
    for folder in (model, save_model):
        checks.check_outside(folder, out=out, report=report, session=session)
    checks.check_outside(session, "session's", out=out, report=report, save_model=save_model)


def _begun(directory: Path, model: str, recipe: Recipe) -> Session | None:
    """The session to add facts to, or None if there is none yet in this directory."""
    from factpatch.session import Session
    from factpatch.support.words import difference

    with checks.argument("--session"):
        if not directory.is_dir() or not any(directory.iterdir()):
            checks.check_output_directory("--session", directory)
            return None
        session = Session(directory)
        if session.source is None:
            raise ValueError(f"{directory}: was begun in Python, with an editor that only Python can make again.")
        its = {"model": session.source, **session.recipe.to_dict(defaults=True)}
        differing = difference(its, {"model": model, **recipe.to_dict(defaults=True)})
        if differing is not None:
            raise ValueError(
                f"{directory} was begun with other settings: {differing}. Give the same, or begin another session."
            )
        session.check_idle()
        return session


def _lasting(model: str) -> str:
    """The same model, by a path that also holds when the session is resumed from another folder."""
    from factpatch.model.embedded import EMBEDDED

    return model if model in EMBEDDED or not Path(model).exists() else os.path.abspath(model)


def _show(done: EditReport, outputs: dict[str, Any], session: Path | None) -> None:
    if done.verification is not None:
        render.screen.print(render.fact_table(done.verification))
        pair = (done.perplexity_before, done.perplexity_after)
        render.screen.print(render.metric_table(done.verification, pair))
        render.paragraph(done.plain + ".")
        render.show_unlearned(done.unlearned)
    render.show_superseded(done.superseded)
    render.show_similar(done.similar)
    render.show_times(done.seconds)
    if session is not None:
        render.say(f"Session: {session} ({len(done.attempted)} facts; factpatch log {session} shows them)", "bold")
    if outputs["out"] is not None:
        where = f"{counted(len(done.attempted), 'fact')} in layers {render.numbers(done.patch.layers)}"
        render.say(f"Patch: {outputs['out']} ({render.size(outputs['out'])}; {where})", "bold")
    for what, path in (("Model", outputs["save_model"]), ("Report", outputs["report"])):
        if path is not None:
            render.say(f"{what}: {path}")
