"""What a run needs of a rival at work: it learns batches, can be asked, and is brought back after an interruption."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel


class Learner(ABC):
    """A model that a rival teaches one batch of facts after another.

    Attributes:
        lm: What to ask: the model as the rival shows it.
    """

    suffix: ClassVar[str] = ".safetensors"
    """Of the files that `save` writes."""
    lm: LanguageModel

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that its results depend on apart from the weights and the facts, as JSON-able data."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """The size of what the rival adds to the unedited model."""

    @abstractmethod
    def learn(self, facts: Sequence[Fact]) -> None:
        """Teach one batch, in place. After any error, the model is as before the call.

        Raises:
            ValueError: A fact cannot be learned.
            FloatingPointError: NaN or infinity on the way.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write what the last batch has left, whole or not at all."""

    @abstractmethod
    def restore(self, paths: Sequence[Path]) -> None:
        """Bring an untaught model to where the last of these files leaves it, one for each batch, bit for bit."""

    @abstractmethod
    def reset(self) -> None:
        """Bring the model back to where it was before it was taught, bit for bit."""
