"""Editor: a model and a recipe. The editing loop is written here, once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from factpatch.data import demo_facts
from factpatch.edited import Edit, EditedModel
from factpatch.evaluation.forgetting import not_known, unknown_error, with_old_answers
from factpatch.evaluation.reproduction import LONG, is_long
from factpatch.evaluation.verify import exact
from factpatch.facts import Fact, check_batch, find_facts, latest
from factpatch.methods import EFFORTS, Method, settings_of, with_settings
from factpatch.model.batching import parts
from factpatch.model.findings import Findings
from factpatch.model.language_model import LanguageModel, check_editable
from factpatch.model.loading import dtype_named, load_language_model
from factpatch.model.places import layer_list, layer_of
from factpatch.model.precision import precision_for, sharing_copies
from factpatch.model.quantized import check_gradients
from factpatch.model.replicas import Replicas
from factpatch.model.weights import changed_layers, matrices
from factpatch.patch.history import Draft, History
from factpatch.patch.patch import Patch
from factpatch.patch.shift import Shift, smaller
from factpatch.pool import Pool
from factpatch.recipe import Recipe, check_spread, choose, shared_expert_of
from factpatch.statistics.prepared import Prepared
from factpatch.statistics.reference_values import reference_values
from factpatch.strategies.experts import UnknownExpert
from factpatch.strategies.memory import Memory, Traces
from factpatch.strategies.regularizer import Acts
from factpatch.strategies.spread import Spread, Step
from factpatch.strategies.target import PUBLISHED, Target
from factpatch.support.progress import bar, staged, timed
from factpatch.support.words import difference
from factpatch.values.contexts import BARE, check_contexts, contexts_named, in_chat, names_for
from factpatch.values.optimize import Optimize, TargetValues, optimize_values
from factpatch.values.rows import optimization_rows
from factpatch.values.shards import InShards
from factpatch.values.views import (
    FIRST_LAYER,
    FIRST_STEP,
    BatchReaders,
    Rows,
    RowsInLayer,
    Views,
    first_token_keys,
    other_first_tokens,
    without_bos,
)

logger = logging.getLogger(__name__)
Plan = Sequence[tuple[Step, Rows]]


class Editor(EditedModel):
    """Edits a model in place, one batch of facts after another.

    Args:
        model: The name of an embedded model, a directory, an id of the Hugging Face Hub, or a loaded model.
        tokenizer: The tokenizer of a loaded model.
        recipe: Method, preset, layers, settings and so on; see `factpatch.Recipe`. Its fields can also be given one by
            one: `Editor(model, method="memit-blue", seed=1)`. The method alone is a recipe too.
        contexts: Templates with one `{}` for the prompt, the bare one first; by default the model generates them.
        second_moments: E[k kᵀ] by layer, (d_key, d_key), if already known; and what else the solver reads, by place,
            as `SecondMoment.matrix` has it.
        optimize: Finds target values instead of `optimize_values`, such as `SharedTargets`.
        written_dtype: What a shift is rounded to before it is added; float32, or float64 for a float64 model.
        progress: Show progress during long work.
        pool: Workers among which second moments and value optimizations are shared, each with a copy of the model. How
            many there are changes nothing; see `factpatch.pool`.

    Raises:
        ValueError: An argument cannot be used; the message names it and says what to do.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        recipe: Recipe | str | Method | None = None,
        *,
        contexts: Sequence[str] | None = None,
        second_moments: Mapping[int, Tensor] | None = None,
        optimize: Optimize | None = None,
        written_dtype: str | torch.dtype | None = None,
        progress: bool = True,
        pool: Pool | None = None,
        **fields: Any,
    ) -> None:
        if isinstance(recipe, (str, Method)):
            recipe, fields = None, {"method": recipe, **fields}
        if recipe is not None and fields:
            raise ValueError(f"{', '.join(fields)}: these are fields of the recipe; give one or the other.")
        # A LanguageModel given with a recipe was already loaded according to it.
        loaded = recipe is not None and isinstance(model, LanguageModel)
        self.recipe = recipe = Recipe(**fields) if recipe is None else recipe
        where = {} if loaded else {"device": recipe.device, "dtype": recipe.dtype}
        self.lm: LanguageModel = load_language_model(model, tokenizer, chat=recipe.chat, **where)
        if loaded:
            recipe.check_place(self.lm)
        if recipe.shared_expert and not self.lm.shared_expert:
            self.lm = shared_expert_of(self.lm)
        choice = choose(recipe, self.lm)
        self.lm.check_layers(choice.critical_layers)
        check_editable(self.lm.model, choice.critical_layers, self.lm.shared_expert)
        if self.lm.quantized:
            check_gradients(self.lm.model, self.lm.down_projection(choice.critical_layers[-1]))
        self.replicas = None if pool is None else Replicas(self.lm, pool)
        self.preset, self.critical_layers = choice.preset, choice.critical_layers
        self._origin, self._method = choice.origin, choice.method
        self._given = frozenset(second_moments or ())
        self._contexts = None if contexts is None else check_contexts(contexts)
        self._contexts_given = contexts is not None
        short = EFFORTS[recipe.effort].short_products
        self.precision = replace(precision_for(self.lm, recipe.precision, short), compiled=recipe.compiled)
        self.findings = Findings(self.lm)
        """What is known of the unedited model."""
        self.prepared = Prepared(
            self.lm, choice.method.solver, self.written_layers, choice.preset, self.precision, recipe.corpus,
            recipe.corpus_tokens, dict(second_moments or {}), choice.underived, progress, self.replicas, self.findings,
        )  # fmt: skip
        self._progress = progress
        self._optimize = optimize if optimize or self.replicas is None else InShards(self.replicas)
        self._stored_dtype = self.lm.work_dtype
        self._seconds: dict[str, float] = {}
        self._first_tokens: dict[tuple[int, ...], Traces] = {}
        self.history: History[Edit] = History(
            self.lm.weights, dtype_named(written_dtype) or self.lm.work_dtype, self._read_out()
        )

    @property
    def method(self) -> Method:
        """The method with its resolved settings."""
        return replace(self._method, solver=self.prepared.solver)

    @property
    def written_layers(self) -> list[int]:
        """The layers that the method's spread writes, ascending."""
        return sorted({step.layer for step in self._method.spread.all_steps(self.critical_layers)})

    @property
    def edited_layers(self) -> list[int]:
        """The layers that an edit may write: those of the spread, and the first one where first tokens need it."""
        return [FIRST_LAYER, *self.written_layers] if self._apart else self.written_layers

    @property
    def edited_places(self) -> list[int]:
        """The weights that an edit may write: those of the `edited_layers` that the solver shifts."""
        return [place for layer in self.edited_layers for place in self._method.solver.writes(layer)]

    @property
    def contexts(self) -> tuple[str, ...]:
        """The templates for prompts, made on first use; in exact mode the published ones."""
        if self._contexts is None:
            wanted = self._method.target.contexts
            names = names_for(self.lm, PUBLISHED if self.precision.name == "exact" else wanted)
            if names != wanted and "target.contexts" in self.recipe.settings:
                logger.warning("target.contexts=%s: not used; exact mode and chats have the published ones", wanted)
            kept = None if self.edits else self.findings
            self._contexts = contexts_named(self.lm, names, self.recipe.seed, kept)
        return self._contexts

    def adopt_contexts(self, contexts: Sequence[str]) -> None:
        """Take over the contexts of earlier batches if they differ in the turns of a chat alone.

        A chat template may write the date, so that contexts of the same names differ from one day to the next.
        """
        pairs = zip(self.contexts, contexts, strict=False)
        alike = len(contexts) == len(self.contexts) and all(
            mine == its or (in_chat(self.lm, mine) and in_chat(self.lm, its)) for mine, its in pairs
        )
        if alike and not self._contexts_given and not self.edits:
            self._contexts = check_contexts(contexts)

    def edit(self, facts: Sequence[Fact]) -> Patch:
        """Edit the model in place, all facts in one batch.

        After any error, NaN or an interruption included, the model is as it was before the call.

        Returns:
            What this batch changed. Applying the patches of all batches in order to the unedited model gives the same
            bits, except under a regularizer that acts on the session: apply `self.patch` then.

        Raises:
            ValueError: A fact cannot be edited, two facts of the batch contradict each other, or the model does not
                know what it is to forget.
            FloatingPointError: NaN or infinity at any stage.
        """
        facts = tuple(facts)
        check_batch(facts)
        optimization_rows(self.lm, facts, (BARE,))  # what cannot be read is refused before anything is run
        facts = tuple(with_old_answers(self.lm, facts, self._taught()))
        self._check_known(facts)
        _warn_of_whole_answers(self.method, facts)
        self._seconds = {}
        self.prepare()
        return self._edited(facts, self._plan(facts), {}).patch

    def lost(self) -> list[Sequence[Fact]]:
        """The facts in force that the model does not hold, in batches as large as the largest edit.

        A token of their answer is not the likeliest after the prompt: a later batch has moved it, or their own did not
        suffice. Facts to forget are not asked about.
        """
        taught = [fact for fact in latest(edit.facts for edit in self.edits)[0] if not fact.forget]
        lost = [fact for fact, held in zip(taught, exact(self.lm, taught), strict=True) if not held]
        return parts(lost, max((len(edit.facts) for edit in self.edits), default=1))

    def mend(self) -> list[Patch]:
        """Edit the facts again that are `lost`; return a patch for each batch, none if all of them hold.

        To write little at first and again what that does not hold costs ordinary text less than to write all facts so
        firmly that none is lost; see docs/results.md. Each of the batches preserves what holds.

        Raises:
            As `edit`. The batches before the one that failed stay.
        """
        return [self.edit(facts) for facts in self.lost()]

    def rounds(self, most: int) -> Iterator[tuple[int, list[Sequence[Fact]]]]:
        """Yield what is `lost`, with the number of rounds that are left; edit it before you ask for the next round.

        It ends after `most` rounds, or when nothing is lost.
        """
        for left in reversed(range(most)):
            if not (lost := self.lost()):
                return
            yield left, lost

    def _check_known(self, facts: Sequence[Fact]) -> None:
        """Raise ValueError for facts to forget that neither this model nor the unedited one knows.

        An earlier edit may have made an answer less probable by the way: that is no mistake.
        """
        unknown = not_known(self.lm, facts)
        if unknown and self.edits:
            with self.history.set_aside():
                unknown = not_known(self.lm, list(unknown))
        if unknown:
            raise unknown_error(unknown)

    def _taught(self) -> dict[str, str]:
        """The answers that were taught, which is what may be forgotten."""
        return {fact.key: fact.target_new for edit in self.edits for fact in edit.facts if not fact.forget}

    def _edited(self, facts: tuple[Fact, ...], plan: Plan, known: Mapping[int, Tensor]) -> Edit:
        """Edit a batch, with target values where they are known, (rows, d_value) by target layer."""
        places = {place for step, _ in plan for place in self._method.solver.writes(step.layer)}
        with self.history.open(sorted(places), "edit") as draft:
            edit = self._written(facts, plan, draft, known)
            draft.keep(edit)
        self._seconds = {}  # later reads do not count toward this edit
        return edit

    def _written(self, facts: tuple[Fact, ...], plan: Plan, draft: Draft[Edit], known: Mapping[int, Tensor]) -> Edit:
        """The editing loop: solve and write one layer after another."""
        values = dict(known)
        shifts: dict[int, Shift] = {}
        targets: dict[int, TargetValues] = {}
        residuals: dict[int, Tensor] = {}
        traces: dict[int, Traces] = {}
        # Where a batch is read once it is written, since layers below have changed by then.
        late = self.method.regularizer.acts is Acts.BATCH or self.method.solver.remembers_inputs
        several = self.method.target.has_values and len({step.target_layer for step, _ in plan}) > 1
        with sharing_copies() if several else nullcontext():
            for step, rows in plan:
                layer = step.layer
                residuals[layer] = self._read_residual(step, rows, values, targets)
                keys = self._read_keys(rows, layer)
                solved = self._solve(step, rows, keys, residuals[layer], facts)
                solved = self._regularized(Acts.LAYER, solved, draft.before)
                shifts |= solved
                if self.recipe.remember_keys and not late:
                    traces[layer] = self.prepared.memory(layer).trace(keys, residuals[layer])
                self._write(draft.write, solved)
        if self.method.regularizer.acts is Acts.BATCH:
            shifts = self._regularized(Acts.BATCH, shifts, draft.before)
            self._write(draft.rewrite, shifts)
        if self.recipe.remember_keys and late:
            traces = self._traces(plan, residuals)
        patch = self.describe(draft.batch(facts, shifts))
        return Edit(patch, targets, traces, self._seconds, values, _facts_of_rows(plan, traces))

    @property
    def _apart(self) -> bool:
        """Whether first tokens may be edited apart. Exact mode stays with the published keys."""
        fits = self.precision.name != "exact" and FIRST_LAYER not in self.written_layers
        known = FIRST_LAYER in self._given or not self._given  # else its second moment is not to be had
        there = self.lm.in_memory(FIRST_LAYER)
        return fits and known and there and self._method.target.apart and without_bos(self.lm)

    @staged("contexts")
    def _plan(self, facts: Sequence[Fact], written: Iterable[int] | None = None) -> Plan:
        """What to write, in order: first tokens to the first layer, then the steps of the method.

        Args:
            written: The places that a batch has shifted, to write it there again; None for a new batch.
        """
        readers = BatchReaders(self.lm, facts, self.contexts, self._apart, self.written_layers, self.precision)
        main, first = self.method.target.read(readers)
        steps = [(step, main) for step in self._turn(written)]
        return steps if first is None else [(FIRST_STEP, first), *steps]

    def _turn(self, written: Iterable[int] | None) -> list[Step]:
        """The steps of a batch that has shifted these places; of a new one, those that the fewest edits have taken."""
        turns = self._method.spread.turns(self.critical_layers)
        if written is not None:
            return turns[_turn_of(turns, written)]
        taken = [_turn_of(turns, edit.patch.places) for edit in self.edits]
        return turns[min(range(len(turns)), key=taken.count)]

    def target_values(self, facts: Sequence[Fact], layer: int) -> TargetValues:
        """Optimize the value of each fact at a layer, on the present weights, which stay unchanged.

        In all contexts, as published: `edit` takes the bare prompts of first tokens apart.

        Raises:
            ValueError: The method optimizes no values.
        """
        self.measure(layers=[layer])
        return self._optimized(facts, layer, self.method.optimized, self.contexts)

    @staged("values")
    def _optimized(self, facts: Sequence[Fact], layer: int, target: Target, contexts: Sequence[str]) -> TargetValues:
        with bar(f"optimizing values at layer {layer}", len(facts) * target.evaluations, self._progress) as advance:
            optimize = self._optimize or optimize_values
            return optimize(self.lm, facts, layer, target, contexts, progress=advance, precision=self.precision)

    def _targets(self, views: Views, layer: int) -> TargetValues:
        found = [self._optimized(view.facts, layer, view.target, view.contexts) for view in views.parts]
        return views.joined(found)

    @staged("keys")
    def _read_residual(
        self, step: Step, rows: Rows, values: dict[int, Tensor], targets: dict[int, TargetValues]
    ) -> Tensor:
        """How the outputs of a step's rows are to move, (rows, d_value); what is optimized for it is added."""

        def wanted(views: Views, layer: int) -> Tensor:
            if layer not in values:  # optimized on first use, then remembered
                targets[layer] = self._targets(views, layer)
                values[layer] = targets[layer].values
            return values[layer]

        return rows.residual(self.lm, step, wanted).cpu()

    @staged("keys")
    def _read_keys(self, rows: Rows, layer: int) -> Tensor:
        return rows.keys(self.lm, layer).cpu()

    def _preserved(self, step: Step, rows: Rows) -> list[Traces]:
        """What a layer preserves before any batch: the first one, what other first tokens do."""
        if step is not FIRST_STEP or not isinstance(rows, Views):
            return []
        tokens = other_first_tokens(self.lm, rows)
        if tokens not in self._first_tokens:
            keys = first_token_keys(self.lm, tokens).cpu()
            nothing = keys.new_zeros(len(keys), self.lm.d_value)
            self._first_tokens[tokens] = self.prepared.memory(FIRST_LAYER).trace(keys, nothing)
        return [self._first_tokens[tokens]]

    def _between(self, layer: int, rows: Rows) -> list[Traces]:
        """What a layer preserves of the batch itself: the tokens of long answers between the anchors."""
        keys = rows.between(self.lm, layer)
        if keys is None:
            return []
        return [self.prepared.memory(layer).trace(keys.cpu(), keys.new_zeros(len(keys), self.lm.d_value).cpu())]

    @staged("solve")
    def _solve(self, step: Step, rows: Rows, keys: Tensor, residual: Tensor, facts: Sequence[Fact]) -> dict[int, Shift]:
        """What the step changes, by place."""
        layer = step.layer
        _check_finite(f"keys of layer {layer}", keys)
        _check_finite(f"residual of layer {layer}", residual)
        memory = self.prepared.memory(layer)
        try:
            kept = self._earlier(layer, facts)
            if not self.method.solver.remembers_inputs:
                kept = [*self._preserved(step, rows), *kept, *self._between(layer, rows)]
            memory.follow(kept)
            found = memory.shifts(RowsInLayer(self.lm, rows, layer, keys, residual))
            shifts = {place: smaller(shift).to(self._stored_dtype) for place, shift in found.items()}
        except UnknownExpert as error:
            raise ValueError(f"layer {layer}: {error}") from error
        if not all(shift.is_finite() for shift in shifts.values()):
            raise FloatingPointError(f"the shift of layer {layer} is not finite")
        return shifts

    def _earlier(self, layer: int, facts: Sequence[Fact]) -> list[Traces]:
        """What a layer preserves of earlier batches: all but what later ones, or these facts, ask again."""
        memory, asked = self.prepared.memory(layer), {fact.key for fact in facts}
        found: list[Traces] = []
        for edit in reversed(self.edits):
            if layer in edit.traces:
                found.append(edit.remembered(layer, asked, memory))
            asked.update(fact.key for fact in edit.facts)
        return found[::-1]

    @staged("regularize")
    def _regularized(self, acts: Acts, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        """The shifts as the regularizer changes them if it acts at this point, in the dtype that is stored."""
        if self._method.regularizer.acts is not acts:
            return dict(shifts)
        weights = matrices({layer: before[layer] for layer in shifts})
        kept = self._method.regularizer.regularize(shifts, weights)
        return {layer: smaller(shift).to(self._stored_dtype) for layer, shift in kept.items()}

    @staged("write")
    def _write(self, write: Callable[[Mapping[int, Shift]], None], shifts: Mapping[int, Shift]) -> None:
        write(shifts)

    @staged("keys")
    def _met(self, plan: Plan) -> dict[int, Traces]:
        """What to remember of a batch where inputs are remembered, in all layers; read on the present weights."""
        found = plan[-1][1].inputs(self.lm, self.written_layers, prompts=True)
        if plan[0][0] is FIRST_STEP:
            found |= plan[0][1].inputs(self.lm, [FIRST_LAYER])
        return {layer: self.prepared.memory(layer).met(inputs) for layer, inputs in found.items()}

    def _traces(self, plan: Plan, residuals: Mapping[int, Tensor | None]) -> dict[int, Traces]:
        """What to remember of facts in some layers, with keys read on the present weights."""
        if self.method.solver.remembers_inputs:
            return self._met(plan)
        written = {step.layer: rows for step, rows in plan}
        return {
            layer: self.prepared.memory(layer).trace(self._read_keys(written[layer], layer), residual)
            for layer, residual in residuals.items()
        }

    def _read_out(self) -> Any:
        """The history's read-out: None unless the regularizer acts on the session."""
        if self._method.regularizer.acts is not Acts.SESSION:
            return None
        return lambda shifts, unedited: self._regularized(Acts.SESSION, shifts, unedited)

    def replay(self, patch: Patch, traces: Sequence[dict[int, Traces]] | None = None) -> None:
        """Write batches that were edited before, and continue as if this editor had edited them.

        Args:
            patch: Of the same method and settings, made on the model's present weights; not one that a regularizer has
                made of a session's sum.
            traces: What the solver remembered of each batch. By default the keys of the facts are read again, on the
                weights that each batch leaves.

        Raises:
            ValueError: Other settings, or other weights; the model is unchanged and the message says what differs.
            RuntimeError: This machine writes other bits than the one that edited; the model is unchanged.
        """
        with self._adopting(patch):
            self._replay(patch, traces)

    def _replay(self, patch: Patch, traces: Sequence[dict[int, Traces]] | None) -> None:
        self.adopt_contexts(patch.settings.get("contexts", ()))
        self.prepare(patch.layers)
        if any(batch.conditioned for batch in patch.batches):
            raise ValueError(
                f"replay: {patch.method} has conditioned the sum of this patch's edits, so a session cannot continue "
                "from it; give the patches that edit returned."
            )
        mine, its = ({"written_dtype": str(dtype)} for dtype in (self.written_dtype, patch.written_dtype))
        differing = difference({**its, **patch.settings}, {**mine, **self.settings})
        if differing is not None:
            raise ValueError(f"replay: the patch was made with other settings: {differing}.")
        if traces is None and self.recipe.remember_keys and not self.rereads(patch.layers):
            raise ValueError(
                f"replay: {type(self.method.solver).__name__} remembers more of a batch than its patch holds; give the "
                "traces of each batch, as a session keeps them."
            )
        with self.history.open(patch.places, "replay") as draft:
            changed = changed_layers(draft.weights, patch.states()[0], patch.places)
            if changed:
                raise ValueError(
                    f"replay: the patch was made for other weights than the model has in {layer_list(changed)}; load "
                    "the model that was edited."
                )
            for index, batch in enumerate(patch.batches):
                batch, plan = draft.replay(batch), self._plan(batch.facts, batch.shifts)
                found = {} if traces is None else traces[index]
                if traces is None and self.recipe.remember_keys:
                    found = self._traces(plan, dict.fromkeys(step.layer for step, _ in plan))
                facts = _facts_of_rows(plan, found)
                draft.keep(Edit(replace(patch, batches=(batch,)), {}, found, rows=facts))

    def undo_fact(self, *which: Fact | str, values: Mapping[int, Mapping[int, Tensor]] | None = None) -> list[Patch]:
        """Take single facts back: solve the batches from theirs on again without them.

        The other facts keep their target values, so nothing is optimized. Keys and residuals are read again, on the
        weights as they are then; gradients, too, so without target values the weights become those of a history that
        never had the facts. Batches before that of the first fact stay as they are; one that loses all of its
        facts is left out. After any error the model is as it was before the call.

        Args:
            which: Facts, ids, or places as in `factpatch log --facts`; see `factpatch.facts.find_facts`.
            values: The target values of batches that were replayed, by the index of the edit and the target layer, as
                `Edit.values` held them.

        Returns:
            The patches of the batches that were solved again, which follow those that stay.

        Raises:
            ValueError: A fact is not found, the target values of a batch are not known, what is left of a batch cannot
                be edited, or the weights were changed by somebody else.
            FloatingPointError: NaN or infinity at any stage.
        """
        return self.undo_places(find_facts([edit.facts for edit in self.edits], which), values)

    def undo_places(
        self,
        gone: Sequence[tuple[int, int]],
        values: Mapping[int, Mapping[int, Tensor]] | None = None,
        solved: Callable[[Edit], None] = lambda edit: None,
    ) -> list[Patch]:
        """As `undo_fact`, of the facts in these places, as `factpatch.facts.find_facts` returns them.

        `solved` is called with each batch as soon as it is solved again, before the next one is.
        """
        edits = self.edits
        first, known = gone[0][0], dict(values or {})
        again = []
        for index, edit in enumerate(edits[first:], start=first):
            left = tuple(fact for place, fact in enumerate(edit.facts) if (index, place) not in gone)
            if left:
                again.append(
                    (left, self._plan(left, edit.patch.places), self._kept(index, left, known.get(index, edit.values)))
                )
        self._seconds = {}
        with self.history.attempt():
            self.history.take_back(first, "undo_fact")
            patches = []
            for batch in again:
                edit = self._edited(*batch)
                solved(edit)
                patches.append(edit.patch)
            return patches

    def _kept(self, index: int, left: Collection[Fact], values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The target values of some of a batch's facts, by target layer; none if the method follows gradients."""
        kept: dict[int, Tensor] = {}
        if not self._method.target.has_values:
            return kept
        for step, rows in self._plan(self.edits[index].facts, self.edits[index].patch.places):
            if step.target_layer not in values:
                raise ValueError(
                    f"undo_fact: the target values of batch {index + 1} are not known, since it was replayed. Give "
                    "them as values, or undo the batch and edit its other facts again."
                )
            if len(rows.facts) != len(values[step.target_layer]):
                raise ValueError(
                    f"undo_fact: batch {index + 1} has {len(values[step.target_layer])} target values, and its facts "
                    f"have {len(rows.facts)} now: an earlier version began the chunks of long answers elsewhere. Undo "
                    "the batch and edit its other facts again."
                )
            stay = [row for row, fact in enumerate(rows.facts) if fact in left]
            kept[step.target_layer] = values[step.target_layer][stay]
        return {layer: kept[layer] for layer in kept if len(kept[layer])}

    @contextmanager
    def _adopting(self, patch: Patch) -> Iterator[None]:
        """Take over from a patch what was measured for it, if it is not known here; not if the block fails."""
        before, name = self._method, self._method.target.measures
        recorded = patch.settings.get("target")
        known = recorded.get(name) if name is not None and isinstance(recorded, dict) else None
        try:
            if known and self._method.optimized.unmeasured(self.target_layers):
                self._method = with_settings(self._method, {f"target.{name}": known})
            yield
        except BaseException:
            self._method = before
            raise

    def rereads(self, layers: Iterable[int]) -> bool:
        """Whether what is remembered of a batch in these layers can be read again on the weights that it leaves."""
        return self._method.target.rereads and all(self.prepared.memory(layer).rereads for layer in layers)

    def prepare(self, layers: Sequence[int] = (), seconds: dict[str, float] | None = None) -> None:
        """Read what every edit needs: contexts, second moments of written layers, what the target has to know.

        Args:
            layers: Further layers.
            seconds: Where to add the time that it takes, by stage; by default it is the edit's, inside of one.
        """
        own, self._seconds = self._seconds, self._seconds if seconds is None else seconds
        try:
            with timed(self._seconds, "second_moment"):
                self.prepared.read(lambda: self.contexts, [*layers, *self.edited_layers], edited=bool(self.edits))
            with timed(self._seconds, "contexts"):
                _ = self.contexts
            self.measure()
        finally:
            self._seconds = own

    @property
    def target_layers(self) -> list[int]:
        """The layers at which the method's spread has values optimized, ascending."""
        return sorted({step.target_layer for step in self._method.spread.all_steps(self.critical_layers)})

    def measure(self, facts: Sequence[Fact] | None = None, layers: Sequence[int] | None = None) -> dict[str, Any]:
        """Measure on the unedited model what the method's target needs, such as the anchor of `AnchoredNorm`.

        Every edit does this first, once, unless a setting gives it; the result becomes part of the settings.

        Args:
            facts: Measure on these, in place of what is known; by default on those that come with the package, and only
                what is not known.
            layers: By default those with a target value.

        Returns:
            What is now known, as a setting by its dotted name; nothing if the target needs nothing.

        Raises:
            ValueError: Something has to be measured and the model is edited, or a fact cannot be edited.
        """
        name = self._method.target.measures
        if name is None:
            return {}
        target = self._method.optimized
        wanted = self.target_layers if layers is None else list(layers)
        missing = target.unmeasured(wanted) if facts is None else wanted
        if missing and self.edits:
            raise ValueError(
                f"target.{name}: it is measured on the unedited model, and this one is edited already; undo "
                f"the edits first, or give it for layers {missing}."
            )
        if missing:
            self._measure(target, demo_facts() if facts is None else facts, missing)
        return {f"target.{name}": getattr(self._method.target, name)}

    @staged("measure")
    def _measure(self, target: Target, facts: Sequence[Fact], layers: Sequence[int]) -> None:
        optimize = self._optimize or optimize_values

        def find(some: Sequence[Fact], layer: int, plain: Target) -> TargetValues:
            return optimize(self.lm, some, layer, plain, self.contexts, progress=advance, precision=self.precision)

        about = (self.precision.name, str(getattr(optimize, "identity", None)))
        evaluations = len(facts) * len(layers) * target.evaluations
        with bar(f"measuring the {target.measures}", evaluations, self._progress) as advance:
            values = reference_values(self.lm, facts, layers, target, self.contexts, find, about)
        self._method = replace(self._method, target=target.measured(values))
        known = getattr(self._method.target, str(target.measures))
        logger.info("measured on %d facts: target.%s=%s", len(facts), target.measures, known)

    def memory(self, layer: int) -> Memory:
        """What the solver knows of a layer before any edit, read on first use.

        Raises:
            ValueError: The second moment is not read yet, and the model is edited already.
        """
        self.prepare([layer])
        return self.prepared.memory(layer).fresh()

    def with_spread(self, spread: Spread, optimize: Optimize | None = None, apart: bool | None = None) -> Editor:
        """An editor of the same model with another spread (and `optimize`), which shares what was read and prepared.

        `apart` replaces `Target.apart`. Only one of several editors of a model may hold edits at a time.

        Raises:
            ValueError: This editor holds edits, or the spread needs what the model does not have.
        """
        if self.edits:
            raise ValueError(
                "with_spread: this editor holds edits, which the other would not know of; undo them first."
            )
        check_spread(self._method.name, spread, self.critical_layers, self.lm)
        if self.prepared.underived:  # derived once, from the layers of this editor's spread
            self.prepare()
        made = copy(self)
        method = self.method
        target = method.target if apart is None else replace(method.optimized, apart=apart)
        made._method = replace(method, spread=spread, target=target)
        made._optimize = optimize or self._optimize
        made.prepared = self.prepared.for_layers(made.written_layers)
        made.history = History(self.lm.weights, self.written_dtype, made._read_out())
        return made

    @property
    def settings(self) -> dict[str, Any]:
        identity = getattr(self._optimize, "identity", None)
        settings = {
            **settings_of(self.method),
            "preset": self._origin,
            "critical_layers": list(self.critical_layers),
            "contexts": list(self.contexts),
            "chat": self.lm.frame.chat,
            **({"frame": asdict(self.lm.frame)} if self.lm.frame.chat else {}),
            "remember_keys": self.recipe.remember_keys,
            "precision": self.precision.name + (" compiled" if self.precision.compiled else ""),
            "second_moment": self.prepared.about,
            **({} if identity is None else {"optimize": str(identity)}),
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))  # as a patch file gives them back
        return plain


def _warn_of_whole_answers(method: Method, facts: Sequence[Fact]) -> None:
    long = [fact for fact in facts if not fact.forget and is_long(fact.target_new)]
    if long and isinstance(method.target, Target) and not method.target.chunk:
        logger.warning(
            "%s of %d words or more, which a single value rarely brings about. Write such answers in chunks: "
            "--variant long-answers, variant='long-answers', or of other models than those with that variant "
            "target.chunk=12.",
            "1 fact has an answer" if len(long) == 1 else f"{len(long)} facts have answers", LONG,
        )  # fmt: skip


def _facts_of_rows(plan: Plan, traces: Iterable[int]) -> dict[int, tuple[Fact, ...]]:
    """The fact of each row of traces, by layer; in layers that no step writes, the rows are those of the last one."""
    of_step = {step.layer: rows.facts for step, rows in plan}
    return {layer: of_step.get(layer, plan[-1][1].facts) for layer in {*of_step, *traces}}


def _turn_of(turns: Sequence[Sequence[Step]], written: Iterable[int]) -> int:
    """The first turn all of whose layers are among those of some places; the first of all if there is none."""
    layers = {layer_of(place) for place in written}
    return next((turn for turn, steps in enumerate(turns) if {step.layer for step in steps} <= layers), 0)


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise FloatingPointError(f"{name} are not finite")
