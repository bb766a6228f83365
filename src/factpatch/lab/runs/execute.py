"""Carry a run out: edit batch after batch, measure on the way, go on where a killed process stopped.

Every patch and every measurement is a file of its own that appears whole. What is there is not done again, and what is
not there is done on the weights that it belongs to, which the session's patches bring back bit for bit. So a run that
was killed ends with the numbers of one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from factpatch.data.records import DataFileError
from factpatch.data.references import why_no_references
from factpatch.edit_report import check_facts
from factpatch.editor import Editor
from factpatch.evaluation.metrics import fact_names
from factpatch.facts import Fact
from factpatch.lab.runs.config import RunConfig
from factpatch.lab.runs.directory import Plan, RunDirectory, RunError
from factpatch.lab.runs.inputs import Inputs
from factpatch.lab.runs.measures import Measure, Measured, Moment, measures, take_over
from factpatch.lab.runs.pace import Pace
from factpatch.lab.runs.rows import ResultRow, When
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.memory import FAILURES
from factpatch.model.weights import model_hash
from factpatch.session import Session, SessionError
from factpatch.statistics.second_moment import CorpusError
from factpatch.support.files import write_json
from factpatch.values.shared import SharedTargets

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
_SHARED = "shared.json"


def execute(directory: RunDirectory, say: Say = logger.info, other_versions: bool = False) -> None:
    """Do what is left of a run.

    Args:
        directory: Where the run is.
        say: Called with a line about every batch and every measurement, with the time that is probably left.
        other_versions: Go on with a run that other versions of the libraries began; its numbers may be no others'.

    Raises:
        ImportError: A package of the extra `runs` is not installed.
        RunError: Another process is at work there, the run was begun with other inputs, versions or weights, or its
            settings do not fit the model. What was done before is kept.
        ConfigError: An input cannot be read. Nothing is loaded or measured before all of them are.
    """
    check_extra("a run")
    plans = list(directory.plans())
    with directory.locked(), _threads(directory.record["threads"]), _logged(directory, say) as tell:
        left = [plan for plan in plans if not plan.finished]
        if not left:
            tell("everything is edited and measured")
            return
        config = directory.config
        directory.check_conditions(other_versions)
        inputs = Inputs.load(config, _written_about(config, left))
        if config.evaluate.text is not None and inputs.references is None:
            tell(f"{why_no_references()}, so consistency will be missing")
        lm = load_language_model(config.model, device=config.device, dtype=config.dtype, chat=config.chat)
        weights = model_hash(lm.model)
        directory.check_model(weights)
        targets = SharedTargets(directory.path / "targets", weights)
        runner = _Runner(directory, lm, targets, inputs, tell, Pace([len(plan.batches) for plan in left]))
        editors = runner.editors(left)
        for plan in left:
            runner.pace.begin()
            try:
                runner.run(plan, editors.pop(0))
            except FAILURES as error:
                # What no method is to blame for; and more memory may be there next time.
                if isinstance(error, (SessionError, DataFileError, RunError, torch.cuda.OutOfMemoryError)):
                    raise
                if isinstance(error, CorpusError):
                    raise RunError(f"{plan.name}: {error}") from error
                # A model that collapses is a result, and no reason to give up the other methods.
                plan.directory.mkdir(parents=True, exist_ok=True)
                write_json(plan.directory / "row.json", {**_about(plan), "failed": str(error)})
                runner.pace.give_up()
                tell(f"{plan.name}: failed: {error}")


@dataclass
class _Runner:
    directory: RunDirectory
    lm: LanguageModel
    targets: SharedTargets
    inputs: Inputs
    tell: Say
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

    def run(self, plan: Plan, editor: Editor) -> None:
        """Edit and measure one line of the table; the model is as it was afterwards."""
        self.targets.take_seconds()  # of a batch that failed
        todo = measures(self.directory.config, self.inputs, plan.facts, plan.seed, editor.critical_layers[-1])
        self._before(plan, todo)
        session = self._session(plan, editor)
        try:
            with session.locked():
                session.attach(editor)
                self.pace.skip(len(session.finished))
                while True:
                    through = not session.pending
                    if through:
                        self._after(plan, todo, _end(plan))
                    # Once more for the last batch of a process that was killed.
                    if session.finished:
                        self._after(plan, todo, _written(plan, len(session.finished)))
                    if through:
                        break
                    session.edit(editor, ask=False)
                    _note_shared(plan, len(session.finished), self.targets.take_seconds())
                    self.pace.advance()
                    place = f"batch {len(session.finished)} of {len(plan.batches)}"
                    self.tell(f"{plan.name}: {place} edited; {self.pace.left()}")
            self._finish(plan, editor, session)
        finally:
            editor.reset()

    def _editor(self, plan: Plan) -> Editor:
        config, method = self.directory.config, plan.method
        return Editor(
            self.lm,
            method=method.name,
            variant=method.variant,
            settings=method.settings,
            remember_keys=method.remember_keys,
            preset=config.preset,
            critical_layers=config.critical_layers,
            corpus=config.corpus,
            corpus_tokens=config.corpus_tokens,
            chat=config.chat,
            precision=config.precision,
            seed=plan.seed,
            optimize=self.targets,
        )

    def _session(self, plan: Plan, editor: Editor) -> Session:
        # Empty, if a method had failed and the process was killed before it said so.
        if plan.directory.exists() and any(plan.directory.iterdir()):
            return Session(plan.directory)
        plan.directory.parent.mkdir(parents=True, exist_ok=True)
        return Session.create(plan.directory, editor, plan.batches)

    def _before(self, plan: Plan, todo: Sequence[Measure]) -> None:
        """Measure the unedited model, once for all methods."""
        plan.unedited.mkdir(parents=True, exist_ok=True)
        for measure in todo:
            try:
                self._keep(plan, measure, Moment(When.BEFORE, plan.facts, range(len(plan.facts))), plan.unedited)
            except ValueError as error:  # which no method is to blame for
                raise RunError(f"{plan.dataset.name}: {measure.name} of the unedited model: {error}") from error

    def _after(self, plan: Plan, todo: Sequence[Measure], moment: Moment) -> None:
        """Measure what is due at a moment of the stream."""
        folder = plan.directory / "measured"
        folder.mkdir(exist_ok=True)
        for measure in todo:
            if measure.due(moment):
                self._keep(plan, measure, moment, folder)

    def _keep(self, plan: Plan, measure: Measure, moment: Moment, folder: Path) -> None:
        """Measure, unless the file is there."""
        path = folder / f"{moment.name}.{measure.name}"
        if Measured.exists(path):
            return
        end = folder / f"{When.END.value}.{measure.name}"
        if moment.when is When.WRITTEN and moment.edits == len(plan.facts) and Measured.exists(end):
            take_over(end, path, moment)  # nothing was edited between the two
            return
        before = moment.when is When.BEFORE
        found = measure.measure(self.lm, moment.facts, None if before else plan.unedited / f"before.{measure.name}")
        label = "" if before else plan.method.label

        names = fact_names(plan.facts)

        def named(index: int | None) -> dict[str, Any]:
            if index is None:
                return {"batch": None, "place": None, "fact": None}
            place = moment.places[index]
            return {"batch": 1 + place // plan.batch_size, "place": place, "fact": names[place]}

        about: dict[str, Any] = {
            "label": label,
            "dataset": plan.dataset.name,
            "seed": plan.seed,
            "when": moment.when.value,
            "edits": moment.edits,
        }
        rows = [
            ResultRow(**about, **named(index), metric=metric, value=value) for index, metric, value in found.numbers
        ]
        found.save(path, rows, [{**named(index), **text} for index, text in found.texts])
        self.tell(f"{plan.name}: measured {measure.name}, {moment.name}")

    def _finish(self, plan: Plan, editor: Editor, session: Session) -> None:
        stages: dict[str, float] = {}
        for batch in session.finished:
            for stage, took in batch.seconds.items():
                stages[stage] = stages.get(stage, 0.0) + took
        record = {
            **_about(plan),
            "settings": editor.settings,
            "seconds": stages,
            "shared_seconds": math.fsum(_shared(plan).values()),
            "bytes": editor.patch.num_bytes,
        }
        write_json(plan.directory / "row.json", record)


def _note_shared(plan: Plan, number: int, seconds: float) -> None:
    if seconds:
        write_json(plan.directory / _SHARED, {**_shared(plan), str(number): seconds})


def _about(plan: Plan) -> dict[str, Any]:
    return {
        "label": plan.method.label,
        "method": plan.method.name,
        "dataset": plan.dataset.name,
        "seed": plan.seed,
        "facts": len(plan.facts),
    }


def _written(plan: Plan, number: int) -> Moment:
    """The moment after a batch, from 1."""
    first = plan.batch_size * (number - 1)
    facts = plan.batches[number - 1]
    edits = first + len(facts)
    return Moment(When.WRITTEN, facts, range(first, edits), edits, number)


def _end(plan: Plan) -> Moment:
    """The moment after the last batch, with the facts that are in force: not those that a later one has replaced."""
    places = sorted({fact.key: place for place, fact in enumerate(plan.facts)}.values())
    return Moment(When.END, [plan.facts[place] for place in places], places, len(plan.facts))


def _shared(plan: Plan) -> dict[str, float]:
    """What the value targets of each batch took that had been optimized before, in seconds."""
    file = plan.directory / _SHARED
    found: dict[str, float] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return found


def _written_about(config: RunConfig, plans: Iterable[Plan]) -> set[Fact]:
    """The facts that texts are written for."""
    text = config.evaluate.text
    return set() if text is None else {fact for plan in plans for fact in plan.facts[: text.facts]}


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _logged(directory: RunDirectory, say: Say) -> Iterator[Say]:
    """Also write every line to the run's log, with the time."""
    with (directory.path / "log.txt").open("a", encoding="utf-8") as log:

        def tell(line: str) -> None:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")
            log.flush()
            say(line)

        yield tell


# By the name under which a package is imported: how pip calls it.
PACKAGES = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "sklearn": "scikit-learn",
}


def check_extra(what: str) -> None:
    """Raise ImportError unless the packages of the extra `runs` are installed.

    Args:
        what: What they are needed for, as "a run".
    """
    absent = [package for name, package in PACKAGES.items() if find_spec(name) is None]
    if absent:
        raise ImportError(f"{what} needs {', '.join(absent)}; pip install 'factpatch[runs]'.")
