"""`factpatch verify`: what a model says about facts, without and with a patch, in process or where it is served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.cli.checks import BadArgumentError
from factpatch.support.words import counted, quoted

if TYPE_CHECKING:
    from factpatch.evaluation.server import Server
    from factpatch.evaluation.verify import Verification
    from factpatch.facts import Fact
    from factpatch.pool import Pool

_NO_ADAPTER = "no-adapter"


def verify(
    facts: options.Facts,
    model: options.OptionalModel = None,
    patch: options.PatchToMeasure = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE[=URL]",
            help="Ask a served model over HTTP: llama.cpp, vllm or ollama, by default on this machine, or openai=URL "
            "for any other server with such an API. MODEL is its name there, and not needed if it is the only one.",
        ),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=URL]|URL|no-adapter",
            help="With --engine, ask the unedited model first: by its name on the same server, at the URL of another, "
            "or the same model without its adapters (llama.cpp). Neighbors are then asked too, and compared.",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=256, metavar="N", help="With --engine, ask N questions at a time. Default: 8."),
    ] = None,
    probes: Annotated[
        bool,
        typer.Option(
            "--probes",
            help="Ask beside the facts too: negated, reversed, in a choice, and with their ripples. With --engine, as "
            "far as answers suffice; a choice is then one of letters.",
        ),
    ] = False,
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    chat: options.Chat = False,
    report: options.Report = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
    workers: options.Workers = None,
) -> None:
    """Ask a model about facts and show, fact by fact, what it says; with --patch, before and after.

    With --engine the model is one that a server has loaded: it is asked over HTTP, greedily, and only what it says is
    known. The key of the server, if it wants one, is read from the environment variable FACTPATCH_API_KEY; for
    --engine openai=URL, OPENAI_API_KEY is read too if that is not set. It is not sent to another host that --before
    names.

    If two facts in the file answer the same question, the later one counts. --chat is implied by a patch that was
    edited with it.
    """
    here = {"patch": patch, "device": device, "dtype": dtype, "workers": workers}
    _check_together(engine, model, before=before, concurrency=concurrency, **here)
    checks.check_distinct(report=report, facts=facts, patch=patch)
    if engine is None:
        checks.check_outside(Path(str(model)), report=report)
    checks.check_outside(patch, "session's", report=report)

    from factpatch.data import load_facts
    from factpatch.facts import latest
    from factpatch.support.files import write_json

    with checks.argument("--facts"):
        in_force, superseded = latest([load_facts(facts, limit, skip_unusable)])
    if engine is None:
        with checks.pooled(workers) as pool:
            done, plain, about = _in_process(str(model), patch, in_force, chat, probes, device, dtype, pool)
    else:
        done, plain, about = _served(*_servers(engine, model, before), in_force, chat, probes, concurrency)
    if report is not None:
        write_json(report, {**about, "plain": plain, **done.to_dict()})
    render.show_verification(done, plain)
    render.show_facts("Replaced by a later fact, so not asked about", superseded, "yellow")
    render.written(Report=report)


def _check_together(engine: str | None, model: str | None, **given: Any) -> None:
    """Raise BadArgumentError for an option that means nothing with the others."""
    if engine is None and model is None:
        raise BadArgumentError("MODEL: missing; name a model to load, or a server to ask with --engine ENGINE[=URL].")
    useless = ("before", "concurrency") if engine is None else ("patch", "device", "dtype", "workers")
    for name in useless:
        if given[name] is not None:
            why = (
                "only means something with --engine; add that, or leave it out"
                if engine is None
                else ("is about a model that is loaded here, and --engine asks a served one; leave one of the two out")
            )
            raise BadArgumentError(f"{checks.option_name(name)} {given[name]}: {why}.")


def _in_process(
    model: str,
    patch: Path | None,
    facts: Sequence[Fact],
    chat: bool,
    probes: bool,
    device: str | None,
    dtype: str | None,
    pool: Pool | None,
) -> tuple[Verification, str, dict[str, Any]]:
    """What a model that is loaded here says, in a sentence too, and what was asked."""
    from factpatch.edit_report import ask, completed, not_trained_by
    from factpatch.evaluation.verify import plain_summary
    from factpatch.model.replicas import Replicas

    loaded = None if patch is None else checks.load_patch("--patch", patch)
    lm = checks.load_model(model, device, dtype, chat or (loaded is not None and loaded.chat), loaded)
    nameless = [fact for fact in facts if fact.forget and fact.target_true is None]
    if nameless and loaded is None:
        render.note(
            f"{counted(len(nameless), 'fact')} to forget without target_true; what {model} says now counts as it",
            "yellow",
        )
    with checks.argument("--facts"):
        (found,) = completed(lm, [facts])  # on the unedited model: what it says is what a patch is to make it forget
    facts = found if loaded is None else not_trained_by(loaded, found)
    with checks.argument():
        replicas = None if pool is None else Replicas(lm, pool)
    _, done = checks.before_and_after(
        lm, loaded, lambda what, before: ask(lm, facts, what, before, probes=probes, replicas=replicas)
    )
    about = {"model": model, "patch": None if patch is None else str(patch), "chat": lm.frame.chat}
    return done, plain_summary(done), about


def _servers(engine: str, model: str | None, before: str | None) -> tuple[Server, Server | None]:
    """The server with the model, and with the unedited one."""
    from factpatch.evaluation.server import Server, checked_url, engine_and_url, may_share_key

    with checks.argument("--engine"):
        kind, url = engine_and_url(engine)
    server = Server(kind, url, model, named=model is not None).opened()
    if before is None:
        return server, None
    if before == _NO_ADAPTER:
        return server, server.without_adapters()
    name, _, other = before.rpartition("=") if "://" in before else (before, "", url)
    with checks.argument("--before"):
        other = checked_url(other)
    unedited = Server(kind, other, name or None, named=bool(name), send_key=may_share_key(url, other)).opened()
    if unedited.asks_the_same(server):
        instead = f", or give {_NO_ADAPTER}" if kind.adapters else ""
        raise BadArgumentError(
            f"--before {before}: is MODEL itself, {server.model} at {server.url}, so every answer would be unchanged; "
            f"name the unedited model{instead}."
        )
    return server, unedited


def _served(
    server: Server, unedited: Server | None, facts: Sequence[Fact], chat: bool, probes: bool, concurrency: int | None
) -> tuple[Verification, str, dict[str, Any]]:
    """What a served model says, in a sentence too, and what was asked."""
    from factpatch.evaluation.served import CONCURRENCY, question_count, usable_forms, verify_served
    from factpatch.evaluation.verify import plain_summary
    from factpatch.support.progress import bar

    nameless = next((fact for fact in facts if fact.forget and fact.target_true is None), None)
    if nameless is not None:
        raise BadArgumentError(
            f"--facts: {quoted(nameless.text)} is to be forgotten without target_true, which a served model does not "
            "tell; add it."
        )
    forms, reasons = usable_forms(server, facts[0], chat)
    neighbors = unedited is not None
    number = question_count(forms, facts, neighbors, probes)

    def ask(one: Server, what: str, before: Verification | None = None) -> Verification:
        with bar(what, number) as advance:
            return verify_served(
                one, forms, facts, before, neighbors=neighbors, probes=probes, concurrency=concurrency or CONCURRENCY,
                progress=advance,
            )  # fmt: skip

    before = None if unedited is None else ask(unedited, "asking the unedited model")
    done = ask(server, "asking the edited model" if unedited else "asking", before)
    left_out = [
        f"not asked by {', '.join(form for form, why in reasons.items() if why == reason)}: {reason}"
        for reason in dict.fromkeys(reasons.values())
    ]
    about = {
        "model": server.model,
        "engine": server.engine.name,
        "url": server.url,
        "unedited": None if unedited is None else {"model": unedited.model, "url": unedited.url, **unedited.fields},
        "chat": chat,
        "not_asked": reasons,
    }
    return done, "; ".join([plain_summary(done), *left_out]), about
