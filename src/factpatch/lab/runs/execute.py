"""Carry a run out: edit batch after batch, measure on the way, resume where a killed process stopped.

Every patch and every measurement is a file of its own that appears whole. What exists is not done again, and the rest
is done on the weights that it belongs to, which the session's patches bring back bit for bit. So a run that was killed
ends with the numbers of one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from factpatch.data.reading import DataFileError
from factpatch.data.references import why_no_references
from factpatch.edit_report import check_facts
from factpatch.editor import Editor
from factpatch.journal import SessionError
from factpatch.lab.runs.directory import RunDirectory, RunError
from factpatch.lab.runs.inputs import Inputs
from factpatch.lab.runs.measures import Measure, is_saved, measures, save_part
from factpatch.lab.runs.pace import Pace
from factpatch.lab.runs.plan import Moment, Plan
from factpatch.lab.runs.rows import When
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.memory import FAILURES
from factpatch.model.weights import model_hash
from factpatch.session import Session
from factpatch.statistics.second_moment import CorpusError
from factpatch.support.files import write_json
from factpatch.values.shared import SharedTargets

logger = logging.getLogger(__name__)

Report = Callable[[str], None]
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


def execute(directory: RunDirectory, report: Report = logger.info, other_versions: bool = False) -> None:
    """Do the rest of a run.

    Args:
        directory: The run's directory.
        report: Called with a line about every batch and every measurement, with an estimate of the time left.
        other_versions: Continue a run that other versions of the libraries began; its numbers may differ.

    Raises:
        ImportError: A package of the extra `runs` is not installed.
        RunError: Another process is using the directory, the run was begun with other inputs, versions or weights, or
            its settings do not fit the model. What was done before is kept.
        ConfigError: An input cannot be read. Nothing is loaded or measured before all of them are.
    """
    check_extra("a run")
    with directory.locked(), _threads(directory.record["threads"]), _logged(directory, report) as log:
        left = [plan for plan in directory.plans() if not plan.finished]
        if not left:
            log("everything is edited and measured")
            return
        config, text = directory.config, directory.config.evaluate.text
        directory.check_conditions(other_versions)
        inputs = Inputs.load(config, {fact for plan in left for fact in plan.facts[: text.facts if text else 0]})
        if text is not None and inputs.references is None:
            log(f"{why_no_references()}, so consistency will be missing")
        lm = load_language_model(config.model, device=config.device, dtype=config.dtype, chat=config.chat)
        weights = model_hash(lm.model)
        directory.check_model(weights)
        targets = SharedTargets(directory.path / "targets", weights)
        runner = _Runner(directory, lm, targets, inputs, log, Pace([len(plan.batches) for plan in left]))
        editors = runner.editors(left)
        for plan in left:
            runner.pace.begin()
            try:
                runner.run(plan, editors.pop(0))
            except FAILURES as error:
                # What no method is to blame for; and more memory may be free next time.
                if isinstance(error, (SessionError, DataFileError, RunError, torch.cuda.OutOfMemoryError)):
                    raise
                if isinstance(error, CorpusError):
                    raise RunError(f"{plan.name}: {error}") from error
                # A model that collapses is a result, and no reason to give up the other methods.
                plan.directory.mkdir(parents=True, exist_ok=True)
                write_json(plan.directory / "row.json", {**plan.about, "failed": str(error)})
                runner.pace.give_up()
                log(f"{plan.name}: failed: {error}")


@dataclass
class _Runner:
    directory: RunDirectory
    lm: LanguageModel
    targets: SharedTargets
    inputs: Inputs
    log: Report
    pace: Pace

    def editors(self, plans: Sequence[Plan]) -> list[Editor]:
        """An editor for each line of the table, before the first hour of work.

        Raises:
            RunError: Settings or facts do not fit the model.
        """
        found, checked = [], set()
        for plan in plans:
            facts = plan.dataset.name, plan.seed
            try:
                found.append(self._editor(plan))
                if facts not in checked:
                    check_facts(self.lm, plan.batches, found[-1].contexts)
            except (ValueError, OSError) as error:
                raise RunError(f"{plan.name}: {error}") from error
            checked.add(facts)
        return found

    def _editor(self, plan: Plan) -> Editor:
        recipe = self.directory.config.recipe(plan.method, plan.seed)
        return Editor(self.lm, recipe=recipe, optimize=self.targets)

    def run(self, plan: Plan, editor: Editor) -> None:
        """Edit and measure one line of the table; the model is as it was afterwards."""
        self.targets.take_seconds()  # of a batch that failed
        todo = measures(self.directory.config, self.inputs, plan.facts, plan.seed, editor.critical_layers[-1])
        self._measure_unedited(plan, todo)
        session = self._session(plan, editor)
        try:
            with session.locked():
                session.attach(editor)
                if not session.pending and len(session.finished) < len(plan.batches):
                    session.plan(plan.batches[len(session.finished) :])  # somebody has undone some
                self.pace.skip(len(session.finished))
                while session.pending:
                    self._measure_written(plan, todo, session)
                    session.edit(editor, ask=False)
                    done = len(session.finished)
                    if seconds := self.targets.take_seconds():
                        write_json(plan.directory / "shared.json", {**_shared(plan), str(done): seconds})
                    self.pace.advance()
                    self.log(f"{plan.name}: batch {done} of {len(plan.batches)} edited; {self.pace.left()}")
                # The end before the last batch, whose numbers are among those of the end.
                self._measure(plan, todo, plan.end)
                self._measure_written(plan, todo, session)
            stages = dict.fromkeys(stage for batch in session.finished for stage in batch.seconds)
            spent = {stage: sum(batch.seconds.get(stage, 0.0) for batch in session.finished) for stage in stages}
            record = {
                **plan.about,
                "settings": editor.settings,
                "seconds": spent,
                "shared_seconds": math.fsum(_shared(plan).values()),
                "bytes": editor.patch.num_bytes,
            }
            write_json(plan.directory / "row.json", record)
        finally:
            editor.reset()

    def _session(self, plan: Plan, editor: Editor) -> Session:
        # Empty, if a method had failed and the process was killed before it recorded that.
        if plan.directory.exists() and any(plan.directory.iterdir()):
            return Session(plan.directory)
        plan.directory.parent.mkdir(parents=True, exist_ok=True)
        return Session.create(plan.directory, editor, plan.batches)

    def _measure_unedited(self, plan: Plan, todo: Sequence[Measure]) -> None:
        """Measure the unedited model, once for all methods."""
        plan.unedited.mkdir(parents=True, exist_ok=True)
        for measure in todo:
            try:
                self._keep(plan, measure, plan.before, plan.unedited)
            except ValueError as error:  # which no method is to blame for
                raise RunError(f"{plan.dataset.name}: {measure.name} of the unedited model: {error}") from error

    def _measure_written(self, plan: Plan, todo: Sequence[Measure], session: Session) -> None:
        """Measure what is due after the last batch; a process that was killed may have edited it."""
        if session.finished:
            self._measure(plan, todo, plan.written(len(session.finished)))

    def _measure(self, plan: Plan, todo: Sequence[Measure], moment: Moment) -> None:
        """Measure what is due at a moment of the stream."""
        folder = plan.directory / "measured"
        folder.mkdir(exist_ok=True)
        for measure in todo:
            if measure.due(moment):
                self._keep(plan, measure, moment, folder)

    def _keep(self, plan: Plan, measure: Measure, moment: Moment, folder: Path) -> None:
        """Measure and save, unless that was done before."""
        path, end = folder / f"{moment.name}.{measure.name}", folder / f"{When.END.value}.{measure.name}"
        if is_saved(path):
            return
        if moment.when is When.WRITTEN and moment.edits == len(plan.facts) and is_saved(end):
            save_part(end, path, moment)  # nothing was edited between the two
            return
        unedited = None if moment.when is When.BEFORE else plan.unedited / f"{When.BEFORE.value}.{measure.name}"
        measure.measure(self.lm, [plan.facts[place] for place in moment.places], unedited).keep(path, plan, moment)
        self.log(f"{plan.name}: measured {measure.name}, {moment.name}")


def _shared(plan: Plan) -> dict[str, float]:
    """The seconds that each batch's value targets took when they were optimized before, for another method."""
    file = plan.directory / "shared.json"
    found: dict[str, float] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _logged(directory: RunDirectory, report: Report) -> Iterator[Report]:
    """Also write every line to the run's log, with the time."""
    with (directory.path / "log.txt").open("a", encoding="utf-8") as file:

        def log(line: str) -> None:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
            file.flush()
            report(line)

        yield log
