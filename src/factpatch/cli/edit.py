"""`factpatch edit`: facts in, a verified patch out; batch by batch in a session's directory, if asked."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any

import typer

import factpatch
from factpatch.cli import checks, options, render
from factpatch.data import load_batches
from factpatch.facts import Fact
from factpatch.journal import JOURNAL
from factpatch.recipe import Recipe
from factpatch.support.files import write_json
from factpatch.support.progress import timed
from factpatch.support.words import counted, difference, quoted

if TYPE_CHECKING:
    from factpatch.edit_report import EditReport
    from factpatch.evaluation.budget import Budget


_LIMIT = (float, int, NoneType)
_ASKED = 100
"""About how many facts the model is asked at most by default: asking takes a third of the time that editing does."""
_KINDS = {
    "mend": (int, NoneType),
    "perplexity_tokens": (int, NoneType),
    "max_perplexity": _LIMIT,
    "min_capability": _LIMIT,
}
"""Of what type an output may be in a plan, unless it is a text."""


@options.with_recipe()
def edit(
    ctx: typer.Context,
    recipe: Recipe,
    model: options.OptionalModel = None,
    facts: options.OptionalFacts = None,
    out: Annotated[Path | None, typer.Option(metavar="PATCH")] = None,
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    repeats: options.Repeats = "error",
    batch_size: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    mend: Annotated[int | None, typer.Option(min=0, metavar="N")] = None,
    session: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    save_model: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    report: options.Report = None,
    verify: Annotated[str | None, typer.Option(metavar="all|N|none")] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify")] = False,
    perplexity_text: options.PerplexityText = None,
    perplexity_tokens: Annotated[int | None, typer.Option(min=1, metavar="N")] = None,
    max_perplexity: Annotated[float | None, typer.Option(metavar="PERCENT")] = None,
    min_capability: Annotated[float | None, typer.Option(metavar="SHARE")] = None,
    capability_data: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    capability_tasks: Annotated[str | None, typer.Option(metavar="T,T,...")] = None,
    max_memory: Annotated[float | None, typer.Option(min=0.1, metavar="GB")] = None,
    workers: options.Workers = None,
) -> None:
    """Edit a model so that it knows new facts, and write the change as a patch.

    Asks the model about every fact before and after the edit and shows both answers. A fact is said (the model's own
    answer holds the new object), exact (every token of it is the likeliest) or preferred (it is likelier than the true
    one). The model's own files do not change; --save-model writes an edited copy.

    With --session, an interrupted edit can be continued: factpatch edit --resume DIR.

    With --max-perplexity or --min-capability, the model is measured after each batch. A batch with which the edits cost
    more is taken back, and the command ends there with exit code 3; on a terminal it asks first.

    Args:
        out: Where to write the patch. Required unless --session or --resume is given.
        batch_size: Edit N facts at a time, in the order of the file. Default: all at once.
        mend: After the last batch, edit again the facts whose answer is not the likeliest then, up to N times.
        session: Record every batch in this directory as soon as it is edited: a new directory, or a session to extend.
        resume: Continue an interrupted session. It knows its model, facts and settings; only outputs and a budget may
            be given.
        save_model: Also write the edited model, to a new or empty directory.
        verify: How many facts to ask about before and after the edit: all, at most N, or none; of more, those that are
            new come first. Default: at most 100.
        no_verify: As --verify none: do not ask the model, and do not measure perplexity.
        perplexity_tokens: About how many tokens of the text to measure perplexity on. Default: 512, and 16 for each
            fact that is asked about; the standard error of the change is stated.
        max_perplexity: Stop before a batch with which perplexity rises by more than this over the unedited model's.
        min_capability: Stop before a batch that leaves less than this share of the unedited model's accuracy.
        capability_data: The folder with the tasks' items for --min-capability: glue_sst2.json and so on.
        max_memory: Optimize the values of fewer facts at once, so that the process takes about so many GB (10⁹ bytes);
            the model and its statistics take what they need. Default: as many as pay.
        capability_tasks: Any of sst2, mrpc, mmlu, rte, cola and nli. Default: all.
    """
    outputs: dict[str, Any] = {
        "out": out, "save_model": save_model, "report": report, "perplexity_text": perplexity_text,
        "verify": _verify(verify, no_verify), "perplexity_tokens": perplexity_tokens, "mend": mend,
        "max_perplexity": max_perplexity, "min_capability": min_capability,
        "capability_data": capability_data, "capability_tasks": capability_tasks,
    }  # fmt: skip
    unread = [name for name in ("perplexity_tokens", "perplexity_text") if outputs[name] is not None]
    if outputs["verify"] == "none" and unread and max_perplexity is None and resume is None:
        named = ", ".join(map(checks.option_name, unread))
        raise checks.BadArgumentError(f"{named}: without verification no perplexity is measured; leave either out.")
    again = {**outputs, "max_memory": max_memory, "workers": workers}
    planned = None
    if resume is not None:
        _check_resumed(ctx, {*outputs, "no_verify", "resume", "max_memory", "workers"})
        planned = _resumed(resume)
        with checks.argument("--resume"):
            model, recipe, outputs = planned.source, planned.settled, _outputs(planned, outputs)
    else:
        _check_given(model, facts, out, session)
    assert model is not None
    if max_memory is not None and workers is not None:
        raise checks.BadArgumentError(
            f"--max-memory {max_memory:g}, --workers {workers}: the limit is of this process; leave one of the two out."
        )
    _check_outputs(model, recipe, outputs, facts, session or resume)
    batches = _batches(facts, batch_size, limit, skip_unusable, repeats)
    text = checks.read_text("--perplexity-text", outputs["perplexity_text"])
    budget = _budget(outputs, text)
    if session is not None:
        model = _lasting(model)
        planned = _begun(session, model, recipe)
        recipe = recipe if planned is None else planned.settled

    from factpatch.edit_report import Measure, checked, edit_and_report
    from factpatch.model.memory import at_most

    measure = Measure(_most_asked(outputs["verify"]), text, outputs["perplexity_tokens"])
    seconds: dict[str, float] = {}
    with ExitStack() as held:
        held.enter_context(at_most(None if max_memory is None else int(max_memory * 1e9)))
        if planned is not None:
            held.enter_context(_held(planned, again))
        editor = checks.make_editor(model, recipe, seconds, held.enter_context(checks.pooled(workers)))
        if outputs["save_model"] is not None:
            with checks.argument("--save-model"):
                editor.lm.check_savable()
        kept = {name: _recorded(value) for name, value in outputs.items()}
        if session is not None:
            with timed(seconds, "contexts"):  # a session plans no facts that cannot be edited
                batches = [list(batch) for batch in checked(editor, batches)]
            if planned is None:
                planned = factpatch.Session.create(session, editor, batches, model, kept)
                held.enter_context(_held(planned, again))
            else:
                planned.plan(batches, kept)
        held.enter_context(_stopping(outputs["out"], planned))
        done = edit_and_report(
            editor,
            batches,
            session=planned,
            out=outputs["out"],
            save_model=outputs["save_model"],
            measure=None if outputs["verify"] == "none" else measure,
            seconds=seconds,
            budget=budget,
            mend=outputs["mend"] or 0,
            outputs=kept,
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


def _verify(verify: str | None, no_verify: bool) -> str | None:
    """What `--verify` and its short form ask for; None if neither was given."""
    if verify is not None and no_verify and verify != "none":
        raise checks.BadArgumentError(f"--verify {verify}, --no-verify: give one of the two.")
    with checks.argument("--verify"):
        _most_asked(verify)
    return "none" if no_verify else verify


def _most_asked(verify: str | None) -> int | None:
    """How many facts to ask about at most; None for all."""
    if verify in ("all", "none"):
        return None
    if verify is None:
        return _ASKED
    if not verify.isdecimal() or not int(verify):
        raise ValueError(f"{verify!r}: give all, none, or how many facts to ask about, from 1 up.")
    return int(verify)


def _recorded(value: Any) -> Any:
    """An output as a plan records it: a path that holds in every folder, and None for a limit of infinity."""
    return str(value.absolute()) if isinstance(value, Path) else None if value == math.inf else value


def _budget(outputs: dict[str, Any], text: str | None) -> Budget | None:
    """What the edits may cost; None if nothing was said of that."""
    most, least, data = (outputs[name] for name in ("max_perplexity", "min_capability", "capability_data"))
    if (least is None) != (data is None) or (data is None and outputs["capability_tasks"] is not None):
        raise checks.BadArgumentError("--min-capability, --capability-data: give both, or neither of them.")
    if most is None and least is None:
        return None

    from factpatch.evaluation.budget import Budget
    from factpatch.evaluation.capability import load_items
    from factpatch.evaluation.tasks import TASKS, task_named

    with checks.argument("--capability-tasks"):
        names = checks.parse_names(outputs["capability_tasks"]) or TASKS
        wanted = [] if data is None else [task_named(name) for name in names]
    with checks.argument("--capability-data"):
        tasks = [(task, load_items(task, data)) for task in wanted]
    with checks.extras(), checks.argument("--max-perplexity, --min-capability"):
        return Budget(most, least, text, tasks, keep=_keep)


def _keep(exceeded: str) -> bool:
    """Ask on a terminal whether to keep a batch that exceeds the budget."""
    return sys.stdin.isatty() and typer.confirm(f"With this batch: {exceeded}. Keep it all the same?")


def _check_given(model: str | None, facts: Path | None, out: Path | None, session: Path | None) -> None:
    """Raise BadArgumentError unless everything is given that a new edit needs."""
    only_resumed = "only factpatch edit --resume DIR works without it"
    for name, value, advice in (
        ("MODEL", model, only_resumed),
        ("--facts", facts, only_resumed),
        ("--out", out or session, "give it, or --session DIR"),
    ):
        if value is None:
            raise checks.BadArgumentError(f"{name}: is missing; {advice}.")


def _check_resumed(ctx: typer.Context, allowed: set[str]) -> None:
    """Raise BadArgumentError if something is given that the session has settled."""
    for name in ctx.params:
        source = ctx.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise checks.BadArgumentError(
                f"{checks.option_name(name)}: the session has it already. Leave it out to resume; to edit more facts "
                "in the session, give --session DIR instead of --resume DIR."
            )


def _check_outputs(
    source: str, recipe: Recipe, outputs: dict[str, Any], facts: Path | None, session: Path | None
) -> None:
    """Raise BadArgumentError if an output cannot be written, or would overwrite an input or another output."""
    files = {name: outputs[name] for name in ("out", "report")}
    save_model, model = outputs["save_model"], Path(source)
    checks.check_patch_output("--out", files["out"])
    checks.check_output("--report", files["report"])
    checks.check_output("--save-model", save_model, "new directory")
    checks.check_distinct(
        model=model,
        facts=facts,
        corpus=Path(recipe.corpus) if isinstance(recipe.corpus, str) else None,
        preset=recipe.preset if isinstance(recipe.preset, Path) else None,
        perplexity_text=outputs["perplexity_text"],
        **files,
        save_model=save_model,
        session=session,
    )
    for folder in (model, save_model):
        checks.check_outside(folder, **files, session=session)
    checks.check_outside(session, "session's", **files, save_model=save_model)


def _batches(facts: Path | None, size: int | None, *how: Any) -> list[list[Fact]]:
    """The facts of a file, `size` at a time; see `load_batches`."""
    if facts is None:
        return []
    with checks.argument("--facts"):
        return load_batches(facts, size, *how)


def _lasting(model: str) -> str:
    """The same model, by a path that is still valid when the session is resumed from another folder."""
    from factpatch.model.embedded import EMBEDDED

    return model if model in EMBEDDED or not Path(model).exists() else os.path.abspath(model)


def _begun(directory: Path, model: str, recipe: Recipe) -> factpatch.Session | None:
    """The session to extend, or None if the directory has none yet."""
    with checks.argument("--session"):
        if not directory.is_dir() or not any(directory.iterdir()):
            checks.check_output("--session", directory, "new directory")
            return None
        session = checks.open_session(directory)
        its = {"model": session.source, **session.recipe.to_dict(defaults=True)}
        differing = difference(its, {"model": model, **recipe.to_dict(defaults=True)})
        if differing is not None:
            raise ValueError(
                f"{directory} was begun with other settings: {differing}. Give the same settings, or begin another "
                "session."
            )
        session.check_idle()
        return session


def _resumed(directory: Path) -> factpatch.Session:
    """The session to continue."""
    with checks.argument("--resume"):
        session = checks.open_session(directory)
        if not session.finished and not session.waiting:
            raise ValueError(
                f"{directory}: the session is empty, and no facts are pending. To edit facts in it, give --session "
                f"{directory} --facts FILE, and the model and settings that it was begun with."
            )
        _ = session.recipe, session.pending  # checked when they are read
        return session


def _outputs(session: factpatch.Session, given: dict[str, Any]) -> dict[str, Any]:
    """The outputs of a resumed session: those given now, and those that were asked for before and not written."""
    kept = _planned_outputs(session, given)
    model = kept.get("save_model")
    # It was vacant when the session was planned, and a model's directory appears complete or not at all.
    if model is not None and given["save_model"] is None and model.is_dir() and any(model.iterdir()):
        render.note(f"{model} exists already, so the model is not written again.", "yellow")
        kept["save_model"] = None
    places = {name: path for name, path in kept.items() if isinstance(path, Path) and given[name] is None}
    for name, path in places.items():
        # The journal may be somebody else's, and name any file.
        if name in ("out", "report") and path.exists() and not (name == "out" and session.owns(path)):
            raise checks.BadArgumentError(
                f"{checks.option_name(name)}: {session.path} was asked to write {path}, and there is a file that it "
                f"has not written. To replace it, repeat {checks.option_name(name)} {path}; or choose another place."
            )
    if places:
        asked = ", ".join(f"{checks.option_name(name)} {path}" for name, path in places.items())
        render.note(f"as planned in {session.path}: {asked}")
    chosen = {name: value for name, value in given.items() if value is not None and value is not False}
    return {**given, **kept, **chosen}


def _planned_outputs(session: factpatch.Session, given: dict[str, Any]) -> dict[str, Any]:
    """The outputs of the last plan that this command knows, with paths for text."""
    planned = dict(session.outputs)
    if "no_verify" in planned:  # as earlier versions wrote it
        planned["verify"] = "none" if planned.pop("no_verify") else None
    kept = {name: value for name, value in planned.items() if name in given}
    for name, value in kept.items():
        if type(value) not in _KINDS.get(name, (str, NoneType)):
            raise ValueError(f"{session.path / JOURNAL}: outputs.{name}={quoted(value)}: was altered.")
    texts = ("capability_tasks", "verify")
    return {name: Path(it) if isinstance(it, str) and name not in texts else it for name, it in kept.items()}


@contextmanager
def _held(session: factpatch.Session, given: Mapping[str, Any]) -> Iterator[None]:
    """Keep other processes out, and print how to continue after an interruption: with options that no plan recorded."""
    with session.locked():
        try:
            yield
        except BaseException:
            if session.waiting or session.outputs:
                ready, planned = len(session.finished), session.outputs
                left = {
                    name: value
                    for name, value in given.items()
                    if value is not None
                    and planned.get(name) != _recorded(value)
                    # A round of mending was planned with the rounds that are left.
                    and (name != "mend" or planned.get(name) is None)
                }
                options = "".join(f" {checks.option_name(name)} {shlex.quote(str(left[name]))}" for name in left)
                render.note(
                    f"{ready} of {counted(ready + len(session.waiting), 'batch')} kept; continue with: "
                    f"{render.command(f'edit --resume {session.path}{options}')}",
                    "yellow",
                )
            raise


@contextmanager
def _stopping(out: Path | None, session: factpatch.Session | None) -> Iterator[None]:
    """Turn a batch that exceeds the budget into a message and exit code 3."""
    from factpatch.evaluation.budget import BudgetError

    try:
        yield
    except BudgetError as error:
        if session is not None:
            left = (
                "its facts stay pending. To continue, give a wider budget; --max-perplexity inf and --min-capability 0 "
                "allow all"
            )
        elif error.kept:
            left = f"it and those after it are not in {out}, which holds {counted(error.kept, 'batch')}"
        else:
            left = "nothing was written"
        render.note(f"stopped: with the next batch, {error}. It was taken back; {left}.", "red")
        raise typer.Exit(3) from error


def _show(done: EditReport, outputs: dict[str, Any], session: Path | None) -> None:
    if done.verification is not None:
        both = done.perplexity_before, done.perplexity_after
        render.show_verification(done.verification, done.plain, both, done.perplexity_error)
    if done.rerouted is not None:
        render.say(f"Sent to other experts: {100 * done.rerouted:.2f} % of the tokens and layers of ordinary text")
    render.show_facts("Replaced by a later fact, so not asked about", done.superseded, "yellow")
    if done.repeated:
        render.say(f"Edited more than once: {counted(len(done.repeated), 'fact')}")
    if done.similar:
        render.say(f"Probably the same question in other words: {counted(len(done.similar), 'pair')}", "yellow")
    for pair in done.similar:
        render.say(f"  {' / '.join(map(render.fact_line, pair))}")
    render.show_times(done.seconds)
    if session is not None:
        render.say(
            f"Session: {session} ({counted(len(done.attempted), 'fact')}; factpatch log {session} shows them)", "bold"
        )
    if outputs["out"] is not None:
        where = f"{counted(len(done.attempted), 'fact')} in layers {render.numbers(done.patch.layers)}"
        if ranks := done.patch.ranks:
            where += f", rank {render.numbers(ranks.values())}"
        render.say(f"Patch: {outputs['out']} ({render.size(outputs['out'])}; {where})", "bold")
    render.written(Model=outputs["save_model"], Report=outputs["report"])
