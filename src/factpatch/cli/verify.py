"""`factpatch verify`: what a model says about facts, without and with a patch."""

from __future__ import annotations

from pathlib import Path

from factpatch.cli import checks, options, render


def verify(
    model: options.Model,
    facts: options.Facts,
    patch: options.PatchToMeasure = None,
    limit: options.Limit = None,
    skip_unusable: options.SkipUnusable = False,
    chat: options.Chat = False,
    report: options.Report = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Ask a model about facts and show, fact by fact, what it says; with --patch, before and after.

    If two facts in the file answer the same question, the later one counts. --chat is implied by a patch that was
    edited with it.
    """
    checks.check_distinct(report=report, facts=facts, patch=patch)
    checks.check_outside(Path(model), report=report)
    checks.check_outside(patch, "session's", report=report)

    from factpatch.data import load_facts
    from factpatch.edit_report import ask
    from factpatch.evaluation.verify import plain_summary
    from factpatch.facts import latest
    from factpatch.support.files import write_json

    with checks.argument("--facts"):
        in_force, superseded = latest([load_facts(facts, limit, skip_unusable)])
    loaded = None if patch is None else checks.load_patch("--patch", patch)
    lm = checks.load_model(model, device, dtype, chat or (loaded is not None and loaded.chat), loaded)
    _, done = checks.before_and_after(lm, loaded, lambda what, before: ask(lm, in_force, what, before))
    plain = plain_summary(done)
    if report is not None:
        about = {"model": model, "patch": None if patch is None else str(patch), "chat": lm.frame.chat}
        write_json(report, {**about, "plain": plain, **done.to_dict()})
    render.show_verification(done, plain)
    render.show_facts("Replaced by a later fact, so not asked about", superseded, "yellow")
    render.written(Report=report)
