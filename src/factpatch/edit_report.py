"""An edit and its measurements: the model's answers and perplexity before and after, the steps and the time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from factpatch.edited import Edit
from factpatch.editor import Editor
from factpatch.evaluation.budget import Budget, BudgetError, Meter
from factpatch.evaluation.forgetting import with_old_answers
from factpatch.evaluation.metrics import METRICS
from factpatch.evaluation.perplexity import held_out_text, perplexity
from factpatch.evaluation.verify import Verification, plain_summary, request_count, verify
from factpatch.facts import Fact, check_batch, latest, near_duplicates
from factpatch.model.language_model import LanguageModel
from factpatch.model.replicas import Replicas
from factpatch.patch.description import contexts_in
from factpatch.patch.patch import Patch
from factpatch.session import Session
from factpatch.support.progress import bar, timed
from factpatch.values.contexts import without_trained
from factpatch.values.rows import optimization_rows

STAGES = (
    "load",
    "second_moment",
    "contexts",
    "measure",
    "replay",
    "budget",
    "values",
    "keys",
    "solve",
    "write",
    "regularize",
    "verify_before",
    "verify_after",
    "perplexity",
    "save_model",
)


ONCE = ("second_moment", "measure")
"""Stages of the first edit that prepare all edits of a model."""


@dataclass(frozen=True)
class EditReport:
    """What an edit did, and what was measured before and after it."""

    model: str
    """The model's name."""
    patch: Patch
    """What the edit changed, batch by batch."""
    settings: dict[str, Any]
    """The resolved settings."""
    steps: dict[int, dict[str, Any]]
    """The value optimization by target layer: "evaluations", "updates" and "loss" (at the last evaluation, in nats), as
    their mean and "per_fact". Replayed batches are left out."""
    seconds: dict[str, float]
    """Wall time by stage, and "total"."""
    verification: Verification | None = None
    """The model's answers on the facts in force; None if it was not asked."""
    perplexity_before: float | None = None
    """On a text unrelated to the facts; None if it was not measured."""
    perplexity_after: float | None = None
    patch_file: Path | None = None
    """Where the patch was saved."""
    editing: float | None = None
    """Seconds that the edits took, without the second moment; None if some were replayed."""

    @property
    def attempted(self) -> list[Fact]:
        """All facts that were edited, in order."""
        return [fact for batch in self.patch.batches for fact in batch.facts]

    @property
    def superseded(self) -> list[Fact]:
        """The facts that a later batch replaced."""
        return latest(batch.facts for batch in self.patch.batches)[1]

    @property
    def similar(self) -> list[tuple[Fact, Fact]]:
        """Pairs of facts in force that are probably the same question, reworded."""
        return near_duplicates(self.patch.facts)

    @property
    def unlearned(self) -> list[Fact]:
        """The facts in force that the model did not learn; empty if it was not asked."""
        return [] if self.verification is None else self.verification.unlearned()

    @property
    def plain(self) -> str:
        """What was learned, what changed and what it cost, in one sentence; empty if the model was not asked."""
        if self.verification is None:
            return ""
        return plain_summary(self.verification, (self.perplexity_before, self.perplexity_after), self.editing)

    @property
    def patch_bytes(self) -> int:
        """The size of the patch's file, or of its shifts if it was not saved."""
        return self.patch.num_bytes if self.patch_file is None else self.patch_file.stat().st_size

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able record; metrics are in percent, each as {"before": x, "after": y}."""
        checked = {} if self.verification is None else self.verification.to_dict()
        summary = checked.get("summary", {})
        return {
            "model": self.model,
            "method": self.patch.method,
            "plain": self.plain,
            "seed": self.patch.seed,
            **{name: summary.get(name, {"before": None, "after": None}) for name in (*METRICS, "score")},
            "perplexity_before": self.perplexity_before,
            "perplexity_after": self.perplexity_after,
            "seconds": dict(self.seconds),
            "steps": {str(layer): steps for layer, steps in self.steps.items()},
            "settings": self.settings,
            "facts": {
                "number": len(self.attempted),
                "in_force": len(self.patch.facts),
                "batches": [count for batch in self.patch.batches for count in batch.edits],
                "rows": checked.get("facts", [_named(fact) for fact in self.patch.facts]),
            },
            "superseded": [_named(fact) for fact in self.superseded],
            "similar": [[_named(fact) for fact in pair] for pair in self.similar],
            "unlearned": [_named(fact) for fact in self.unlearned],
            "versions": self.patch.versions,
            "patch": {
                "path": None if self.patch_file is None else str(self.patch_file),
                "bytes": self.patch_bytes,
                "layers": list(self.patch.layers),
                "ranks": {str(layer): rank for layer, rank in self.patch.ranks.items()},
            },
        }


def edit_and_report(
    editor: Editor,
    batches: Sequence[Sequence[Fact]] = (),
    *,
    session: Session | None = None,
    text: str | None = None,
    out: Path | None = None,
    save_model: Path | None = None,
    measure: bool = True,
    seconds: Mapping[str, float] | None = None,
    progress: bool = True,
    budget: Budget | None = None,
) -> EditReport:
    """Edit a model in place, one batch after another, and measure before and after.

    Args:
        editor: One that has not edited anything yet.
        batches: The facts of each call of `Editor.edit`; with a session, its own batches are edited.
        session: Records each batch as soon as it is edited; locked by the caller.
        text: What to measure perplexity on; the package's held-out text by default.
        out: Where to save the patch as soon as the last batch is edited.
        save_model: Where to write the edited model next, a new or empty directory.
        measure: Whether to verify the facts and to measure perplexity.
        seconds: The time of earlier stages, such as {"load": 2.0}; it counts toward the total.
        budget: What the edits may cost.

    Raises:
        BudgetError: A batch exceeds the budget. It is undone to the bit, and so pending in a session; the batches
            before it stay and, without a session, are saved to `out`.
        ValueError: The editor has edited before, a fact of any batch cannot be edited, or a quantized model is to be
            saved; nothing was changed.
        FloatingPointError: NaN or infinity in a batch, which was undone; the batches before it stay.
        OSError: `out` or `save_model` cannot be written; the model stays edited.
    """
    _check_editor(editor, save_model)
    batches, lm = [tuple(batch) for batch in batches] if session is None else session.batches, editor.lm
    spent = dict.fromkeys(STAGES, 0.0) | dict(seconds or {})
    earlier, start = sum(spent.values()), time.perf_counter()
    with timed(spent, "contexts"):
        check_facts(lm, batches, editor.contexts)
        known = completed(lm, batches)
    facts, text = without_trained(latest(known)[0], editor.contexts), held_out_text() if text is None else text
    measured = partial(_measured if measure else _unmeasured, lm, facts, text, spent, progress, editor.replicas)
    before, perplexity_before = measured("before")
    with _what_stays(editor, None if session is not None else out):
        _edit_all(editor, known, session, measure, spent, budget)
    patch = _saved(editor, out, save_model, spent)
    after, perplexity_after = measured("after", before)
    return EditReport(
        model=lm.name,
        patch=patch,
        settings={**patch.settings, "dtype": str(lm.dtype).removeprefix("torch."), "device": str(lm.device)},
        steps=_steps(editor.edits),
        seconds={**spent, "total": earlier + time.perf_counter() - start},
        verification=after,
        perplexity_before=perplexity_before,
        perplexity_after=perplexity_after,
        patch_file=out,
        editing=sum(map(_editing, editor.edits)) if all(edit.seconds for edit in editor.edits) else None,
    )


def _check_editor(editor: Editor, save_model: Path | None) -> None:
    if editor.edits:
        raise ValueError("editor: it has edited the model already; undo that, or give a new Editor.")
    if save_model is not None:
        editor.lm.check_savable()


def _steps(edits: Sequence[Edit]) -> dict[int, dict[str, Any]]:
    steps: dict[int, dict[str, Any]] = {}
    for layer in sorted({*chain(*(edit.targets for edit in edits))}):
        found = [edit.targets[layer] for edit in edits if layer in edit.targets]
        for name in ("evaluations", "updates", "loss"):
            entries = [entry for targets in found for entry in getattr(targets, name).tolist()]
            steps.setdefault(layer, {})[name] = {"mean": math.fsum(entries) / len(entries), "per_fact": entries}
    return steps


def _saved(editor: Editor, out: Path | None, save_model: Path | None, spent: dict[str, float]) -> Patch:
    """The patch of all edits, saved as asked for, and the model with it."""
    patch = editor.patch
    if out is not None:
        patch.save(out)
    if save_model is not None:
        with timed(spent, "save_model"):
            editor.save_pretrained(save_model)
    return patch


@contextmanager
def _what_stays(editor: Editor, out: Path | None) -> Iterator[None]:
    """Save the batches before one that exceeds the budget."""
    try:
        yield
    except BudgetError as error:
        error.kept = len(editor.edits)
        if out is not None and editor.edits:
            editor.patch.save(out)
        raise


def _edit_all(
    editor: Editor,
    batches: Sequence[Sequence[Fact]],
    session: Session | None,
    ask: bool,
    spent: dict[str, float],
    budget: Budget | None,
) -> None:
    """Edit one batch after another; a session continues after the batches that it has finished."""
    meter = None if budget is None else Meter(budget, editor.lm)
    if session is None:
        for batch in batches:
            editor.edit(batch)
            _check(editor, meter)
    else:
        with timed(spent, "replay"):
            session.attach(editor)
        while session.waiting:
            session.edit(editor, ask, meter)
    for seconds in (*(edit.seconds for edit in editor.edits), {} if meter is None else meter.seconds):
        for stage, took in seconds.items():
            spent[stage] = spent.get(stage, 0.0) + took


def _check(editor: Editor, meter: Meter | None) -> None:
    """Undo the last batch if it exceeds the budget, or if that cannot be measured."""
    if meter is not None:
        try:
            meter.check(editor.lm)
        except BaseException:
            editor.undo()
            raise


def check_facts(lm: LanguageModel, batches: Sequence[Sequence[Fact]], contexts: Sequence[str]) -> None:
    """Check, as far as tokens show, that every batch can be edited, so that no error comes up only in a later batch.

    Raises:
        ValueError: There is no batch, a batch is empty or contradicts itself, or a subject or a target has no tokens.
    """
    if not batches:
        raise ValueError("batches=[]: give at least one batch of facts.")
    for number, batch in enumerate(batches, start=1):
        try:
            check_batch(batch)
            optimization_rows(lm, batch, contexts)
        except ValueError as error:
            raise error if len(batches) == 1 else ValueError(f"batch {number} of {len(batches)}: {error}") from None


def completed(lm: LanguageModel, batches: Sequence[Sequence[Fact]]) -> list[tuple[Fact, ...]]:
    """The batches with all that is known of facts to forget; see `with_old_answers`.

    What an earlier batch teaches is what a later one forgets.
    """
    taught: dict[tuple[str, str], str] = {}
    found = []
    for batch in batches:
        found.append(tuple(with_old_answers(lm, batch, taught)))
        taught |= {fact.key: fact.target_new for fact in batch if not fact.forget}
    return found


def ask(
    lm: LanguageModel,
    facts: Sequence[Fact],
    what: str,
    before: Verification | None = None,
    progress: bool = True,
    probes: bool = False,
    replicas: Replicas | None = None,
) -> Verification:
    """As `factpatch.verify`, with a progress bar called `what`."""
    with bar(what, request_count(lm, facts, probes=probes), progress) as advance:
        return verify(lm, None, facts, before, probes=probes, progress=advance, replicas=replicas)


def not_trained_by(patch: Patch, facts: Sequence[Fact]) -> list[Fact]:
    """The facts with the questions that a patch was made in as `Fact.trained`, so that others are asked."""
    edited = [fact for batch in patch.batches for fact in batch.facts]
    trained: dict[tuple[str, str], tuple[str, ...]] = {}
    for fact in without_trained(edited, contexts_in(patch.settings)):
        trained[fact.key] = (*trained.get(fact.key, ()), *fact.trained)
    return [replace(fact, trained=(*fact.trained, *trained.get(fact.key, ()))) for fact in facts]


def _measured(
    lm: LanguageModel,
    facts: Sequence[Fact],
    text: str,
    spent: dict[str, float],
    progress: bool,
    replicas: Replicas | None,
    when: str,
    earlier: Verification | None = None,
) -> tuple[Verification | None, float | None]:
    """The model's answers on the facts, and its perplexity on the text."""
    with timed(spent, f"verify_{when}"):
        verification = ask(lm, facts, f"asking {when} the edit", earlier, progress, replicas=replicas)
    with timed(spent, "perplexity"), bar("measuring perplexity", 1, progress):
        return verification, perplexity(lm, text)


def _unmeasured(*_: Any) -> tuple[None, None]:
    return None, None


def _editing(edit: Edit) -> float:
    return sum(took for stage, took in edit.seconds.items() if stage not in ONCE)


def _named(fact: Fact) -> dict[str, Any]:
    forget = {"target_true": fact.target_true, "forget": fact.forget} if fact.forget else {}
    return {"id": fact.id, "prompt": fact.text, "subject": fact.subject, "target_new": fact.target_new, **forget}
