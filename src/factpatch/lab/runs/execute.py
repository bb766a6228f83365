"""Carry a run out: edit batch after batch, measure on the way, resume where a killed process stopped.

Every patch and every measurement is a file of its own that appears whole. What exists is not done again, and the rest
is done on the weights that it belongs to, which the session's patches bring back bit for bit. So a run that was killed
ends with the numbers of one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from factpatch.data.reading import DataFileError
from factpatch.data.references import why_no_references
from factpatch.edit_report import check_facts
from factpatch.editor import Editor
from factpatch.evaluation.budget import Budget, BudgetError, Meter
from factpatch.evaluation.tasks import task_named
from factpatch.facts import Fact
from factpatch.journal import SessionError
from factpatch.lab.rivals.start import start
from factpatch.lab.runs.directory import RunDirectory, RunError
from factpatch.lab.runs.inputs import Inputs
from factpatch.lab.runs.lines import EditorLine, Line, RivalLine
from factpatch.lab.runs.measures import Measure, is_saved, measures, save_part
from factpatch.lab.runs.pace import Pace
from factpatch.lab.runs.plan import Moment, Plan
from factpatch.lab.runs.rows import When
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.model.memory import FAILURES
from factpatch.model.weights import model_hash
from factpatch.presets.preset import Preset, preset_for
from factpatch.statistics.second_moment import CorpusError
from factpatch.support.files import write_json
from factpatch.values.contexts import without_trained
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
        ImportError: A package of the extra `runs` is not installed, or one that a rival needs.
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
        for rival in filter(None, (plan.method.rival for plan in left)):
            rival.check_installed()
        directory.check_conditions(other_versions)
        inputs = Inputs.load(config, {fact for plan in left for fact in plan.facts[: text.facts if text else 0]})
        if text is not None and inputs.references is None:
            log(f"{why_no_references()}, so consistency will be missing")
        lm = load_language_model(config.model, device=config.device, dtype=config.dtype, chat=config.chat)
        weights = model_hash(lm.model)
        directory.check_model(weights)
        targets = SharedTargets(directory.path / "targets", weights)
        runner = _Runner(directory, lm, targets, inputs, log, Pace([len(plan.batches) for plan in left]))
        lines = runner.lines(left)
        for plan in left:
            runner.pace.begin()
            try:
                runner.run(lines.pop(0))
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

    def lines(self, plans: Sequence[Plan]) -> list[Line]:
        """What edits each line of the table, before the first hour of work.

        Raises:
            ImportError: A package that a rival needs is not installed.
            RunError: Settings or facts do not fit the model.
        """
        _ = self.meter  # the model is unedited now
        found, checked = [], set()
        for plan in plans:
            try:
                found.append(self._line(plan))
                facts = plan.dataset.name, plan.seed, found[-1].contexts
                if facts not in checked:
                    check_facts(self.lm, plan.batches, found[-1].contexts)
            except (ValueError, OSError) as error:
                raise RunError(f"{plan.name}: {error}") from error
            checked.add(facts)
        return found

    def _line(self, plan: Plan) -> Line:
        if plan.method.rival is None:
            recipe = self.directory.config.recipe(plan.method, plan.seed)
            return EditorLine(plan, self.meter, Editor(self.lm, recipe=recipe, optimize=self.targets), self.targets)
        settings = {**self._preset.settings_of_rival(plan.method.name), **plan.method.settings}
        return RivalLine(
            plan, self.meter, start(plan.method.rival.with_settings(settings), self.lm, self.layers, plan.seed)
        )

    @cached_property
    def meter(self) -> Meter | None:
        """Measures what edits cost, by the unedited model; None without a budget."""
        config, inputs = self.directory.config, self.inputs
        if not config.budgeted:
            return None
        wanted = config.evaluate.capability if config.min_capability is not None else None
        tasks = [(task_named(name), inputs.items[name]) for name in wanted.tasks] if wanted else []
        try:
            budget = Budget(
                config.max_perplexity, config.min_capability, inputs.text, tasks, wanted.limit if wanted else None
            )
            return Meter(budget, self.lm)
        except ValueError as error:
            raise RunError(f"{error}") from error

    @cached_property
    def _preset(self) -> Preset:
        return preset_for(self.lm, self.directory.config.preset)

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The critical layers, which are the same for every line."""
        layers = self.directory.config.critical_layers or tuple(self._preset.layers_for(self.lm.num_layers))
        self.lm.check_layers(layers)
        return layers

    @cached_property
    def _contexts(self) -> frozenset[str]:
        """The contexts of all editing methods of the run, with one seed: what is trained in them depends on none."""
        config = self.directory.config
        methods = [method for method in config.methods if method.rival is None]
        editors = (Editor(self.lm, recipe=config.recipe(method, config.seeds[0])) for method in methods)
        return frozenset(context for editor in editors for context in editor.contexts)

    def _asked(self, plan: Plan) -> list[Fact]:
        """The facts of a line as they are asked about: a question that any method of the run trains, none is asked.

        So all methods and the unedited model are asked the same, whichever of them are finished already.
        """
        return without_trained(plan.facts, self._contexts)

    def run(self, line: Line) -> None:
        """Edit and measure one line of the table; the model is as it was afterwards."""
        plan = line.plan
        todo = measures(self.directory.config, self.inputs, self._asked(plan), plan.seed, self.layers[-1])
        self._measure_unedited(plan, todo)
        with line.opened():
            self.pace.skip(line.done)
            while line.done < len(plan.batches) and not line.stopped:
                self._measure_written(line, todo)
                self._edit(line)
            # The end before the last batch, whose numbers are among those of the end.
            if line.done:
                self._measure(line, todo, plan.end(line.done))
            self._measure_written(line, todo)
            write_json(plan.directory / "row.json", {**plan.about, **line.record(), **_cost(line)})

    def _edit(self, line: Line) -> None:
        """Edit the next batch, or stop before it."""
        name, number = line.plan.name, len(line.plan.batches)
        try:
            line.edit()
        except BudgetError as error:
            self.pace.give_up()
            self.log(f"{name}: stopped after batch {line.done} of {number}: with the next one, {error}")
        else:
            self.pace.advance()
            self.log(f"{name}: batch {line.done} of {number} edited; {self.pace.left()}")

    def _measure_unedited(self, plan: Plan, todo: Sequence[Measure]) -> None:
        """Measure the unedited model, once for all methods."""
        plan.unedited.mkdir(parents=True, exist_ok=True)
        for measure in todo:
            try:
                self._keep(plan, self.lm, measure, plan.before, plan.unedited)
            except ValueError as error:  # which no method is to blame for
                raise RunError(f"{plan.dataset.name}: {measure.name} of the unedited model: {error}") from error

    def _measure_written(self, line: Line, todo: Sequence[Measure]) -> None:
        """Measure what is due after the last batch; a process that was killed may have edited it."""
        if line.done:
            self._measure(line, todo, line.plan.written(line.done))

    def _measure(self, line: Line, todo: Sequence[Measure], moment: Moment) -> None:
        """Measure what is due at a moment of the stream."""
        folder = line.plan.directory / "measured"
        folder.mkdir(exist_ok=True)
        for measure in todo:
            if measure.due(moment):
                self._keep(line.plan, line.lm, measure, moment, folder)

    def _keep(self, plan: Plan, lm: LanguageModel, measure: Measure, moment: Moment, folder: Path) -> None:
        """Measure and save, unless that was done before."""
        path, end = folder / f"{moment.name}.{measure.name}", folder / f"{When.END.value}.{measure.name}"
        if is_saved(path):
            return
        if moment.when is When.WRITTEN and moment.edits == len(plan.facts) and is_saved(end):
            save_part(end, path, moment)  # nothing was edited between the two
            return
        unedited = None if moment.when is When.BEFORE else plan.unedited / f"{When.BEFORE.value}.{measure.name}"
        asked = replace(moment, places=measure.places(plan, moment))
        facts = self._asked(plan)
        measure.measure(lm, [facts[place] for place in asked.places], unedited).keep(path, plan, asked)
        self.log(f"{plan.name}: measured {measure.name}, {moment.name}")


def _cost(line: Line) -> dict[str, Any]:
    """What the record of a line says of its budget: what the edits cost, and where and why it stopped."""
    found: dict[str, Any] = {"spent": dict(line.spent)} if line.spent else {}
    if line.stopped:
        edited = line.plan.written(line.done).edits if line.done else 0
        found["stopped"] = {"edited": edited, "reason": line.stopped}
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
