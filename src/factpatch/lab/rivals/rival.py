"""The table of rivals: ways to teach a model facts that are no editing methods, with their settings.

A rival has no target, spread, solver or regularizer, so it is no row of `factpatch.methods`: what it shares with a
method is what a run needs of both (see `factpatch.lab.rivals.learner`). PyTorch is not imported here: listing rivals
should not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from factpatch.support.validation import explaining
from factpatch.support.words import suggestion

_CHECKED = ConfigDict(extra="forbid")


class Rival:
    """A way to teach a model facts; its fields are its settings."""

    name: ClassVar[str]
    """As configurations and tables have it."""
    summary: ClassVar[str]
    """What it does, in a few words."""
    source: ClassVar[str]
    needs: ClassVar[str | None] = None
    """A package that only some installations have; the extra that brings it is called as the rival."""

    def check_installed(self) -> None:
        """Raise ImportError if a package is missing."""
        if self.needs is not None and find_spec(self.needs) is None:
            raise ImportError(f"{self.name} needs {self.needs}; pip install 'factpatch[{self.name}]'.")

    @property
    def settings(self) -> dict[str, Any]:
        """What is recorded with its results, as JSON-able data."""
        own = {name: getattr(self, name) for name in setting_names(self)}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
        return {"method": self.name, "source": self.source, **listed}

    def with_settings(self, settings: Mapping[str, Any]) -> Rival:
        """Return the same rival with some fields replaced; text is read as the field's type.

        Raises:
            ValueError: There is no such field (with a suggestion), or its value is of the wrong type or range.
        """
        known = setting_names(self)
        for name in settings:
            if name not in known:
                raise ValueError(f"setting {name!r}: {self.name} has no such setting.{suggestion(name, known)}")
        try:
            made: Rival = replace(self, **settings)  # type: ignore[type-var]
        except (TypeError, ValueError) as error:
            raise ValueError(f"setting {error}") from None
        return made


def _names(value: Any) -> Any:
    return tuple(filter(None, value.replace(" ", "").split(","))) if isinstance(value, str) else value


@dataclass(frozen=True, config=_CHECKED)
class Descent(Rival):
    """What all fine-tuning has: Adam on the NLL of the target's tokens, epoch after epoch over the facts of a batch.

    Breadth-first: an epoch visits every fact once, in mini-batches that are drawn anew, before any fact is seen again.
    """

    learning_rate: PositiveFloat
    """Of Adam."""
    batch_size: PositiveInt
    """Facts in a step; a batch of fewer facts takes one step an epoch."""
    epochs: PositiveInt
    """How often each fact of a batch is seen."""
    end_token: bool = True
    """Whether the token that ends a text is learned after the target, so that the model stops there."""


@explaining
@dataclass(frozen=True, config=_CHECKED)
class FineTuning(Descent):
    """Fine-tuning of one down-projection, breadth-first, in mini-batches, with an end token. Source: arXiv:2509.22072.

    The change of the weight is written as the shift of a patch, so it can be undone, saved and exported as an edit.
    """

    name: ClassVar[str] = "locft-bf"
    summary: ClassVar[str] = "fine-tuning of one down-projection"
    source: ClassVar[str] = "LocFT-BF, arXiv:2509.22072"

    learning_rate: PositiveFloat = 5e-4
    """Of Adam."""
    batch_size: PositiveInt = 100
    """Facts in a step; a batch of fewer facts takes one step an epoch."""
    epochs: PositiveInt = 25
    """How often each fact of a batch is seen."""
    layer: NonNegativeInt | None = None
    """The layer whose down-projection is tuned; by default the last critical layer."""
    rank: PositiveInt | None = None
    """How many singular directions of the change to keep; by default all."""


@explaining
@dataclass(frozen=True, config=_CHECKED)
class Lora(Descent):
    """Low-rank adapters, trained with peft. Source: arXiv:2106.09685.

    One adapter learns batch after batch, and stays beside the weights, which it does not change.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "one low-rank adapter, trained on"
    source: ClassVar[str] = "LoRA, arXiv:2106.09685"
    needs: ClassVar[str | None] = "peft"

    learning_rate: PositiveFloat = 5e-3
    """Of Adam."""
    batch_size: PositiveInt = 100
    """Facts in a step; a batch of fewer facts takes one step an epoch."""
    epochs: PositiveInt = 25
    """How often each fact of a batch is seen."""
    rank: PositiveInt = 8
    """Of each adapted matrix."""
    alpha: PositiveFloat = 32.0
    """The change is scaled by alpha / rank."""
    targets: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """The names of the modules to adapt in every layer, such as q_proj and v_proj, or down_proj; by default those that
    peft has for the model's family."""


@explaining
@dataclass(frozen=True, config=_CHECKED)
class InPrompt(Rival):
    """No change of the model: the nearest facts stand before every prompt, each as "New fact: PROMPT TARGET.".

    Of the facts whose subject stands in the prompt, near are those with a similar TF-IDF vector of words. A fact
    replaces the earlier one with the same text. Source: in-context editing with retrieval, as in
    IKE (arXiv:2305.12740), without its demonstrations.
    """

    name: ClassVar[str] = "in-prompt"
    summary: ClassVar[str] = "the nearest facts stand before each prompt"
    source: ClassVar[str] = "after IKE, arXiv:2305.12740"

    count: PositiveInt = 1
    """How many facts stand before a prompt at most."""
    subject: bool = True
    """Whether a fact counts only where its subject stands in the prompt, in any case."""
    least: Annotated[NonNegativeFloat, Field(le=1)] = 0.0
    """How similar a fact must be, as a cosine; facts that share no word with the prompt never count."""


RIVALS: dict[str, Rival] = {rival.name: rival for rival in (FineTuning(), Lora(), InPrompt())}


def setting_names(rival: Rival) -> list[str]:
    """The names of a rival's settings."""
    return [field.name for field in fields(rival)]  # type: ignore[arg-type]
