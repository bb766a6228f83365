"""The measurements of a run, one class each; `measures` lists those that its configuration asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from factpatch.data.known import load_known_facts
from factpatch.data.references import ReferenceTexts, demo_references
from factpatch.data.sources import resolve_data
from factpatch.data.tfidf import Tfidf
from factpatch.evaluation import metrics
from factpatch.evaluation.capability import capability, check_extra
from factpatch.evaluation.generation import generate_texts
from factpatch.evaluation.hidden_states import HiddenShift, hidden_states
from factpatch.evaluation.perplexity import held_out_text, perplexity
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.rows import Row, fact_names, text_rows
from factpatch.evaluation.tasks import task_named
from factpatch.evaluation.verify import verify
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.overlap import edited_neighbors
from factpatch.runs.config import CapabilityConfig, DriftConfig, RunConfig, TextConfig
from factpatch.runs.measure import Measure, Measured, Moment, Number, tensors_at
from factpatch.runs.rows import When

UNTOUCHED = "specificity_untouched"
"""Specificity over the neighbors whose answer is not itself edited in the run."""


def measures(config: RunConfig, facts: Sequence[Fact], seed: int, last_layer: int) -> list[Measure]:
    """What a configuration asks for.

    Args:
        facts: All that are edited.
        seed: Of the texts.
        last_layer: The last critical layer, whose hidden states are compared.
    """
    wanted = config.evaluate
    found: list[Measure] = [Facts(wanted.written, wanted.generation, tuple(facts))]
    if wanted.perplexity:
        found.append(Perplexity(None if wanted.perplexity is True else Path(wanted.perplexity)))
    if wanted.text is not None:
        found.append(Texts(wanted.text, seed))
    if wanted.capability is not None:
        found.append(Capability(wanted.capability))
    if wanted.drift is not None:
        found.append(Drift(wanted.drift, last_layer))
    return found


@dataclass(frozen=True)
class Facts:
    """What the model says of the facts, of their paraphrases and neighbors; on the way, of those of the last batch."""

    written: bool
    generation: bool
    edited: tuple[Fact, ...]
    """All facts of the run."""
    name: str = "facts"

    def due(self, moment: Moment) -> bool:
        return moment.when is not When.WRITTEN or self.written

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        found = verify(lm, None, facts, answers=self.generation)
        answers = [(place, answer.to_dict()) for place, reading in enumerate(found.after) for answer in reading.answers]
        return Measured([*_numbers(facts, found.rows()), *self._untouched(facts, found.after)], answers)

    def _untouched(self, facts: Sequence[Fact], readings: Sequence[Reading]) -> Iterator[Number]:
        editors = dict(zip(self.edited, edited_neighbors(self.edited), strict=True))
        for place, (fact, reading) in enumerate(zip(facts, readings, strict=True)):
            probes = zip(reading.neighbors, editors[fact], strict=True)
            yield place, UNTOUCHED, metrics.specificity([[probe.nlls for probe, editor in probes if editor is None]])


@dataclass(frozen=True)
class Perplexity:
    """Perplexity on ordinary text."""

    file: Path | None
    name: str = "perplexity"

    def due(self, moment: Moment) -> bool:
        return moment.when is When.END

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        text = held_out_text() if self.file is None else self.file.read_text("utf-8")
        return Measured([(None, "perplexity", perplexity(lm, text))])


@dataclass(frozen=True)
class Texts:
    """What the model writes about the first facts' subjects: fluency and consistency."""

    config: TextConfig
    seed: int
    name: str = "texts"

    def due(self, moment: Moment) -> bool:
        return moment.when is When.END

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        chosen = facts[: self.config.facts]
        references, tfidf = self._references(chosen)
        generations = generate_texts(
            lm,
            [fact.generation_prompts for fact in chosen],
            max_new_tokens=self.config.tokens,
            top_k=5 if self.config.sampling == "top-k" else 1,
            seed=self.seed,
        )
        given = None if references is None else [references.for_fact(fact) for fact in chosen]
        rows = text_rows(chosen, generations, given, tfidf)
        texts = [
            (place, {"prompt": one.prompt, "said": one.said}) for place, some in enumerate(generations) for one in some
        ]
        return Measured(_numbers(chosen, rows), texts)

    def _references(self, facts: Sequence[Fact]) -> tuple[ReferenceTexts | None, Tfidf | None]:
        chosen = self.config.references
        if chosen == "demo":
            own = demo_references()
            return own, Tfidf.fit([text for some in own.texts.values() for text in some])
        if chosen is not None:
            files = [Path(chosen) / name for name in ("attribute_snippets.json", "tfidf_vocab.json", "idf.npy")]
        else:
            try:
                files = [resolve_data(name) for name in ("attribute_snippets", "tfidf_vocab", "tfidf_idf")]
            except ValueError:  # not fetched
                return None, None
        return ReferenceTexts.load(files[0], facts), Tfidf.load(files[1], files[2])


@dataclass(frozen=True)
class Capability:
    """How well the model does tasks that the edit has nothing to do with."""

    config: CapabilityConfig
    name: str = "capability"

    def __post_init__(self) -> None:
        check_extra()

    def due(self, moment: Moment) -> bool:
        every = self.config.every
        return moment.when is When.END or (every is not None and moment.passed(every))

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        numbers: list[Number] = []
        answers: list[tuple[int | None, dict[str, Any]]] = []
        for name in self.config.tasks:
            task = task_named(name)
            items = task.load(self.config.data / f"glue_{name}.json")
            found = capability(lm, task, items, limit=self.config.limit)
            for way, result in found.metrics().items():
                numbers += [(None, f"{name}.{way}.{key}", float(value)) for key, value in asdict(result).items()]
            answers += [(None, {"task": name, **answered.to_dict()}) for answered in found.rows]
        return Measured(numbers, answers)


@dataclass(frozen=True)
class Drift:
    """How far the hidden states of factual prompts moved at the last critical layer."""

    config: DriftConfig
    layer: int
    name: str = "hidden_states"

    def due(self, moment: Moment) -> bool:
        return moment.when is When.END

    def measure(self, lm: LanguageModel, facts: Sequence[Fact], unedited: Path | None) -> Measured:
        known = load_known_facts(self.config.prompts, self.config.limit)
        ends = [fact.subject_end for fact in known]
        states = hidden_states(lm, [fact.prompt for fact in known], self.layer, ends).float().cpu()
        if unedited is None:
            return Measured([], tensors={"states": states})
        if not bool(states.isfinite().all()):  # a model that collapsed
            return Measured([(None, f"drift.{field.name}", None) for field in fields(HiddenShift)])
        shift = asdict(HiddenShift.between(tensors_at(unedited)["states"], states))
        return Measured([(None, f"drift.{key}", float(value)) for key, value in shift.items()], (), {"states": states})


def _numbers(facts: Sequence[Fact], rows: Sequence[Row]) -> list[Number]:
    places = {name: place for place, name in enumerate(fact_names(facts))}
    return [(places[row.fact], row.metric, row.value) for row in rows]
