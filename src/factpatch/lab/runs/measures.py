"""The measurements of a run, one class each; `measures` lists those that its configuration asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from factpatch.data.known import KnownFact
from factpatch.data.references import ReferenceTexts, Tfidf
from factpatch.evaluation.capability import capability
from factpatch.evaluation.generation import generate_texts
from factpatch.evaluation.hidden_states import HiddenShift, hidden_states
from factpatch.evaluation.metrics import FactMetric, fact_names, mean_or_none, percent
from factpatch.evaluation.overlap import edited_neighbors
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.tasks import Item, task_named
from factpatch.evaluation.text import GREEDY, text_metrics
from factpatch.evaluation.verify import verify
from factpatch.facts import Fact
from factpatch.lab.runs.config import CapabilityConfig, RunConfig, Sampling, TextConfig
from factpatch.lab.runs.inputs import Inputs
from factpatch.lab.runs.rows import ResultRow, When, load_rows, write_rows
from factpatch.model.language_model import LanguageModel
from factpatch.support.files import atomic_write

UNTOUCHED = "specificity_untouched"
"""Specificity over the neighbors whose answer is not itself edited in the run."""

_SAMPLINGS: dict[Sampling, tuple[str, int]] = {"top-k": ("", 5), "greedy": (GREEDY, 1)}
"""What the metrics' names begin with, and of how many most probable tokens each is drawn."""


def measures(config: RunConfig, inputs: Inputs, facts: Sequence[Fact], seed: int, last_layer: int) -> list[Measure]:
    """What a configuration asks for.

    Args:
        inputs: What it names, read.
        facts: All that are edited.
        seed: Of the texts.
        last_layer: The last critical layer, whose hidden states are compared.
    """
    wanted = config.evaluate
    edited = dict(zip(facts, edited_neighbors(facts), strict=True))
    found: list[Measure] = [Facts(wanted.written, wanted.generation, edited)]
    if wanted.perplexity:
        found.append(Perplexity(inputs.text))
    if wanted.text is not None:
        about = frozenset(facts[: wanted.text.facts])
        found.append(Texts(wanted.text, about, seed, inputs.references, inputs.tfidf))
    if wanted.capability is not None:
        found.append(Capability(wanted.capability, inputs.items))
    if wanted.drift is not None:
        found.append(Drift(inputs.prompts, last_layer))
    return found


@dataclass(frozen=True)
class Facts:
    """What the model says of the facts, of their paraphrases and neighbors; on the way, of those of the last batch."""

    written: bool
    generation: bool
    edited: Mapping[Fact, tuple[Fact | None, ...]]
    """For each fact of the run which other one edits the answer of each of its neighbors."""
    name: str = "facts"

    def due(self, moment: Moment) -> bool:
        return moment.when is not When.WRITTEN or self.written

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        found = verify(lm, None, facts, answers=self.generation)
        answers = [(place, answer.to_dict()) for place, reading in enumerate(found.after) for answer in reading.answers]
        return Measured([*_numbers(facts, found.rows()), *self._untouched(facts, found.after)], answers)

    def _untouched(self, facts: Sequence[Fact], readings: Sequence[Reading]) -> Iterator[Number]:
        for place, (fact, reading) in enumerate(zip(facts, readings, strict=True)):
            probes = zip(reading.neighbors, self.edited[fact], strict=True)
            yield (
                place,
                UNTOUCHED,
                percent(mean_or_none(probe.prefers_true for probe, editor in probes if editor is None)),
            )


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on ordinary text."""

    text: str
    name: str = "perplexity"

    def due(self, moment: Moment) -> bool:
        return moment.when is When.END

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        return Measured([(None, "perplexity", perplexity(lm, self.text))])


@dataclass(frozen=True)
class Texts:
    """What the model writes about the first facts' subjects: fluency and consistency."""

    config: TextConfig
    about: frozenset[Fact]
    """The first facts of the run."""
    seed: int
    references: ReferenceTexts | None
    tfidf: Tfidf | None
    name: str = "texts"

    def due(self, moment: Moment) -> bool:
        return moment.when is When.END

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        # At the end without those that were replaced, and without others in their place.
        chosen = list(takewhile(self.about.__contains__, facts))
        given = None if self.references is None else [self.references.for_fact(fact) for fact in chosen]
        numbers: list[Number] = []
        texts: list[tuple[int | None, dict[str, Any]]] = []
        for sampling in self.config.sampling:
            prefix, top_k = _SAMPLINGS[sampling]
            generations = generate_texts(
                lm,
                [fact.generation_prompts for fact in chosen],
                max_new_tokens=self.config.tokens,
                top_k=top_k,
                seed=self.seed,
            )
            numbers += _numbers(chosen, text_metrics(chosen, generations, given, self.tfidf, prefix))
            texts += [
                (place, {"sampling": sampling, "prompt": one.prompt, "said": one.said})
                for place, some in enumerate(generations)
                for one in some
            ]
        return Measured(numbers, texts)


@dataclass(frozen=True)
class Capability:
    """How well the model does tasks that the edit has nothing to do with."""

    config: CapabilityConfig
    items: Mapping[str, Sequence[Item]]
    name: str = "capability"

    def due(self, moment: Moment) -> bool:
        every = self.config.every
        return moment.when is When.END or (every is not None and moment.passed(every))

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        numbers: list[Number] = []
        answers: list[tuple[int | None, dict[str, Any]]] = []
        for name, items in self.items.items():
            found = capability(lm, task_named(name), items, limit=self.config.limit)
            for way, result in found.metrics().items():
                numbers += [(None, f"{name}.{way}.{key}", float(value)) for key, value in asdict(result).items()]
            answers += [(None, {"task": name, **answered.to_dict()}) for answered in found.rows]
        return Measured(numbers, answers)


@dataclass(frozen=True)
class Drift:
    """How far the hidden states of factual prompts moved at the last critical layer."""

    prompts: Sequence[KnownFact]
    layer: int
    name: str = "hidden_states"

    def due(self, moment: Moment) -> bool:
        return moment.when is When.END

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
    places = {name: place for place, name in enumerate(fact_names(facts))}
    return [(places[row.fact], row.metric, row.value) for row in rows]


Number = tuple[int | None, str, float | None]
"""The place of a fact among those that were asked about, or None; a metric; its value."""


@dataclass(frozen=True)
class Moment:
    """A moment in the stream of edits, and the facts that are then asked about."""

    when: When
    facts: Sequence[Fact]
    places: Sequence[int]
    """Of each of them in the order of editing."""
    edits: int = 0
    """How many facts have been edited."""
    batch: int | None = None
    """The batch that was just written, from 1."""

    @property
    def name(self) -> str:
        """As used in file names."""
        return self.when.value if self.batch is None else f"{self.when.value}.{self.batch:04d}"

    def passed(self, every: int) -> bool:
        """Whether the last batch brought the number of edits to a multiple of `every`, or past it."""
        return self.edits // every > (self.edits - len(self.facts)) // every


@dataclass(frozen=True)
class Measured:
    """The outcome of one measurement."""

    numbers: Sequence[Number]
    texts: Sequence[tuple[int | None, dict[str, Any]]] = ()
    """What the model wrote, if it is worth keeping, with the place of the fact as in `Number`."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What later measurements compare with."""

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether a measurement was saved under this name."""
        return path.with_name(path.name + ".parquet").is_file()

    def save(self, path: Path, rows: Sequence[ResultRow], texts: Sequence[dict[str, Any]]) -> None:
        """Write everything beside `path`; the rows come last and say that the rest is there."""
        if texts:
            lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
            content = lines.encode("utf-8", "surrogatepass")
            atomic_write(path.with_name(path.name + ".jsonl"), lambda draft: draft.write_bytes(content))
        if self.tensors:
            atomic_write(path.with_name(path.name + ".safetensors"), lambda draft: save_file(self.tensors, draft))
        write_rows(path.with_name(path.name + ".parquet"), rows)


def take_over(source: Path, target: Path, moment: Moment) -> None:
    """Write a measurement of the model and of facts of one batch, from one of the same weights and of more facts.

    Args:
        source: The measurement that is there.
        target: Where the other one goes.
        moment: When that is, and which batch.
    """
    of_moment = (None, moment.batch)
    rows = load_rows(source.with_name(source.name + ".parquet"))
    texts = texts_at(source.with_name(source.name + ".jsonl"))
    Measured(()).save(
        target,
        [replace(row, when=moment.when.value) for row in rows if row.batch in of_moment],
        [text for text in texts if text["batch"] in of_moment],
    )


def tensors_at(path: Path) -> dict[str, Tensor]:
    """The tensors that a measurement saved."""
    tensors: dict[str, Tensor] = load_file(path.with_name(path.name + ".safetensors"))
    return tensors


class Measure(Protocol):
    """One thing that is measured."""

    @property
    def name(self) -> str:
        """As used in file names."""

    def due(self, moment: Moment) -> bool:
        """Whether it is measured at a moment after the first batch; the unedited model is always measured."""

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        """Measure the model as it is.

        Args:
            facts: Those of the moment.
            unedited: Where the same measurement of the unedited model is; None if this is that one.
        """


def texts_at(file: Path) -> list[dict[str, Any]]:
    """The answers or texts beside a measurement; none if there is no such file."""
    content = file.read_text("utf-8", "surrogatepass") if file.is_file() else ""
    # Not splitlines(): a model also writes characters such as U+2028.
    return [json.loads(line) for line in content.split("\n") if line]
