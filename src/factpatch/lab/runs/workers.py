"""The lines of a run's table among the workers of a pool.

    driver                                            worker
    ──────                                            ──────
    holds the lock of the run's directory
    checks every line
    Lines, once ────────────────────────────────────▶ opens the directory, reads the inputs, loads the model,
    the place of a line ────────────────────────────▶   and compares all three with what the driver has
                                                      measures the unedited model; later, in another map,
                                                      edits and measures that line in the directory
    reports the line ◀─────────────────────────────── it is done

The directory is the only truth: a line whose worker dies is continued by another one, where its files end.
"""

from __future__ import annotations

import gc
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from factpatch.evaluation.budget import Spent
from factpatch.lab.runs.config import RunConfig
from factpatch.lab.runs.directory import RunDirectory, RunError
from factpatch.lab.runs.pace import Pace
from factpatch.lab.runs.plan import Plan
from factpatch.lab.runs.runner import Report, Runner, logged
from factpatch.model.replicas import check_worker, rounding, threads
from factpatch.pool import Pool, WorkerDied

_SAME_PATHS = (
    "Workers need the run's directory, the model and all inputs at the same absolute paths as here: put them on a disk "
    "that all machines share."
)


def share_out(lines: Lines, directory: RunDirectory, left: Sequence[Plan], pool: Pool, log: Report) -> None:
    """Have workers do what is left of a run: first all that lines share, then the lines. Report each that is done.

    Raises:
        RunError: A line ended several workers, or a worker finds something else than is here.
        Exception: What a line raised that no method is to blame for.
    """
    gc.collect()  # the model of this process, which workers may need the memory of
    places = {plan.directory: place for place, plan in enumerate(directory.plans())}
    if directory.record["threads"] != pool.threads:
        log(f"the run began with {directory.record['threads']} threads, so each worker takes as many")
    log(f"{len(left)} lines among {pool.workers} workers; {directory.path / 'log.txt'} follows each batch")
    done: set[int] = set()

    def report(place: int) -> None:
        plan = left[place]
        done.add(place)
        pace.begin()
        for _ in plan.batches:
            pace.advance()
        failed = json.loads((plan.directory / "row.json").read_text("utf-8")).get("failed")
        outcome = "is done" if failed is None else f"failed: {failed}"
        log(f"{plan.name}: {outcome}; {len(done)} of {len(left)} lines, {pace.left()}")

    def carry_out(work: Lines, plans: Sequence[Plan], names: Sequence[str], report: Callable[[int], None]) -> None:
        try:
            for _ in pool.map(work, [places[plan.directory] for plan in plans], report):
                pass
        except WorkerDied as error:
            if error.shard is None:
                raise
            raise RunError(f"{names[error.shard]}: {error}") from error

    shared = list({plan.unedited: plan for plan in left}.values())
    names = [f"the unedited model on {plan.dataset.name}, seed {plan.seed}" for plan in shared]
    carry_out(replace(lines, unedited=True), shared, names, lambda place: log(f"{names[place]}: measured"))
    pace = Pace([len(plan.batches) for plan in left])
    carry_out(lines, left, [plan.name for plan in left], report)


@dataclass(frozen=True)
class Lines:
    """The work of a pool: a shard is the place of a line among the plans of a run's directory."""

    directory: str
    """An absolute path."""
    folder: str
    """From where relative paths of the configuration start."""
    config: RunConfig
    """As the driver was given it: its inputs may be elsewhere than when the run began."""
    rounding: str
    """The content of the unedited model's hidden states on a short text."""
    device: str
    """The type of device that the driver's model lies on."""
    spent: Spent | None
    """What the budget measures of the unedited model."""
    unedited: bool = False
    """Whether the unedited model is measured for a line, in place of editing."""

    @classmethod
    def of(cls, runner: Runner) -> Lines:
        """What workers need of a driver, whose model is unedited."""
        spent = None if runner.meter is None else runner.meter.unedited
        directory = runner.directory
        return cls(
            os.path.abspath(directory.path),
            os.getcwd(),
            directory.config,
            rounding(runner.lm),
            runner.lm.device.type,
            spent,
        )

    @property
    def key(self) -> str:
        return repr(replace(self, unedited=False))

    def open(self) -> AtWork:
        """Read, load and compare, in a worker.

        Raises:
            RunError: The directory is not there, or something differs from what the driver has.
        """
        path, here = Path(self.directory), f"a worker on {platform.node()}"
        if not RunDirectory.is_begun(path):
            raise RunError(f"{path}: {here} does not find this directory. {_SAME_PATHS}")
        if Path(self.folder).is_dir():
            os.chdir(self.folder)  # a worker on Ray begins elsewhere
        directory = RunDirectory(path)
        directory.config = self.config
        plans = list(directory.plans())
        check_worker(self.device)
        with threads(directory.record["threads"]):
            try:
                directory.check_inputs()
                runner = Runner.load(directory, plans, _unheard, Pace([]), self.spent)
            except RunError:
                raise
            except (OSError, ValueError) as error:
                raise RunError(f"{path}: {here} cannot load what it needs: {error} {_SAME_PATHS}") from error
            if rounding(runner.lm) != self.rounding:
                raise RunError(
                    f"{path}: {here} rounds otherwise than this process, since their processors or devices differ, so "
                    "the numbers would depend on which of them did what. Use machines of one kind, and start the "
                    "command on one of them."
                )
        return AtWork(runner, plans)


@dataclass
class AtWork:
    """What stays in a worker: the model and the inputs."""

    runner: Runner
    plans: Sequence[Plan]

    def __call__(self, work: Lines, place: int) -> None:
        """Carry out a line, unless another worker has, which died before it could say so; or what it shares."""
        plan, directory = self.plans[place], self.runner.directory
        with threads(directory.record["threads"]), logged(directory, _unheard) as log:
            if work.unedited:
                self.runner.log = log
                self.runner.measure_unedited(plan)
            elif not plan.finished:
                self.runner.log, self.runner.pace = log, Pace([len(plan.batches)], of="this line")
                self.runner.pace.begin()
                self.runner.attempt(self.runner.line(plan))


def _unheard(line: str) -> None:
    """The driver reports lines of the table alone."""
