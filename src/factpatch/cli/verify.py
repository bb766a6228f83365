"""`factpatch verify`: what a model says of facts, without and with a patch."""

from __future__ import annotations

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

    Of two facts in the file that answer the same question, the later one counts. A patch that was edited with --chat is
    asked with it.
    """
    checks.check_output_file("--report", report)
    checks.check_distinct(report=report, facts=facts, patch=patch)

    from factpatch.data import load_facts
    from factpatch.edit_report import ask
    from factpatch.evaluation.verify import plain_summary
    from factpatch.facts import latest
    from factpatch.session import load_patch
    from factpatch.support.files import write_json

    with checks.argument("--facts"):
        in_force, superseded = latest([load_facts(facts, limit, skip_unusable)])
    with checks.argument("--patch"):
        loaded = None if patch is None else load_patch(patch)
    checks.check_place(device, dtype)
    lm = checks.load_model(
        model,
        device,
        dtype or (None if loaded is None else loaded.weight_dtype),
        chat or (loaded is not None and loaded.chat),
    )
    if loaded is None:
        done = ask(lm, in_force, "asking")
    else:
        before = ask(lm, in_force, "asking without the patch")
        with loaded.applied(lm):
            done = ask(lm, in_force, "asking with the patch", before)
    if report is not None:
        about = {"model": model, "patch": None if patch is None else str(patch), "chat": lm.frame.chat}
        write_json(report, {**about, "plain": plain_summary(done), **done.to_dict()})
    render.screen.print(render.fact_table(done))
    render.screen.print(render.metric_table(done))
    render.paragraph(plain_summary(done) + ".")
    render.show_unlearned(done.unlearned())
    render.show_superseded(superseded)
    if report is not None:
        render.say(f"Report: {report}")
