"""The paper's tables and figures as runs (arXiv:2502.03748, Section 5 and Appendices D to F), each a row of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from factpatch.lab.rivals.rival import RIVALS
from factpatch.lab.runs.config import RunConfig, config_from
from factpatch.methods import METHODS, method_named
from factpatch.strategies import Boundary, NullSpace
from factpatch.support.words import suggestion

Output = Literal["comparison", "improvements", "capability", "hidden_states", "curves"]

_EVEN = ("memit", "prune", "rect", "alphaedit")


@dataclass(frozen=True)
class Reproduction:
    """One table or figure of the paper."""

    title: str
    methods: tuple[str, ...]
    """Without BLUE; each also runs with it."""
    edits: int
    batch_size: int | None
    """Facts in a batch; None for all in one batch."""
    model: str
    """The model it shows, or the first of them."""
    outputs: tuple[Output, ...]
    """What is drawn up from the run."""
    evaluate: tuple[str, ...] = ()
    """What is measured besides the facts: `text`, `capability`, `drift`."""
    every: int | None = None
    """Edits between two measurements of capability."""


_TABLE = Reproduction(
    "Sequential batch editing", _EVEN, 2000, 100, "meta-llama/Meta-Llama-3-8B-Instruct", ("comparison",), ("text",)
)
_STATES = replace(_TABLE, title="Hidden states", outputs=("hidden_states",), evaluate=("drift",))

REPRODUCTIONS = {
    "table2": _TABLE,
    "table3": replace(_TABLE, title="Average improvement by BLUE", outputs=("comparison", "improvements")),
    "table4": replace(_TABLE, title="Batch editing", edits=10000, batch_size=None),
    "table5": replace(_TABLE, title="BLUE and the square-root spread", methods=("pmet",)),
    "figure6": replace(
        _TABLE, title="General capability", edits=3000, outputs=("capability",), evaluate=("capability",), every=500
    ),
    "figure7": _STATES,
    "figure9": replace(_STATES, model="EleutherAI/gpt-j-6b"),
    "figure10": replace(_STATES, model="openai-community/gpt2-xl"),
}


def reproduction_named(name: str) -> Reproduction:
    """Look up a table or a figure.

    Raises:
        ValueError: There is none of this name; the message suggests the nearest.
    """
    if name not in REPRODUCTIONS:
        raise ValueError(f"name={name!r}: not among {', '.join(REPRODUCTIONS)}.{suggestion(name, list(REPRODUCTIONS))}")
    return REPRODUCTIONS[name]


def config_for(
    what: Reproduction,
    datasets: Sequence[str],
    *,
    model: str | None = None,
    methods: Sequence[str] | None = None,
    edits: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    variant: str | None = None,
    effort: str = "standard",
    remember_keys: bool | None = None,
    text: dict[str, Any] | None = None,
    capability: dict[str, Any] | None = None,
    drift: dict[str, Any] | None = None,
    **others: Any,
) -> RunConfig:
    """The run that a table or a figure is drawn up from.

    Args:
        datasets: Files of facts, or names of published ones.
        methods: In place of the paper's, with and without BLUE by name; rivals too.
        edits: In place of the paper's.
        batch_size: In place of the paper's.
        variant: Of the model's preset, for every method.
        effort: How much work to make of a fact, for every method.
        remember_keys: Whether every method preserves the keys of earlier batches; by default as in the paper.
        text, capability, drift: Fields of `EvaluateConfig`'s sections, for those that this one measures.
        others: Further fields of `RunConfig`.
    """
    with_blue = {plain: blue for blue, plain in blue_pairs().items()}
    names = list(methods or [*what.methods, *(with_blue[name] for name in what.methods)])
    count = what.edits if edits is None else edits
    sections = {"text": text or {}, "drift": drift or {}, "capability": {**(capability or {}), "every": what.every}}
    return config_from(
        {
            "model": model or what.model,
            "methods": [
                {"name": name}
                if name in RIVALS
                else {"name": name, "variant": variant, "effort": effort, **_memory(name, remember_keys)}
                for name in names
            ],
            # The first ones if there are no more: a sample of all is all, in another order.
            "datasets": [{"facts": dataset, "limit": count, "sample": True, "distinct": True} for dataset in datasets],
            "batch_size": batch_size or what.batch_size or count,
            "seeds": [seed],
            "evaluate": {name: sections[name] for name in what.evaluate},
            **others,
        }
    )


def blue_pairs() -> dict[str, str]:
    """Each method with BLUE and the one it should improve on: they differ in the spread."""
    return {
        blue.name: plain.name
        for blue in METHODS.values()
        for plain in METHODS.values()
        if isinstance(blue.spread, Boundary)
        and blue == replace(plain, name=blue.name, spread=blue.spread, source=blue.source)
        if blue is not plain
    }


def _memory(name: str, remember_keys: bool | None) -> dict[str, bool]:
    """As far as the published scripts show, AlphaEdit alone preserves earlier keys."""
    if remember_keys is None:
        remember_keys = isinstance(method_named(name).solver, NullSpace)
    return {"remember_keys": remember_keys}
