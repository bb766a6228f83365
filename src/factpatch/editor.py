"""Editor: a model, a method and its memory of earlier keys. The editing loop is written here, once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factpatch.data import demo_facts
from factpatch.export.card import model_card
from factpatch.facts import Fact, check_batch
from factpatch.methods import Method, method_named, settings_of, with_settings
from factpatch.model.language_model import LanguageModel, editable_weights
from factpatch.model.loading import dtype_named, load_language_model
from factpatch.model.precision import check_precision, precision_for
from factpatch.model.weights import changed_layers, content_hash, restore, snapshot
from factpatch.patch.patch import Batch, Patch, total_shifts, write_shift
from factpatch.patch.shift import Shift, smaller
from factpatch.presets.preset import Preset, check_fits, choose, load_preset, preset_for
from factpatch.statistics.corpus import Corpus, corpus_from
from factpatch.statistics.second_moment import TOKENS_PER_DIMENSION, CorpusError, SecondMoment, no_corpus
from factpatch.strategies.least_squares import Memory, System
from factpatch.strategies.regularizer import Acts
from factpatch.strategies.solver import WRITTEN
from factpatch.strategies.spread import Spread, Step
from factpatch.support.progress import bar, timed
from factpatch.support.versions import library_versions
from factpatch.support.words import difference
from factpatch.values.contexts import check_contexts, generate_contexts
from factpatch.values.optimize import TargetValues, optimize_values
from factpatch.values.reading import SubjectRows, read_keys, read_values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edit:
    """One call of `Editor.edit`, as the editor remembers it."""

    patch: Patch
    targets: dict[int, TargetValues]
    """The outcome of the value optimization, by target layer."""
    keys: dict[int, Tensor]
    """The keys of the facts in every written layer, (n, d_key), which later edits will preserve."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage."""


class Editor:
    """Edits a model in place, one batch of facts after another.

    Args:
        model: the name of an embedded model, a directory, an id of the Hugging Face Hub, or a loaded model.
        tokenizer: the tokenizer of a loaded model.
        method: a name from `factpatch.METHODS`, with the model's preset applied, or a `Method`, taken as it is.
        preset: a preset, or a file with one, as `factpatch tune` writes; by default the one that the package ships for
            the model. For a model without one, the nearest preset is assumed, and a warning names what is: its layers,
            scaled to the model's depth, and its value optimization. The solver's weights are then derived from the
            model's own keys, see `Solver.scaled`.
        variant: of the preset, as `factpatch presets` lists them: other numbers for some methods.
        critical_layers: the layers the method may write, ascending; from the model's preset by default.
        settings: fields of the method's strategies to replace, by dotted name: `{"solver.weight": 5000}`.
        contexts: templates with one `{}` for the prompt, the bare one first; by default the model generates them.
        corpus: text for the second moment: see `factpatch.statistics.corpus.corpus_from`.
        corpus_tokens: how many of its tokens to read; 10 per key dimension by default.
        second_moments: E[k kᵀ] by layer, (d_key, d_key), for those who have it already.
        chat: edit what the model answers in a chat: every prompt is a user's turn in the tokenizer's chat template, and
            its target begins the assistant's answer.
        remember_keys: preserve the keys of facts that this editor edited before.
        precision: of the value optimization: exact (float64), float32, or fast (16-bit matrix products, everything
            small in float32); by default what the model is stored in. See `factpatch.model.precision.precision_for`.
        optimize: what finds target values in place of `optimize_values`, with the same arguments, as `SharedTargets`.
        written_dtype: what a shift is rounded to before it is added; float32, or float64 for a float64 model.
        seed: of the generated contexts.
        device, dtype: where and in which dtype to load the model; a float64 model is edited in exact mode.
        progress: show a bar on a terminal during long work.

    Raises:
        ValueError: an argument does not fit; the message names it and says what to do.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        method: str | Method = "memit-blue",
        *,
        preset: str | Path | Preset | None = None,
        variant: str | None = None,
        critical_layers: Sequence[int] | None = None,
        settings: Mapping[str, Any] | None = None,
        contexts: Sequence[str] | None = None,
        corpus: str | Path | Sequence[str] | Corpus | None = None,
        corpus_tokens: int | None = None,
        second_moments: Mapping[int, Tensor] | None = None,
        chat: bool = False,
        remember_keys: bool = True,
        precision: str | None = None,
        optimize: Callable[..., TargetValues] | None = None,
        written_dtype: str | torch.dtype | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        progress: bool = True,
    ) -> None:
        row = method_named(method) if isinstance(method, str) else method
        settings = dict(settings or {})
        with_settings(row, settings)  # a wrong name should not wait for the model
        check_precision(precision)
        if variant is not None and not isinstance(method, str):
            raise ValueError(
                f"variant={variant!r}: a Method is taken as it is; name a method, or leave the variant out."
            )
        self.lm: LanguageModel = load_language_model(model, tokenizer, device, dtype, chat)
        self.preset = preset_for(self.lm) if preset is None else _given_preset(preset, self.lm)
        named = method if isinstance(method, str) else None
        choice = choose(self.preset, self.lm, named, variant, settings, critical_layers)
        self.method = with_settings(row, choice.settings)
        self.lm.check_layers(choice.critical_layers)
        editable_weights(self.lm.model, choice.critical_layers)
        self.critical_layers = choice.critical_layers
        self._origin = choice.origin
        self._scaled = choice.scaled  # the solver's settings are still to be derived
        self.remember_keys = remember_keys
        self.precision = precision_for(self.lm, precision)
        self._optimizer = optimize
        self.seed = seed
        self.edits: list[Edit] = []
        self._progress = progress
        self._corpus = corpus
        if corpus_tokens is not None and corpus_tokens < 1:
            raise ValueError(f"corpus_tokens={corpus_tokens}: must be positive.")
        self._corpus_tokens = self.preset.corpus_tokens if corpus_tokens is None else corpus_tokens
        self._contexts = None if contexts is None else check_contexts(contexts)
        self._moments: dict[int, Tensor] = dict(second_moments or {})
        self._memories: dict[int, Memory] = {}  # what each layer's solver knows
        given = {str(layer): content_hash(moment) for layer, moment in self._moments.items()}
        self._statistics: dict[str, Any] = {"corpus": "given as matrices", "sha256": given}
        self._base: dict[int, Tensor] = {}  # the unedited weights
        self._full: dict[int, Tensor] = {}  # the weights with every edit, where the model shows something else
        self._read_out: Patch | None = None  # what it then shows
        self._check_corpus()
        self._stored_dtype = self.lm.work_dtype
        self._written_dtype = dtype_named(written_dtype) or self.lm.work_dtype

    @property
    def model(self) -> Any:
        return self.lm.model

    @property
    def tokenizer(self) -> Any:
        return self.lm.tokenizer

    @property
    def written_dtype(self) -> torch.dtype:
        """What a shift is rounded to before it is added."""
        return self._written_dtype

    @property
    def contexts(self) -> tuple[str, ...]:
        """The templates that prompts are put into; generated once, with the editor's seed, on first use."""
        if self._contexts is None:
            with torch.inference_mode(), self.lm.quiet():
                self._contexts = generate_contexts(self.lm, self.seed)
        return self._contexts

    @property
    def patch(self) -> Patch:
        """Everything this editor has changed and not undone, as one patch: what the model now holds."""
        if not self.edits:
            raise ValueError("nothing has been edited yet; call edit first.")
        if self._read_out is not None:
            return self._read_out
        return Patch.join([edit.patch for edit in self.edits])

    def edit(self, facts: Sequence[Fact]) -> Patch:
        """Edit the model in place, all facts in one batch.

        Whatever goes wrong, NaN or an interruption included, the model is as it was before the call.

        Returns:
            What this batch changed. Applying the patches of all batches in order to the unedited model gives the same
            bits; under a regularizer that acts on the session, `patch` does so instead.

        Raises:
            ValueError: a fact cannot be edited, or two facts of the batch contradict each other.
            FloatingPointError: NaN or infinity at any stage.
        """
        facts = tuple(facts)
        check_batch(facts)
        steps = self.method.spread.steps(self.critical_layers)
        layers = sorted({step.layer for step in steps})
        self._check_untouched("edit")
        seconds: dict[str, float] = {}
        with timed(seconds, "second_moment"):
            self._prepare(layers)
        with timed(seconds, "contexts"):
            subjects = SubjectRows.of(self.lm, facts, self.contexts)
        weights = self.lm.weights(layers)
        with self._unchanged_on_failure(weights) as shown:
            restore(weights, self._full)
            copies = snapshot(weights)
            shifts, targets, keys = self._write_batch(facts, subjects, steps, weights, copies, seconds)
            before = {layer: content_hash(copies[layer]) for layer in layers}
            batch = Batch(facts, shifts, before, {layer: content_hash(weights[layer]) for layer in layers})
            edit = Edit(self._describe(batch), targets, keys if self.remember_keys else {}, seconds)
            with timed(seconds, "regularize"):
                self._remember([*self.edits, edit], {**shown, **self._base}, weights)
        return edit.patch

    def _write_batch(
        self,
        facts: Sequence[Fact],
        subjects: SubjectRows,
        steps: Sequence[Step],
        weights: Mapping[int, Tensor],
        copies: Mapping[int, Tensor],
        seconds: dict[str, float],
    ) -> tuple[dict[int, Shift], dict[int, TargetValues], dict[int, Tensor]]:
        """The editing loop: solve and write one layer after another."""
        lm, method = self.lm, self.method
        shifts: dict[int, Shift] = {}
        targets: dict[int, TargetValues] = {}
        keys: dict[int, Tensor] = {}
        for step in steps:
            with timed(seconds, "values"):
                if step.target_layer not in targets:  # optimized on first use, then remembered
                    targets[step.target_layer] = self.target_values(facts, step.target_layer)
            with timed(seconds, "keys"):
                present = read_values(lm, subjects, step.target_layer, method.target.site)
                keys[step.layer] = read_keys(lm, subjects, step.layer).cpu()
            residual = step.share * (targets[step.target_layer].values - present)
            with timed(seconds, "solve"):
                solved = {step.layer: self._solve(step.layer, keys[step.layer], residual.cpu())}
                shifts |= self._regularized(Acts.LAYER, solved, copies)
            with timed(seconds, "write"):
                write_shift(weights[step.layer], shifts[step.layer], self._written_dtype)
        if method.regularizer.acts is Acts.BATCH:
            with timed(seconds, "regularize"):
                shifts = self._regularized(Acts.BATCH, shifts, copies)
                restore(weights, copies)
                self._write(weights, shifts)
            # The weights below a layer are no longer those its keys were read on.
            if self.remember_keys:
                with timed(seconds, "keys"):
                    keys = {layer: read_keys(lm, subjects, layer).cpu() for layer in shifts}
        return shifts, targets, keys

    def _regularized(self, acts: Acts, shifts: Mapping[int, Shift], before: Mapping[int, Tensor]) -> dict[int, Shift]:
        """What the regularizer keeps of some shifts, if this is when it acts, in the dtype that is stored."""
        if self.method.regularizer.acts is not acts:
            return dict(shifts)
        kept = self.method.regularizer.regularize(shifts, before)
        return {layer: smaller(shift).to(self._stored_dtype) for layer, shift in kept.items()}

    def _write(self, weights: Mapping[int, Tensor], shifts: Mapping[int, Shift]) -> None:
        for layer, shift in shifts.items():
            write_shift(weights[layer], shift, self._written_dtype)

    def _remember(self, edits: list[Edit], base: dict[int, Tensor], weights: Mapping[int, Tensor]) -> None:
        """Take note of all edits in force, which the weights hold, and let the model show what is kept of them.

        A regularizer that acts on the session replaces their sum in the model. The full shifts are kept aside, so that
        the session goes on as if it had not been read out.
        """
        full: dict[int, Tensor] = {}
        read_out = None
        if edits and self.method.regularizer.acts is Acts.SESSION:
            full = snapshot(weights)
            kept = self._regularized(Acts.SESSION, total_shifts(_batches(edits)), base)
            restore(weights, base)
            self._write(weights, kept)
            read_out = self._describe(
                Batch(
                    facts=tuple(fact for batch in _batches(edits) for fact in batch.facts),
                    shifts=kept,
                    before={layer: content_hash(base[layer]) for layer in weights},
                    after={layer: content_hash(weight) for layer, weight in weights.items()},
                    edits=tuple(len(batch.facts) for batch in _batches(edits)),
                    conditioned=True,
                )
            )
        self.edits, self._base, self._full, self._read_out = edits, base if edits else {}, full, read_out

    @contextmanager
    def _unchanged_on_failure(self, weights: Mapping[int, Tensor]) -> Iterator[dict[int, Tensor]]:
        """Let an error in the block restore the weights and what is remembered of the edits that they hold."""
        shown = snapshot(weights)
        memory = self.edits, self._base, self._full, self._read_out
        try:
            yield shown
        except BaseException:
            restore(weights, shown)
            self.edits, self._base, self._full, self._read_out = memory
            raise

    def undo(self) -> Patch:
        """Take the last edit back, bit for bit; again for the one before.

        Returns:
            The patch of the edit that was undone.

        Raises:
            ValueError: nothing is left to undo, or the weights were changed by somebody else since.
            RuntimeError: the earlier edits cannot be written with the same bits; the model stays as it is.
        """
        if not self.edits:
            raise ValueError("nothing to undo: this editor has not edited the model, or everything is undone.")
        self._check_untouched("undo")
        *kept, undone = self.edits
        weights = self.lm.weights(list(self._base))
        with self._unchanged_on_failure(weights):
            restore(weights, self._base)
            for batch in _batches(kept):
                self._write(weights, batch.shifts)
            (batch,) = undone.patch.batches
            differing = changed_layers(weights, batch.before, batch.before)
            if differing:
                raise RuntimeError(
                    f"undo: writing the earlier edits again gave other bits in layers {differing}; was the number of "
                    "threads changed? The model is as it was before the call."
                )
            self._remember(kept, self._base, weights)
        return undone.patch

    def reset(self) -> None:
        """Take every edit back at once, bit for bit: as `undo` again and again, without writing what is undone next.

        Without edits there is nothing to do.

        Raises:
            ValueError: the weights were changed by somebody else since the last edit; the model stays as it is.
            RuntimeError: what was kept of the unedited weights is not what they were; the model stays as it is.
        """
        if not self.edits:
            return
        self._check_untouched("reset")
        expected: dict[int, str] = {}
        for batch in reversed(_batches(self.edits)):  # the earliest batch of a layer found it unedited
            expected |= batch.before
        weights = self.lm.weights(list(self._base))
        with self._unchanged_on_failure(weights):
            restore(weights, self._base)
            differing = changed_layers(weights, expected, expected)
            if differing:
                raise RuntimeError(
                    f"reset: the copies of the unedited weights of layers {differing} were altered. The model is as it "
                    "was before the call; load it anew."
                )
            self._remember([], {}, weights)

    def replay(self, patch: Patch) -> None:
        """Write batches that were edited before, and go on as if this editor had edited them.

        The keys of their facts are read again, on the weights that each batch leaves.

        Args:
            patch: of the same method and settings, made on what the model now is; not what a regularizer has left of a
                session's sum.

        Raises:
            ValueError: other settings, or other weights; the model is unchanged and the message says what differs.
            RuntimeError: this machine writes other bits than the one that edited; the model is unchanged.
        """
        self._check_untouched("replay")
        self._prepare(patch.layers)
        if any(batch.conditioned for batch in patch.batches):
            raise ValueError(
                f"replay: {patch.method} has conditioned the sum of this patch's edits, so that a session cannot go on "
                "from it; give the patches that edit returned."
            )
        mine, its = ({"written_dtype": str(dtype)} for dtype in (self._written_dtype, patch.written_dtype))
        mine, its = {**mine, **self.settings}, {**its, **patch.settings}
        differing = difference(its, mine)
        if differing is not None:
            raise ValueError(f"replay: the patch was made with other settings: {differing}.")
        layers = patch.layers
        weights = self.lm.weights(layers)
        edits = list(self.edits)
        with self._unchanged_on_failure(weights) as shown:
            restore(weights, self._full)
            changed = changed_layers(weights, patch.states()[0], layers)
            if changed:
                raise ValueError(
                    f"replay: the patch was made for other weights than the model has in layers "
                    f"{', '.join(map(str, changed))}; load the model that was edited."
                )
            for batch in patch.batches:  # each begins where the one before it ended: a patch sees to that
                self._write(weights, batch.shifts)
                if changed_layers(weights, batch.after, batch.after):
                    raise RuntimeError(
                        "replay: this machine rounds the shifts differently than the one that edited, so that the "
                        "edits cannot be continued here bit for bit. Apply their patch instead, and edit on from there."
                    )
                keys: dict[int, Tensor] = {}
                if self.remember_keys:
                    subjects = SubjectRows.of(self.lm, batch.facts, self.contexts)
                    keys = {layer: read_keys(self.lm, subjects, layer).cpu() for layer in batch.shifts}
                edits.append(Edit(replace(patch, batches=(batch,)), {}, keys))
            self._remember(edits, {**shown, **self._base}, weights)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the edited model with its tokenizer and a model card to a directory that transformers loads.

        The card, `factpatch.export.card`, lists what this editor edited; without an edit in force there is none.

        Raises:
            FileExistsError: the directory exists and is not empty.
            OSError: it cannot be written; nothing is left behind.
        """
        self.lm.save_pretrained(directory, model_card(self.patch) if self.edits else None)

    def _check_corpus(self) -> None:
        """Raise ValueError if the second moment would have to be read from nothing."""
        needed = {step.layer for step in self.method.spread.steps(self.critical_layers)}
        if self._corpus is None and not self.preset.shipped_corpus and not needed <= {*self._moments, *self._memories}:
            raise ValueError(no_corpus(self.lm))

    def prepare(self) -> None:
        """Read what every edit needs, so that only editing is left: contexts, and second moments of written layers."""
        _ = self.contexts
        self._prepare(sorted({step.layer for step in self.method.spread.steps(self.critical_layers)}))

    def with_spread(self, spread: Spread, optimize: Callable[..., TargetValues] | None = None) -> Editor:
        """An editor of the same model that spreads the residual otherwise, and shares what was read and prepared.

        Of several editors of a model one may hold edits at a time.

        Args:
            optimize: what finds its target values; by default what finds those of this editor.

        Raises:
            ValueError: this editor holds edits.
        """
        if self.edits:
            raise ValueError(
                "with_spread: this editor holds edits, which the other would not know of; undo them first."
            )
        if self._scaled:  # from the layers of this editor's spread, once for all
            self.prepare()
        made = copy(self)
        made.method = replace(self.method, spread=spread)
        made.edits, made._base = [], {}
        made._optimizer = optimize or self._optimizer
        made._moments = dict(self._moments)
        made._memories = {layer: Memory(memory.first) for layer, memory in self._memories.items()}
        made._check_corpus()
        return made

    def system(self, layer: int) -> System:
        """What a shift of a layer costs by itself, as the method's solver sees it; read on first use.

        Raises:
            ValueError: the second moment is not read yet, and the model is edited already.
        """
        self._prepare([layer])
        return self._memories[layer].first

    def target_values(self, facts: Sequence[Fact], layer: int) -> TargetValues:
        """Optimize the value of each fact at a layer, on the weights as they are. The model stays so."""
        target = self.method.target
        with bar(f"optimizing values at layer {layer}", len(facts) * target.steps, self._progress) as advance:
            optimize = self._optimizer or optimize_values
            return optimize(self.lm, facts, layer, target, self.contexts, advance, precision=self.precision)

    def _prepare(self, layers: Sequence[int]) -> None:
        """Have the solver's view of every layer's second moment at hand."""
        if self._scaled:  # which looks at all written layers at once
            layers = sorted({*layers, *(step.layer for step in self.method.spread.steps(self.critical_layers))})
        missing = [layer for layer in layers if layer not in self._memories]
        unread = [layer for layer in missing if layer not in self._moments]
        if unread:
            if self.edits:
                raise ValueError(
                    f"layers {unread} have no second moment yet, and the model is edited already; the second moment is "
                    "of the unedited model."
                )
            moments = self._read_moments(unread)
            self._moments |= {layer: moment.matrix for layer, moment in moments.items()}
        if self._scaled:
            self._scale()
        for layer in missing:
            self._memories[layer] = Memory(self.method.solver.prepare(self._moments[layer]))
            del self._moments[layer]  # only now: after an error it is still there for the next try

    def _scale(self) -> None:
        """Derive the solver's settings from the model's own keys: those of the facts that the package ships."""
        layers = sorted({step.layer for step in self.method.spread.steps(self.critical_layers)})
        with torch.inference_mode(), self.lm.quiet():
            subjects = SubjectRows.of(self.lm, demo_facts(), self.contexts)
            keys = [read_keys(self.lm, subjects, layer).cpu() for layer in layers]
        solver = self.method.solver.scaled([self._moments[layer] for layer in layers], keys, WRITTEN)
        self.method, self._scaled = replace(self.method, solver=solver), False
        fields = settings_of(self.method)["solver"].items()
        numbers = ", ".join(f"solver.{name}={value:.4g}" for name, value in fields if name != "class")
        logger.info("solver settings derived from the keys of %s: %s", self.lm.name, numbers)

    def _read_moments(self, layers: Sequence[int]) -> dict[int, SecondMoment]:
        corpus = corpus_from(self._corpus)
        tokens = self._corpus_tokens or TOKENS_PER_DIMENSION * self.lm.d_key
        with bar("reading the second moment", tokens, self._progress) as advance:
            moments = SecondMoment.read(self.lm, layers, corpus, tokens, progress=advance)
        read = min(moment.tokens for moment in moments.values())
        if read < self.lm.d_key:
            raise CorpusError(
                f"corpus: it holds {read} tokens, fewer than the {self.lm.d_key} dimensions of a key, so that "
                "directions in daily use would count as unused; give a longer text."
            )
        self._statistics = {"corpus": corpus.identity, "corpus_tokens": read}
        return moments

    def _solve(self, layer: int, keys: Tensor, residual: Tensor) -> Shift:
        _check_finite(f"keys of layer {layer}", keys)
        _check_finite(f"residual of layer {layer}", residual)
        memory = self._memories[layer]
        memory.follow([edit.keys[layer] for edit in self.edits if layer in edit.keys])
        shift = smaller(memory.solve(keys, residual)).to(self._stored_dtype)
        if not shift.is_finite():
            raise FloatingPointError(f"the shift of layer {layer} is not finite")
        return shift

    def _check_untouched(self, action: str) -> None:
        expected: dict[int, str] = {}
        for batch in _batches(self.edits) if self._read_out is None else self._read_out.batches:
            expected |= batch.after
        changed = changed_layers(self.lm.weights(list(expected)), expected, expected)
        if changed:
            raise ValueError(
                f"{action}: the weights of layers {changed} were changed outside this editor since its last edit; "
                "restore them, or go on with a new Editor."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What the next edit depends on besides the weights and the facts, resolved, as a patch holds it."""
        settings = {
            **settings_of(self.method),
            "preset": self._origin,
            "critical_layers": list(self.critical_layers),
            "contexts": list(self.contexts),
            "chat": self.lm.frame.chat,
            **({"frame": asdict(self.lm.frame)} if self.lm.frame.chat else {}),
            "remember_keys": self.remember_keys,
            "precision": self.precision.name,
            "second_moment": self._statistics,
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))  # as a patch file gives them back
        return plain

    def _describe(self, batch: Batch) -> Patch:
        return Patch(
            batches=(batch,),
            method=self.method.name,
            settings=self.settings,
            config=self.lm.config.to_dict(),
            weight_dtype=self.lm.dtype,
            written_dtype=self._written_dtype,
            versions=library_versions(),
            seed=self.seed,
        )


def _given_preset(preset: str | Path | Preset, lm: LanguageModel) -> Preset:
    if isinstance(preset, Preset):
        return preset if preset.assumed else check_fits(preset, lm)
    return check_fits(load_preset(preset), lm)


def _batches(edits: Sequence[Edit]) -> list[Batch]:
    return [batch for edit in edits for batch in edit.patch.batches]


def _check_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise FloatingPointError(f"{name} are not finite")
