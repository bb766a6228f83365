"""What all desks share, and what is known of one: models that nobody edits, the worker, and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from factpatch.edit_report import EditReport
from factpatch.evaluation.taken_back import TakenBack
from factpatch.evaluation.verify import Verification
from factpatch.facts import Fact
from factpatch.model.language_model import LanguageModel
from factpatch.recipe import Recipe
from factpatch.session import Session
from factpatch.web.limits import Limits
from factpatch.web.work import Worker

Batches = tuple[tuple[Fact, ...], ...]


@dataclass
class Shared:
    """What all desks share: models that nobody edits, the thread that runs them, and the limits."""

    original: Callable[[str], LanguageModel]
    """Loads a model by its name, or returns it if it is loaded."""
    loaded: Callable[[str], LanguageModel | None]
    """Returns a model that is loaded, and None for one that is not, without waiting."""
    models: tuple[str, ...]
    """The models that there are to choose from."""
    recipe: Recipe
    """What the server was started with."""
    limits: Limits
    worker: Worker
    capability_data: Path | None = None
    """A folder with the items of capability tasks."""


@dataclass(frozen=True)
class Results:
    """What is known of the edits in force; a new one replaces it when they change."""

    batches: Batches = ()
    """The facts of each batch in force."""
    pending: Batches = ()
    """Facts that an edit was to teach when the server was stopped."""
    verification: Verification | None = None
    """What the original and the edited model say of the facts in force."""
    report: EditReport | None = None
    """Of the last edit, if it was made since the desk was opened."""
    taken: TakenBack | None = None
    """What became of the facts that were taken back last, if that is the last that happened."""
    seconds: float | None = None
    """How long the last edit took."""


def lasting(model: str) -> str:
    """The same model, by a path that holds in every folder."""
    return str(Path(model).absolute()) if Path(model).exists() else model


def model_of(session: Session, models: Sequence[str]) -> str:
    """Which of the server's models a session is of; ValueError if none."""
    for model in models:
        if session.source is not None and session.source in (model, lasting(model)):
            return model
    raise ValueError(
        f"session: it edits the model {session.source or session.record['model']}, and this page has "
        f"{', '.join(models)}. Start `factpatch page` with that model."
    )
