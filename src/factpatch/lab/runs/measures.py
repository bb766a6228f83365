"""The measurements of a run, one class each; `measures` lists those that its configuration asks for."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from factpatch.data.known import KnownFact
from factpatch.data.references import ReferenceTexts, Tfidf
from factpatch.evaluation.capability import capability
from factpatch.evaluation.generation import generate_texts
from factpatch.evaluation.hidden_states import HiddenShift, hidden_states
from factpatch.evaluation.metrics import (
    PROBES,
    FactMetric,
    comparable,
    fact_metrics,
    fact_names,
    mean_or_none,
    percent,
    summary,
)
from factpatch.evaluation.overlap import edited_neighbors
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.probes import read_probes
from factpatch.evaluation.questions import answers as free_answers
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.tasks import Item, task_named
from factpatch.evaluation.text import GREEDY, text_metrics
from factpatch.evaluation.verify import read_facts, verify
from factpatch.facts import Fact
from factpatch.lab.runs.config import CapabilityConfig, CurveConfig, RunConfig, Sampling, TextConfig
from factpatch.lab.runs.inputs import Inputs
from factpatch.lab.runs.plan import Moment, Plan
from factpatch.lab.runs.rows import ResultRow, When, load_rows, write_rows
from factpatch.model.language_model import LanguageModel
from factpatch.support.files import atomic_write

T = TypeVar("T")
UNTOUCHED = "specificity_untouched"
"""Specificity over the neighbors whose answer is not itself edited in the run."""

_SAMPLINGS: dict[Sampling, tuple[str, int]] = {"top-k": ("", 5), "greedy": (GREEDY, 1)}
"""What the metrics' names begin with, and of how many most probable tokens each is drawn."""

Number = tuple[int | None, str, float | None]
"""The index of a fact among those that were asked about, or None; a metric; its value."""
Text = tuple[int | None, dict[str, Any]]
"""The index likewise; what the model wrote."""


@dataclass(frozen=True)
class Measured:
    """The outcome of one measurement."""

    numbers: Sequence[Number]
    texts: Sequence[Text] = ()
    """What is worth keeping of what the model wrote."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What later measurements compare with."""

    def keep(self, path: Path, plan: Plan, moment: Moment) -> None:
        """Save a measurement of a moment, as `save`."""
        label = "" if moment.when is When.BEFORE else plan.method.label
        about = (label, plan.dataset.name, plan.seed, moment.when.value, moment.edits)

        def named(index: int | None) -> dict[str, Any]:
            return plan.named(None if index is None else moment.places[index])

        rows = [ResultRow(*about, **named(index), metric=metric, value=value) for index, metric, value in self.numbers]
        save(path, rows, [{**named(index), **text} for index, text in self.texts], self.tensors)


def save(
    path: Path, rows: Sequence[ResultRow], texts: Sequence[dict[str, Any]] = (), tensors: Mapping[str, Tensor] = {}
) -> None:
    """Write a measurement to files that begin like `path`; the rows come last and mark the rest as complete."""
    if texts:
        lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
        content = lines.encode("utf-8", "surrogatepass")
        atomic_write(_file(path, "jsonl"), lambda draft: draft.write_bytes(content))
    if tensors:
        atomic_write(_file(path, "safetensors"), lambda draft: save_file(dict(tensors), draft))
    write_rows(_file(path, "parquet"), rows)


def is_saved(path: Path) -> bool:
    """Whether a measurement was saved under this name."""
    return _file(path, "parquet").is_file()


def save_part(source: Path, target: Path, moment: Moment) -> None:
    """Save the part of a measurement that is about the model and one batch as a measurement right after that batch."""
    of_moment = (None, moment.batch)
    rows = [replace(row, when=moment.when.value) for row in load_rows(_file(source, "parquet"))]
    texts = texts_at(_file(source, "jsonl"))
    save(
        target, [row for row in rows if row.batch in of_moment], [text for text in texts if text["batch"] in of_moment]
    )


def tensors_at(path: Path) -> dict[str, Tensor]:
    """The tensors that a measurement saved."""
    tensors: dict[str, Tensor] = load_file(_file(path, "safetensors"))
    return tensors


def texts_at(file: Path) -> list[dict[str, Any]]:
    """The answers or texts of a measurement; none if there is no such file."""
    content = file.read_text("utf-8", "surrogatepass") if file.is_file() else ""
    # Not splitlines(): a model also writes characters such as U+2028.
    return [json.loads(line) for line in content.split("\n") if line]


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


class Measure(ABC):
    """One thing that is measured."""

    name: ClassVar[str]
    """As used in file names."""

    def due(self, moment: Moment) -> bool:
        """Whether it is measured at a moment after the first batch; the unedited model is always measured."""
        return moment.when is When.END

    def places(self, plan: Plan, moment: Moment) -> Sequence[int]:
        """Which facts it asks about at a moment, by their places."""
        return moment.places

    @abstractmethod
    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        """Measure the model as it is.

        Args:
            facts: Those of `places`.
            unedited: Where the same measurement of the unedited model is; None if this is that one.
        """


@dataclass(frozen=True)
class Facts(Measure):
    """What the model says of the facts, of their paraphrases and neighbors; on the way, of those of the last batch."""

    written: bool
    generation: bool
    edited: Mapping[Fact, tuple[Fact | None, ...]]
    """For each fact of the run which other one edits the answer of each of its neighbors."""
    name = "facts"

    def due(self, moment: Moment) -> bool:
        return moment.when is not When.WRITTEN or self.written

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        found = verify(lm, None, facts, answers=self.generation)
        answers = [(index, answer.to_dict()) for index, reading in enumerate(found.after) for answer in reading.answers]
        return Measured([*_numbers(facts, found.rows()), *self._untouched(facts, found.after)], answers)

    def _untouched(self, facts: Sequence[Fact], readings: Sequence[Reading]) -> Iterator[Number]:
        for index, (fact, reading) in enumerate(zip(facts, readings, strict=True)):
            probes = zip(reading.neighbors, self.edited[fact], strict=True)
            kept = mean_or_none(probe.prefers_true for probe, editor in probes if editor is None)
            yield index, UNTOUCHED, percent(kept if comparable(fact) else None)


@dataclass(frozen=True)
class Probes(Measure):
    """What the model says beside the facts."""

    pool: tuple[Fact, ...]
    """All facts of the run, among whose objects the model chooses."""
    name = "probes"

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        readings = [Reading(beside=one) for one in read_probes(lm, facts, self.pool)]
        rows = [row for row in fact_metrics(facts, readings) if row.metric in PROBES]
        texts = [
            (index, answer.to_dict())
            for index, beside in enumerate(one.beside for one in readings)
            if beside is not None
            for answer in beside.answers
        ]
        return Measured(_numbers(facts, rows), texts)


@dataclass(frozen=True)
class Perplexity(Measure):
    """Perplexity on ordinary text."""

    text: str
    curve: CurveConfig | None = None
    """Where else it is measured."""
    name = "perplexity"

    def due(self, moment: Moment) -> bool:
        return super().due(moment) or _on_curve(self.curve, moment)

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        return Measured([(None, "perplexity", perplexity(lm, self.text))])


@dataclass(frozen=True)
class Texts(Measure):
    """What the model writes about the first facts' subjects: fluency and consistency."""

    config: TextConfig
    about: frozenset[Fact]
    """The first facts of the run."""
    seed: int
    references: ReferenceTexts | None
    tfidf: Tfidf | None
    name = "texts"

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        # At the end without those that were replaced, and without others in their place.
        chosen = list(takewhile(self.about.__contains__, facts))
        given = None if self.references is None else [self.references.for_fact(fact) for fact in chosen]
        prompts = [fact.generation_prompts for fact in chosen]
        numbers: list[Number] = []
        texts: list[Text] = []
        for sampling in self.config.sampling:
            prefix, top_k = _SAMPLINGS[sampling]
            written = generate_texts(lm, prompts, max_new_tokens=self.config.tokens, top_k=top_k, seed=self.seed)
            numbers += _numbers(chosen, text_metrics(chosen, written, given, self.tfidf, prefix))
            texts += [
                (index, {"sampling": sampling, "prompt": one.prompt, "said": one.said})
                for index, some in enumerate(written)
                for one in some
            ]
        return Measured(numbers, texts)


@dataclass(frozen=True)
class Capability(Measure):
    """How well the model does tasks that the edit has nothing to do with."""

    config: CapabilityConfig
    items: Mapping[str, Sequence[Item]]
    curve: CurveConfig | None = None
    """Where else it is measured."""
    name = "capability"

    def due(self, moment: Moment) -> bool:
        every = self.config.every
        return super().due(moment) or (every is not None and moment.passed(every)) or _on_curve(self.curve, moment)

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        numbers: list[Number] = []
        answers: list[Text] = []
        for name, items in self.items.items():
            found = capability(lm, task_named(name), items, limit=self.config.limit)
            for way, result in found.metrics().items():
                numbers += [(None, f"{name}.{way}.{key}", float(value)) for key, value in asdict(result).items()]
            answers += [(None, {"task": name, **answered.to_dict()}) for answered in found.rows]
        return Measured(numbers, answers)


@dataclass(frozen=True)
class Curve(Measure):
    """What the model says of the first, the middle and the last facts in force, on the way: means, and no single facts.

    However long the session, a point costs as much: at most three times so many facts are asked about.
    """

    config: CurveConfig
    name = "curve"

    def due(self, moment: Moment) -> bool:
        return super().due(moment) or _on_curve(self.config, moment)

    def places(self, plan: Plan, moment: Moment) -> Sequence[int]:
        # Of the unedited model all facts count, so that it is asked what the end is asked.
        known = plan.in_force(len(plan.facts) if moment.when is When.BEFORE else moment.edits)
        return sorted({place for part in thirds(known, self.config.facts).values() for place in part})

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        readings = read_facts(lm, facts, answers=False)
        if self.config.generation:
            answered = free_answers(lm, facts, only=("prompt",))
            readings = [replace(one, answers=said) for one, said in zip(readings, answered, strict=True)]
        pairs = list(zip(facts, readings, strict=True))
        numbers: list[Number] = []
        for part, some in {**thirds(pairs, self.config.facts), "all": pairs}.items():
            means = summary([fact for fact, _ in some], [reading for _, reading in some])
            numbers += [(None, f"{self.name}.{part}.{metric}", value) for metric, value in means.items()]
        return Measured(numbers)


def thirds(items: Sequence[T], count: int) -> dict[str, Sequence[T]]:
    """The first, the middle and the last `count` items, which overlap where there are few.

    Of the items that are in any part, the parts are the same again.
    """
    start = max(0, (len(items) - count) // 2)
    return {"first": items[:count], "middle": items[start : start + count], "last": items[-count:]}


def _on_curve(curve: CurveConfig | None, moment: Moment) -> bool:
    return curve is not None and moment.when is When.WRITTEN and curve.due(moment.earlier, moment.edits)


@dataclass(frozen=True)
class Drift(Measure):
    """How far the hidden states of factual prompts moved at the last critical layer."""

    prompts: Sequence[KnownFact]
    layer: int
    name = "hidden_states"

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        ends = [fact.subject_end for fact in self.prompts]
        states = hidden_states(lm, [fact.prompt for fact in self.prompts], self.layer, ends).float().cpu()
        if unedited is None:
            # Refuses what nothing can be compared with, before anything is edited.
            HiddenShift.between(states, states)
            return Measured([], tensors={"states": states})
        if not bool(states.isfinite().all()):  # a model that collapsed
            return Measured([(None, f"drift.{field.name}", None) for field in fields(HiddenShift)])
        shift = asdict(HiddenShift.between(tensors_at(unedited)["states"], states))
        return Measured([(None, f"drift.{key}", float(value)) for key, value in shift.items()], (), {"states": states})


def _numbers(facts: Sequence[Fact], rows: Sequence[FactMetric]) -> list[Number]:
    indices = {name: index for index, name in enumerate(fact_names(facts))}
    return [(indices[row.fact], row.metric, row.value) for row in rows]


def measures(config: RunConfig, inputs: Inputs, facts: Sequence[Fact], seed: int, last_layer: int) -> list[Measure]:
    """What a configuration asks for, of a run that edits these facts, the last critical layer being `last_layer`."""
    wanted = config.evaluate
    edited = dict(zip(facts, edited_neighbors(facts), strict=True))
    found: list[Measure] = [Facts(wanted.written, wanted.generation, edited)]
    if wanted.probes:
        found.append(Probes(tuple(facts)))
    if wanted.perplexity:
        found.append(Perplexity(inputs.text, wanted.curve))
    if wanted.text is not None:
        about = frozenset(facts[: wanted.text.facts])
        found.append(Texts(wanted.text, about, seed, inputs.references, inputs.tfidf))
    if wanted.capability is not None:
        found.append(Capability(wanted.capability, inputs.items, wanted.curve))
    if wanted.curve is not None:
        found.append(Curve(wanted.curve))
    if wanted.drift is not None:
        found.append(Drift(inputs.prompts, last_layer))
    return found
