"""Edit and measure the lines of a run's table, one after another, with a model in this process.

What exists is not done again, so the line of a process that was killed is continued, here or by another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from factpatch.data.reading import DataFileError
from factpatch.edit_report import check_facts
from factpatch.editor import Editor
from factpatch.evaluation.budget import Budget, BudgetError, Meter, Spent
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

Report = Callable[[str], None]


@dataclass
class Runner:
    """A model and all that a run needs besides."""

    directory: RunDirectory
    lm: LanguageModel
    weights: str
    """The hash of the unedited model."""
    inputs: Inputs
    log: Report
    pace: Pace
    known: Spent | None = None
    """What the budget measures of the unedited model, if another process has measured it."""

    @classmethod
    def load(
        cls, directory: RunDirectory, plans: Iterable[Plan], log: Report, pace: Pace, known: Spent | None = None
    ) -> Runner:
        """Read the inputs, then the model. The directory's lock is held, here or by the process that has begun this.

        Raises:
            ConfigError: An input cannot be read.
            RunError: The model is not the one that the run began with.
        """
        config, text = directory.config, directory.config.evaluate.text
        inputs = Inputs.load(config, {fact for plan in plans for fact in plan.facts[: text.facts if text else 0]})
        lm = load_language_model(config.model, device=config.device, dtype=config.dtype, chat=config.chat)
        weights = model_hash(lm.model)
        directory.check_model(weights)
        return cls(directory, lm, weights, inputs, log, pace, known)

    @cached_property
    def targets(self) -> SharedTargets:
        """The value targets that lines share."""
        return SharedTargets(self.directory.path / "targets", self.weights)

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
                found.append(self.line(plan))
                facts = plan.dataset.name, plan.seed, found[-1].contexts
                if facts not in checked:
                    check_facts(self.lm, plan.batches, found[-1].contexts)
            except (ValueError, OSError) as error:
                raise RunError(f"{plan.name}: {error}") from error
            checked.add(facts)
        return found

    def line(self, plan: Plan) -> Line:
        """What edits a line of the table; raises ValueError if its settings do not fit the model."""
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
            return Meter(budget, self.lm, self.known)
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

    def attempt(self, line: Line) -> None:
        """Edit and measure one line of the table; if its method cannot continue, that is its result.

        Raises:
            Exception: What no method is to blame for.
        """
        plan = line.plan
        try:
            with self.directory.at_work(plan):
                self._run(line)
        except FAILURES as error:
            # More memory may be free next time.
            if isinstance(error, (SessionError, DataFileError, RunError, torch.cuda.OutOfMemoryError)):
                raise
            if isinstance(error, CorpusError):
                raise RunError(f"{plan.name}: {error}") from error
            # A model that collapses is a result, and no reason to give up the other methods.
            plan.directory.mkdir(parents=True, exist_ok=True)
            write_json(plan.directory / "row.json", {**plan.about, "failed": str(error)})
            self.pace.give_up()
            self.log(f"{plan.name}: failed: {error}")

    def _run(self, line: Line) -> None:
        """Edit and measure; the model is as it was afterwards."""
        plan = line.plan
        todo = self.measure_unedited(plan)
        with line.opened():
            self.pace.skip(line.done)
            while line.done < len(plan.batches) and not line.stopped:
                self._measure_written(line, todo)
                self._edit(line)
            failed = ""
            if plan.method.mend and not line.stopped:
                self._measure_written(line, todo)
                failed = self._mend(line)
            # The end before the last batch, whose numbers are among those of the end.
            if line.done:
                self._measure(line, todo, plan.end(line.done))
            self._measure_written(line, todo)
            write_json(plan.directory / "row.json", {**plan.about, **line.record(), **_cost(line, failed)})

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

    def _mend(self, line: Line) -> str:
        """Edit again what does not hold, or stop before a batch of that; return why one cannot be edited, if so.

        What was edited until then is measured like the end of any other line.
        """
        try:
            line.mend()
        except BudgetError as error:
            self.log(f"{line.plan.name}: stopped while lost facts were edited again: with the next batch, {error}")
        except FloatingPointError as error:
            self.log(f"{line.plan.name}: failed while lost facts were edited again: {error}")
            return str(error)
        else:
            self.log(f"{line.plan.name}: mended")
        return ""

    def measure_unedited(self, plan: Plan) -> list[Measure]:
        """Measure the unedited model, once for all methods of a dataset and seed; return what is measured."""
        todo = measures(self.directory.config, self.inputs, self._asked(plan), plan.seed, self.layers[-1])
        plan.unedited.mkdir(parents=True, exist_ok=True)
        for measure in todo:
            try:
                self._keep(plan, self.lm, measure, plan.before, plan.unedited)
            except ValueError as error:  # which no method is to blame for
                raise RunError(f"{plan.dataset.name}: {measure.name} of the unedited model: {error}") from error
        return todo

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


def _cost(line: Line, failed: str = "") -> dict[str, Any]:
    """What the record of a line says of its budget, and where and why it stopped: by that, or since mending failed."""
    found: dict[str, Any] = {"spent": dict(line.spent)} if line.spent else {}
    if reason := line.stopped or failed:
        edited = line.plan.written(line.done).edits if line.done else 0
        mending = {"mending": True} if line.done == len(line.plan.batches) else {}
        found["stopped"] = {"edited": edited, **mending, "reason": reason}
    return found


@contextmanager
def logged(directory: RunDirectory, report: Report) -> Iterator[Report]:
    """Also write every line to the run's log, with the time; other processes may do so, too."""
    # Unbuffered, so that each line is written at once.
    with (directory.path / "log.txt").open("ab", buffering=0) as file:

        def log(line: str) -> None:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n".encode("utf-8", "surrogatepass"))
            report(line)

        yield log
