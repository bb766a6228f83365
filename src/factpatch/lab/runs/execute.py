"""Carry a run out: edit batch after batch, measure on the way, resume where a killed process stopped.

Every patch and every measurement is a file of its own that appears whole. What exists is not done again, and the rest
is done on the weights that it belongs to, which the session's patches bring back bit for bit. So a run that was killed
ends with the numbers of one that was not, and it does not matter which process carries out which line of the table.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from factpatch.data.references import why_no_references
from factpatch.lab.runs.directory import RunDirectory
from factpatch.lab.runs.pace import Pace
from factpatch.lab.runs.plan import Plan
from factpatch.lab.runs.runner import Report, Runner, logged
from factpatch.lab.runs.workers import Lines, share_out
from factpatch.model.replicas import threads
from factpatch.pool import Local, Pool
from factpatch.presets.own_methods import own_methods

logger = logging.getLogger(__name__)

# By the name under which a package is imported: how pip calls it.
PACKAGES = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "sklearn": "scikit-learn",
}


def check_extra(what: str) -> None:
    """Raise ImportError unless the packages of the extra `runs`, which `what` needs, are installed."""
    absent = [package for name, package in PACKAGES.items() if find_spec(name) is None]
    if absent:
        raise ImportError(f"{what} needs {', '.join(absent)}; pip install 'factpatch[runs]'.")


def execute(
    directory: RunDirectory, report: Report = logger.info, other_versions: bool = False, pool: Pool | None = None
) -> None:
    """Do the rest of a run.

    Args:
        directory: The run's directory.
        report: Called with a line about every batch and every measurement, with an estimate of the time left; with
            workers, about every line of the table, while the run's log has all.
        other_versions: Continue a run that other versions of the libraries began; its numbers may differ.
        pool: Workers, each of which carries out one line of the table at a time with a model of its own. The numbers
            do not depend on how many there are.

    Raises:
        ImportError: A package of the extra `runs` is not installed, or one that a rival needs.
        RunError: Another process is using the directory, the run was begun with other inputs, versions or weights, its
            settings do not fit the model, or a worker finds something else than is here. What was done before is kept.
        ConfigError: An input cannot be read. Nothing is loaded or measured before all of them are.
        ValueError: Workers are to carry out a method that this process alone knows.
    """
    check_extra("a run")
    with directory.locked(), threads(directory.record["threads"]), logged(directory, report) as log:
        left = [plan for plan in directory.plans() if not plan.finished]
        if not left:
            log("everything is edited and measured")
            return
        for rival in filter(None, (plan.method.rival for plan in left)):
            rival.check_installed()
        check_known_to(pool, [plan.method.name for plan in left])
        directory.check_conditions(other_versions)
        if pool is None or isinstance(pool, Local):
            _carry_out(directory, left, log)
        else:
            share_out(_prepared(directory, left, log), directory, left, pool, log)


def check_known_to(pool: Pool | None, methods: Iterable[str]) -> None:
    """Raise ValueError if workers are to carry out a method that this process alone knows."""
    own = () if pool is None or isinstance(pool, Local) else own_methods(methods)
    if own:
        raise ValueError(
            f"workers: other processes do not know {', '.join(own)}, registered in this one; run without workers."
        )


def _loaded(directory: RunDirectory, left: Sequence[Plan], log: Report) -> Runner:
    runner = Runner.load(directory, left, log, Pace([len(plan.batches) for plan in left]))
    if directory.config.evaluate.text is not None and runner.inputs.references is None:
        log(f"{why_no_references()}, so consistency will be missing")
    return runner


def _carry_out(directory: RunDirectory, left: Sequence[Plan], log: Report) -> None:
    """Do what is left of a run in this process."""
    runner = _loaded(directory, left, log)
    lines = runner.lines(left)
    while lines:
        runner.pace.begin()
        runner.attempt(lines.pop(0))


def _prepared(directory: RunDirectory, left: Sequence[Plan], log: Report) -> Lines:
    """Check every line; the model is let go afterwards."""
    runner = _loaded(directory, left, log)
    runner.lines(left)
    return Lines.of(runner)
