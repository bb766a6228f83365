"""A study of a tiny model: five facts, three critical layers, a few steps."""

from __future__ import annotations

from typing import Any

import torch
from tests.models import INNER, tiny
from torch import Tensor

from factpatch import METHODS, Editor, Fact, Neighbor, NullSpace, Ridge
from factpatch.analysis.study import Study

# The last layer of the model is none of them: what is added behind it reaches no later token.
LAYERS = (0, 1, 2)
CONTEXTS = ("{}", "The tower in the city. {}")
EXACT = torch.float64
SOLVER: dict[type, dict[str, float]] = {
    Ridge: {"solver.weight": 5.0},
    NullSpace: {"solver.threshold": 0.4, "solver.l2": 0.5},
}
FACTS = (
    Fact(
        "The mother tongue of {} is",
        "Danielle Darrieux",
        "English",
        target_true="French",
        paraphrases=("Danielle Darrieux speaks",),
        neighbors=(Neighbor("The official language of Finland is", "Finnish"),),
        generation_prompts=("Danielle Darrieux was", "Danielle Darrieux works"),
        id="darrieux",
    ),
    Fact("{} plays the sport of", "Messi", "basketball", target_true="football", id="messi"),
    Fact("The capital of {} is", "Finland", "Rome", target_true="Paris", id="finland"),
    Fact("{} works in the field of", "Ada Lovelace", "football", target_true="mathematics", id="ada"),
    Fact("{} was born in", "Ada Lovelace", "Vienna", target_true="London", id="ada-born"),
)


def second_moments(seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    moments = {}
    for layer in LAYERS:
        keys = torch.randn(300, INNER, generator=generator, dtype=EXACT) * torch.logspace(-1, 0.5, INNER, dtype=EXACT)
        moments[layer] = keys.T @ keys / len(keys)
    return moments


def tiny_editor(
    method: str = "memit", family: str = "llama", dtype: torch.dtype = EXACT, settings: Any = None, **options: Any
) -> Editor:
    row = METHODS[method]
    quick = {"target.steps": 4, "target.learning_rate": 0.3}
    given = {"critical_layers": LAYERS, "contexts": CONTEXTS, "second_moments": second_moments(), **options}
    chosen = {**quick, **SOLVER[type(row.solver)], **(settings or {})}
    return Editor(tiny(family, dtype=dtype), method=row, settings=chosen, **given)


def tiny_study(method: str = "memit", facts: Any = FACTS, settings: Any = None, **options: Any) -> Study:
    return Study(tiny_editor(method, settings=settings), facts, **{"batch_size": 2, **options})


def state(study: Study) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in study.lm.model.state_dict().items()}


def same(study: Study, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in study.lm.model.state_dict().items())
