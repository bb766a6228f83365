"""A study of a tiny model: five facts, three critical layers, a few steps."""

from __future__ import annotations

from typing import Any

import torch
from tests.editors import make
from torch import Tensor

from factpatch import Editor, Fact, Neighbor
from factpatch.lab.analysis.study import Study

# The last layer of the model is none of them: what is added after it reaches no later token.
LAYERS = (0, 1, 2)
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


def tiny_editor(method: str = "memit", **options: Any) -> Editor:
    return make(method, critical_layers=LAYERS, **options)


def tiny_study(method: str = "memit", facts: Any = FACTS, settings: Any = None, **options: Any) -> Study:
    return Study(tiny_editor(method, settings=settings), facts, **{"batch_size": 2, **options})


def state(study: Study) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in study.lm.model.state_dict().items()}


def same(study: Study, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in study.lm.model.state_dict().items())
