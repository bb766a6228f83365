"""An edit and its measurements: the model's answers and perplexity before and after, the steps and the time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from factpatch.edited import Edit
from factpatch.editor import Editor
from factpatch.evaluation.budget import Budget, BudgetError, Meter
from factpatch.evaluation.forgetting import check_known, taught_before, with_old_answers
from factpatch.evaluation.metrics import METRICS
from factpatch.evaluation.perplexity import TextLoss, held_out_text, text_loss
from factpatch.evaluation.questions import forms, sampled
from factpatch.evaluation.readings import Reading
from factpatch.evaluation.routing import Routes, read_routes, rerouted
from factpatch.evaluation.verify import Verification, plain_summary, request_count, verify
from factpatch.facts import Fact, check_batch, latest, near_duplicates
from factpatch.model.decoding import end_tokens
from factpatch.model.fingerprint import unchanged
from factpatch.model.language_model import LanguageModel
from factpatch.model.places import name_of
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
class Measure:
    """What is asked and read before an edit and after it."""

    facts: int | None = None
    """How many facts to ask about at most; by default all. Of more, those of the new batches come first, drawn by their
    texts alone."""
    text: str | None = None
    """What to measure perplexity on; by default the package's held-out text."""
    tokens: int | None = None
    """About how many tokens of the text to read at most; by default 512, and 16 for each fact that is asked about, so
    that it takes little time beside an edit. The report states the standard error that this leaves."""


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
    perplexity_error: float | None = None
    """The standard error of the change, in percent; None where it is not known."""
    perplexity_tokens: int | None = None
    """How many tokens of the text were predicted."""
    rerouted: float | None = None
    """The share of tokens of that text, and layers, from 0 to 1, that the router now sends to other experts; None if it
    was not measured, or there is no router."""
    patch_file: Path | None = None
    """Where the patch was saved."""
    editing: float | None = None
    """Seconds that the edits took, without the second moment; None if some were replayed."""

    @property
    def attempted(self) -> list[Fact]:
        """All facts that were edited, in order; one that was edited again, once."""
        return list(dict.fromkeys(fact for batch in self.patch.batches for fact in batch.facts))

    @property
    def superseded(self) -> list[Fact]:
        """The facts that a later batch replaced."""
        return latest(batch.facts for batch in self.patch.batches)[1]

    @property
    def repeated(self) -> list[Fact]:
        """The facts in force that were edited more than once, unchanged."""
        edits = Counter(fact for batch in self.patch.batches for fact in batch.facts)
        return [fact for fact in self.patch.facts if edits[fact] > 1]

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
        both = self.perplexity_before, self.perplexity_after
        return plain_summary(self.verification, both, self.editing, self.perplexity_error, len(self.patch.facts))

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
            "perplexity_error": self.perplexity_error,
            "perplexity_tokens": self.perplexity_tokens,
            **({} if self.rerouted is None else {"rerouted": self.rerouted}),
            "seconds": dict(self.seconds),
            "steps": {str(layer): steps for layer, steps in self.steps.items()},
            "settings": self.settings,
            "facts": {
                "number": len(self.attempted),
                "in_force": len(self.patch.facts),
                "asked": 0 if self.verification is None else len(self.verification.facts),
                "batches": [count for batch in self.patch.batches for count in batch.edits],
                "rows": checked.get("facts", [_named(fact) for fact in self.patch.facts]),
            },
            "repeated": [_named(fact) for fact in self.repeated],
            "superseded": [_named(fact) for fact in self.superseded],
            "similar": [[_named(fact) for fact in pair] for pair in self.similar],
            "unlearned": [_named(fact) for fact in self.unlearned],
            "versions": self.patch.versions,
            "patch": {
                "path": None if self.patch_file is None else str(self.patch_file),
                "bytes": self.patch_bytes,
                "layers": list(self.patch.layers),
                "ranks": {name_of(place): rank for place, rank in self.patch.ranks.items()},
            },
        }


def edit_and_report(
    editor: Editor,
    batches: Sequence[Sequence[Fact]] = (),
    *,
    session: Session | None = None,
    out: Path | None = None,
    save_model: Path | None = None,
    measure: Measure | None = Measure(),
    seconds: Mapping[str, float] | None = None,
    progress: bool = True,
    budget: Budget | None = None,
    mend: int = 0,
    outputs: Mapping[str, Any] | None = None,
) -> EditReport:
    """Edit a model in place, one batch after another, and measure before, which is kept by content, and after.

    Args:
        editor: One that has not edited anything yet.
        batches: The facts of each call of `Editor.edit`; with a session, its own batches are edited.
        session: Records each batch as soon as it is edited; locked by the caller.
        out: Where to save the patch as soon as the last batch is edited.
        save_model: Where to write the edited model next, a new or empty directory.
        measure: What to ask and to read before the edit and after it; None for nothing.
        seconds: The time of earlier stages, such as {"load": 2.0}; it counts toward the total.
        budget: What the edits may cost.
        mend: How many times to edit again, after the last batch, what the model does not hold; see `Editor.lost`.
        outputs: What a session records with each round of that, for the process that resumes it.

    Raises:
        BudgetError: A batch exceeds the budget. It is undone to the bit, and so pending in a session; the batches
            before it stay and, without a session, are saved to `out`.
        ValueError: The editor has edited before, a fact cannot be edited, or a quantized model saved. Nothing changed.
        FloatingPointError: NaN or infinity in a batch, which was undone; those before it stay, in `out` if it mends.
        OSError: `out` or `save_model` cannot be written; the model stays edited.
    """
    _check_editor(editor, save_model)
    batches, lm = [tuple(batch) for batch in batches] if session is None else session.batches, editor.lm
    spent = dict.fromkeys(STAGES, 0.0) | dict(seconds or {})
    start = time.perf_counter() - sum(spent.values())
    with unchanged():
        known = _checked(editor, batches, spent)
        measured = partial(_measured, measure, editor, _asked(editor, known, session, measure), spent, progress)
        before = measured("before")
        editor.prepare(seconds=spent)
    with _what_stays(editor, len(batches), None if session is not None else out):
        _edit_all(editor, known, session, measure is not None, spent, budget, mend, outputs)
    patch = _saved(editor, out, save_model, spent)
    after = measured("after", before[0])
    return EditReport(
        model=lm.name,
        patch=patch,
        settings={**patch.settings, "dtype": str(lm.dtype).removeprefix("torch."), "device": str(lm.device)},
        steps=_steps(editor.edits),
        seconds={**spent, "total": time.perf_counter() - start},
        verification=after[0],
        **_perplexities(before[1], after[1]),
        rerouted=rerouted(before[2], after[2]),
        patch_file=out,
        editing=sum(map(_editing, editor.edits)) if all(edit.seconds for edit in editor.edits) else None,
    )


def _check_editor(editor: Editor, save_model: Path | None) -> None:
    if editor.edits:
        raise ValueError("editor: it has edited the model already; undo that, or give a new Editor.")
    if save_model is not None:
        editor.lm.check_savable()


def _checked(editor: Editor, batches: Sequence[Sequence[Fact]], spent: dict[str, float]) -> list[tuple[Fact, ...]]:
    """The batches as they are edited; ValueError if one cannot be."""
    with timed(spent, "contexts"):
        return checked(editor, batches)


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
def _what_stays(editor: Editor, batches: int, out: Path | None) -> Iterator[None]:
    """Save the batches before one that exceeds the budget, and all of them where editing again what is lost fails."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, BudgetError):
            error.kept = len(editor.edits)
        if out is not None and editor.edits and (isinstance(error, BudgetError) or len(editor.edits) >= batches):
            editor.patch.save(out)
        raise


def _edit_all(
    editor: Editor,
    batches: Sequence[Sequence[Fact]],
    session: Session | None,
    ask: bool,
    spent: dict[str, float],
    budget: Budget | None,
    mend: int,
    outputs: Mapping[str, Any] | None,
) -> None:
    """Edit one batch after another; a session continues after the batches that it has finished."""
    meter = None if budget is None else Meter(budget, editor.lm)
    if session is None:
        lost = chain.from_iterable(found for _, found in editor.rounds(mend))  # after the batches: it is lazy
        for batch in chain(batches, lost):
            editor.edit(batch)
            _check(editor, meter)
    else:
        with timed(spent, "replay"):
            session.attach(editor)
        session.mend(editor, mend, ask, meter, outputs)
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


def checked(editor: Editor, batches: Sequence[Sequence[Fact]]) -> list[tuple[Fact, ...]]:
    """The batches as an editor of an unedited model edits them, one after another.

    Raises:
        ValueError: As from `check_facts`, or an answer is to be forgotten that the model does not know.
    """
    check_facts(editor.lm, batches, editor.contexts)
    found = completed(editor.lm, batches)
    check_known(editor.lm, found)
    return found


def completed(lm: LanguageModel, batches: Sequence[Sequence[Fact]]) -> list[tuple[Fact, ...]]:
    """The batches with all that is known of facts to forget; see `with_old_answers`.

    What an earlier batch teaches is what a later one forgets.
    """
    return [tuple(with_old_answers(lm, batch, taught)) for batch, taught in taught_before(batches)]


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
    trained: dict[str, tuple[str, ...]] = {}
    for fact in without_trained(edited, contexts_in(patch.settings)):
        trained[fact.key] = (*trained.get(fact.key, ()), *fact.trained)
    return [replace(fact, trained=(*fact.trained, *trained.get(fact.key, ()))) for fact in facts]


def _asked(
    editor: Editor, batches: Sequence[Sequence[Fact]], session: Session | None, measure: Measure | None
) -> list[Fact]:
    """The facts to ask about, with what was trained of them."""
    if measure is None:
        return []
    in_force, most = without_trained(latest(batches)[0], editor.contexts), measure.facts
    if most is None or len(in_force) <= most:
        return in_force
    new = {fact.key for batch in batches[0 if session is None else len(session.finished) :] for fact in batch}
    places = sampled(in_force, most, new)
    return [fact for place, fact in enumerate(in_force) if place in places]


def _measured(
    measure: Measure | None,
    editor: Editor,
    facts: Sequence[Fact],
    spent: dict[str, float],
    progress: bool,
    when: str,
    earlier: Verification | None = None,
) -> tuple[Verification | None, TextLoss | None, Routes | None]:
    """The model's answers on the facts, its losses on the text, and where its routers send that.

    Answers and losses of the unedited model are kept.
    """
    if measure is None:
        return None, None, None
    text = held_out_text() if measure.text is None else measure.text
    tokens = measure.tokens or 512 + 16 * len(facts)
    lm, replicas = editor.lm, editor.replicas

    def asked() -> Verification:
        return ask(lm, facts, f"asking {when} the edit", earlier, progress, replicas=replicas)

    def read() -> TextLoss:
        with bar("measuring perplexity", 1, progress):
            return text_loss(lm, text, tokens=tokens)

    findings = editor.findings.anew()  # the model may have changed since its contexts were made
    with timed(spent, f"verify_{when}"):
        if earlier is None:
            asked_of = TypeAdapter(tuple[Fact, ...]).dump_python(tuple(facts), mode="json")
            # Those of workers differ by rounding; templates and end tokens are no part of the weights.
            about = [asked_of, replicas is not None, repr(sorted(forms(lm).items())), sorted(end_tokens(lm))]
            readings = findings.get("readings", about, _READINGS, lambda: asked().after)
            verification = Verification(tuple(facts), readings)
        else:
            verification = asked()
    with timed(spent, "perplexity"):
        losses = findings.get("losses", [text, tokens], _LOSSES, read) if earlier is None else read()
        return verification, losses, read_routes(lm, text, tokens=tokens)


_READINGS = TypeAdapter(tuple[Reading, ...])
_LOSSES = TypeAdapter(TextLoss)


def _perplexities(before: TextLoss | None, after: TextLoss | None) -> dict[str, Any]:
    if before is None or after is None:
        return {}
    return {
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "perplexity_error": after.error(before),
        "perplexity_tokens": len(after.nll),
    }


def _editing(edit: Edit) -> float:
    return sum(took for stage, took in edit.seconds.items() if stage not in ONCE)


def _named(fact: Fact) -> dict[str, Any]:
    forget = {"target_true": fact.target_true, "forget": fact.forget} if fact.forget else {}
    return {"id": fact.id, "prompt": fact.text, "subject": fact.subject, "target_new": fact.target_new, **forget}
