"""From a rival's settings to the rival at work on a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from factpatch.lab.rivals.adapter import Adapted
from factpatch.lab.rivals.fine_tuning import FineTuned
from factpatch.lab.rivals.in_prompt import Prompted
from factpatch.lab.rivals.learner import Learner
from factpatch.lab.rivals.rival import FineTuning, InPrompt, Lora, Rival
from factpatch.model.language_model import LanguageModel

_LEARNERS: dict[type[Rival], Callable[[Any, LanguageModel, Sequence[int], int], Learner]] = {
    FineTuning: FineTuned,
    Lora: Adapted,
    InPrompt: Prompted,
}


def start(rival: Rival, lm: LanguageModel, layers: Sequence[int], seed: int) -> Learner:
    """Return a rival at work on a model, untaught.

    Args:
        rival: Its settings.
        lm: The model, which is left as it is until the first batch.
        layers: Its critical layers, ascending.
        seed: Of whatever is drawn.

    Raises:
        ImportError: A package is not installed.
        ValueError: The settings do not fit the model.
    """
    return _LEARNERS[type(rival)](rival, lm, layers, seed)
