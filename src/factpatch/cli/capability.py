"""`factpatch capability`: what a model can do besides the facts, without and with a patch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factpatch.cli import checks, options, render
from factpatch.support.files import write_json
from factpatch.support.progress import bar

if TYPE_CHECKING:
    from factpatch.evaluation.capability import TaskResult
    from factpatch.evaluation.harness import HarnessScore

    Done = tuple[list[TaskResult], list[HarnessScore]]

_SHOWN = (("f1", 1), ("accuracy", 1), ("mcc", 1), ("invalid", 0))


@options.documented
def capability(
    model: options.Model,
    patch: options.PatchToMeasure = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="T,T,...")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N")] = 100,
    shots: Annotated[int | None, typer.Option(min=0, metavar="N")] = None,
    generate: Annotated[bool, typer.Option()] = True,
    harness: Annotated[str | None, typer.Option(metavar="T,T,...")] = None,
    chat: options.Chat = False,
    out: options.Report = None,
    device: options.Device = None,
    dtype: options.PatchDtype = None,
) -> None:
    """Measure what a model can do besides the facts; with --patch, before and after.

    Needs the extra `evaluate`; --harness needs the extra `harness`. The first ten items of a task's file serve as
    examples and are never asked.

    Args:
        data: The folder with the tasks' items: glue_sst2.json and so on.
        tasks: Any of sst2, mrpc, mmlu, rte, cola and nli. Default: all, with --data.
        limit: Ask this many items of each task.
        shots: Examples before each question. Default: none for --tasks; what the harness sets for --harness.
        generate: Also let the model generate its answers to the --tasks.
        harness: Tasks of lm-evaluation-harness: names that `lm-eval ls tasks` lists, or your own YAML files.
        out: Write the results, item by item, as JSON.
    """
    checks.check_distinct(out=out, patch=patch)
    checks.check_outside(Path(model), out=out)
    checks.check_outside(patch, "session's", out=out)
    names, others = checks.parse_names(tasks), checks.parse_names(harness)
    if data is None and (names or not others):
        raise checks.BadArgumentError("--data: give the folder with the items of the tasks, such as glue_sst2.json.")

    from factpatch.evaluation.capability import RESERVED, check_extra, load_items
    from factpatch.evaluation.capability import capability as ask
    from factpatch.evaluation.harness import check_tasks
    from factpatch.evaluation.harness import harness as ask_harness
    from factpatch.evaluation.tasks import TASKS, task_named

    if shots is not None and shots > RESERVED and data is not None:
        raise checks.BadArgumentError(f"--shots {shots}: give at most {RESERVED}, which are reserved in each file.")
    with checks.argument("--tasks"):
        wanted = [] if data is None else [task_named(name) for name in names or TASKS]
    with checks.argument("--data"):
        loaded_tasks = [(task, load_items(task, data or "")) for task in wanted]
    with checks.extras(), checks.argument("--harness"):
        if wanted:
            check_extra()
        if others:
            check_tasks(others)
    loaded = None if patch is None else checks.load_patch("--patch", patch)
    lm = checks.load_model(model, device, dtype, chat, loaded)

    def measure(what: str, _: Done | None) -> Done:
        results, scores = [], []
        with bar(what, len(wanted) + len(others)) as advance:
            for task, items in loaded_tasks:
                results.append(ask(lm, task, items, shots=shots or 0, limit=limit, generate=generate))
                advance(1)
            for name in others:
                scores += ask_harness(lm, [name], shots=shots, limit=limit)
                advance(1)
        return results, scores

    before, done = checks.before_and_after(lm, loaded, measure)
    if out is not None:
        about = {"model": model, "patch": None if patch is None else str(patch), "chat": chat}
        asked = {"limit": limit, "shots": shots}
        write_json(out, {**about, **asked, "before": before and _record(before), "after": _record(done)})
    _show(before, done)
    render.written(Report=out)


def _record(done: Done) -> dict[str, Any]:
    return {"tasks": [result.to_dict() for result in done[0]], "harness": [asdict(score) for score in done[1]]}


def _show(before: Done | None, done: Done) -> None:
    """A line for each task and way of answering, and one for each metric of the harness: before -> after."""
    results, scores = done
    made = render.table("task", "answer by", "items", "weighted F1", "accuracy", "MCC x 100", "invalid")
    for index, result in enumerate(results):
        was = {} if before is None else before[0][index].metrics()
        for way, now in result.metrics().items():
            pairs = ((getattr(was[way], name) if was else None, getattr(now, name), digits) for name, digits in _SHOWN)
            made.add_row(result.task, way, str(len(result.rows)), *(render.change(*pair) for pair in pairs))
    if results:
        render.screen.print(made)
    made = render.table("task", "metric", "items", "shots", "value", "standard error")
    for index, score in enumerate(scores):
        counts = ("" if count is None else str(count) for count in (score.items, score.shots))
        value = render.change(None if before is None else before[1][index].value, score.value, 3)
        error = "" if score.standard_error is None else f"{score.standard_error:.3f}"
        made.add_row(score.task, score.metric, *counts, value, error)
    if scores:
        render.screen.print(made)
