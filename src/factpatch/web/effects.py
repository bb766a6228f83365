"""Side effects: what the edits in force did to everything else, as traffic lights with the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from factpatch.data import demo_facts
from factpatch.evaluation.capability import capability, load_items
from factpatch.evaluation.hidden_states import HiddenShift, hidden_states
from factpatch.evaluation.perplexity import perplexity
from factpatch.evaluation.probabilities import Request, score
from factpatch.evaluation.tasks import TASKS
from factpatch.facts import Fact, Neighbor
from factpatch.lab.tracing.locate import TraceSettings, locate
from factpatch.lab.tracing.prompts import Prompt
from factpatch.lab.tracing.trace import Trace
from factpatch.model.language_model import LanguageModel
from factpatch.support.progress import bar

STATES = 40
"""Of how many prompts the inner states are compared."""
ITEMS = 40
"""How many items of a capability task are asked."""


@dataclass(frozen=True)
class Effect:
    """One measure of both models."""

    term: str
    """As in the glossary."""
    what: str
    values: tuple[str, str]
    """Of the original and of the edited model, in words."""
    change: str
    cost: float
    """What the light shows: 0 for no change."""
    limits: tuple[float, float]
    """Up to the first the light is green, up to the second yellow, and red above."""

    @property
    def light(self) -> str:
        """The color, which the page also writes as a word."""
        if not self.cost <= self.limits[1]:  # what is not a number, too
            return "red"
        return "green" if self.cost <= self.limits[0] else "yellow"

    @property
    def word(self) -> str:
        """The light in words."""
        return {"green": "fine", "yellow": "worth a look", "red": "much"}[self.light]


def effects(
    original: LanguageModel, edited: LanguageModel, layers: Sequence[int], facts: Sequence[Fact], data: Path | None
) -> list[Effect]:
    """Measure both models on what was not edited.

    Args:
        original: The unedited model, and `edited` with the edits in force.
        layers: The layers that were written.
        facts: The facts in force; questions about their subjects are left out.
        data: A folder with the items of capability tasks, if there is one.

    Raises:
        ImportError: scikit-learn is not installed, and there are tasks.
        ValueError: An item cannot be read.
    """
    asked = unrelated(facts)
    return [
        _perplexity(original, edited),
        _answers(original, edited, asked),
        *([] if data is None else _tasks(original, edited, data)),
        _drift(original, edited, max(layers), [one.prompt for one in asked[:STATES]]),
    ]


def unrelated(facts: Sequence[Fact]) -> list[Neighbor]:
    """Questions of the shipped facts' neighbors that name no subject of some facts."""
    subjects = [fact.subject.casefold() for fact in facts]
    every = dict.fromkeys(neighbor for fact in demo_facts() for neighbor in fact.neighbors)
    return [one for one in every if not any(subject in one.prompt.casefold() for subject in subjects)]


def _perplexity(original: LanguageModel, edited: LanguageModel) -> Effect:
    found = []
    for name, lm in (("original", original), ("edited", edited)):
        with bar(f"measuring the perplexity of the {name} model", None):
            found.append(perplexity(lm))
    rise = 100 * (found[1] / found[0] - 1)
    what = "on a text that the package ships"
    values = f"{found[0]:.2f}", f"{found[1]:.2f}"
    return Effect("perplexity", what, values, f"{rise:+.1f} %", rise, (2.0, 10.0))


def _answers(original: LanguageModel, edited: LanguageModel, asked: Sequence[Neighbor]) -> Effect:
    requests = [Request(one.prompt, one.target_true) for one in asked]
    right = []
    for name, lm in (("original", original), ("edited", edited)):
        with bar(f"asking the {name} model other questions", len(requests)) as advance:
            right.append([found.greedy for found in score(lm, requests, advance)])
    lost = sum(was and not now for was, now in zip(*right, strict=True))
    values = f"{sum(right[0])} of {len(asked)}", f"{sum(right[1])} of {len(asked)}"
    share = 100 * lost / max(1, sum(right[0]))
    return Effect("capability", "questions about other things", values, f"{lost} lost", share, (3.0, 10.0))


def _tasks(original: LanguageModel, edited: LanguageModel, data: Path) -> list[Effect]:
    made = []
    for task in (task for task in TASKS.values() if (data / task.file).is_file()):
        items, found = load_items(task, data), []
        for name, lm in (("original", original), ("edited", edited)):
            with bar(f"asking the {name} model items of {task.name}", None):
                done = capability(lm, task, items, limit=ITEMS, generate=False)
                found.append(done.metrics()["likelihood"].accuracy)
        change = found[1] - found[0]
        values = f"{found[0]:.0f} % right", f"{found[1]:.0f} % right"
        made.append(
            Effect("capability", f"items of {task.name}", values, f"{change:+.0f} points", -change, (3.0, 10.0))
        )
    return made


def _drift(original: LanguageModel, edited: LanguageModel, layer: int, prompts: Sequence[str]) -> Effect:
    with bar("comparing inner states", None):
        states = [hidden_states(lm, prompts, layer) for lm in (original, edited)]
    shift = HiddenShift.between(*states)
    what = f"of {shift.prompts} other prompts, after layer {layer}"
    share = 100 * shift.relative_shift
    return Effect("drift", what, ("", f"CKA {shift.cka:.4f}"), f"{share:.1f} % of their size", share, (3.0, 10.0))


@dataclass(frozen=True)
class HeatMap:
    """Where a fact is kept: a line for each token, a cell for each layer."""

    title: str
    answer: str
    """What the model says, whose probability returns."""
    clean: float
    corrupted: float
    lines: tuple[tuple[str, bool, tuple[float, ...]], ...]
    """A token, whether it is of the subject, and for each layer the share of the effect that returns, 0 to 1."""


def traced(models: Sequence[tuple[str, LanguageModel]], fact: Fact) -> list[HeatMap]:
    """Trace a fact in some models, each with a title, for whatever each says.

    Raises:
        ValueError: The fact cannot be traced.
    """
    settings = TraceSettings(kinds=("states",), samples=5)
    prompt = Prompt(fact.text, fact.subject, None, fact.subject_start)
    return [_heat_map(title, locate(lm, [prompt], settings, progress=True).traces[0]) for title, lm in models]


def _heat_map(title: str, trace: Trace) -> HeatMap:
    whole = trace.total_effect

    def share(value: float) -> float:
        return min(max(value / whole, 0.0), 1.0) if whole > 0 and math.isfinite(value) else 0.0

    table = trace.indirect_effect("states").tolist()
    lines = tuple(
        (token, place in trace.subject, tuple(map(share, effects)))
        for place, (token, effects) in enumerate(zip(trace.tokens, table, strict=True))
    )
    return HeatMap(title, trace.answer, trace.clean, trace.corrupted, lines)
