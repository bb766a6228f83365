"""Patch: what an edit changed; applied to a model, removed from it, joined, saved to one file and loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factpatch.export.factors import LowRankFactors, low_rank
from factpatch.export.gguf_lora import write_gguf_lora
from factpatch.export.lora import write_lora
from factpatch.facts import Fact, latest
from factpatch.model.architectures import SHARED_EXPERT, experts_of
from factpatch.model.language_model import described_config, editable_names, editable_weights
from factpatch.model.places import layer_list, layer_of, name_of
from factpatch.model.weights import changed_layers, restore, snapshot
from factpatch.patch.algebra import check_summable, same_model, shrunk, summed
from factpatch.patch.batch import Batch, first_states, last_states, states
from factpatch.patch.compatibility import (
    PatchMismatchError,
    base_weights,
    check_config,
    check_state,
    fitting_weights,
    transformers_model,
)
from factpatch.patch.description import asked_in_chat
from factpatch.patch.file import dtype_name, format_of, read_patch_file, unusable, write_patch_file
from factpatch.patch.history import rebased, subtract_all, total_shifts, unchanged_on_failure, write_all
from factpatch.patch.shift import LowRank, decomposed, shifts_by_batch, tensors_by_name
from factpatch.support.words import counted, quoted

logger = logging.getLogger(__name__)

# The fields of a patch that a file holds as they are, and those that it holds by name.
_PLAIN_FIELDS = ("method", "settings", "config", "versions", "seed")
_DTYPE_FIELDS = ("weight_dtype", "written_dtype")
_OF_ONE_DTYPE = (
    "patches of one dtype can be joined or composed. Rebase one onto a model in the other's dtype: factpatch rebase "
    "MODEL PATCH --dtype D --out NEW, or patch.rebase(model) in Python."
)
_OF_ONE_SESSION = "patches of one session can be joined. Apply them one after another, or compose them."


@dataclass(frozen=True, eq=False, repr=False)
class Patch:
    """All that an editor changed in a model, batch by batch, and what is needed to apply and remove it elsewhere.

    Raises:
        TypeError: `settings` or `config` cannot be written as JSON.
        ValueError: There are no batches, or a batch does not begin with the weights that an earlier one left.
    """

    batches: tuple[Batch, ...]
    """In the order in which they were edited."""
    method: str
    """The name of the method."""
    settings: dict[str, Any]
    """The resolved settings of the method."""
    config: dict[str, Any]
    """The base model's text config, as `described_config(model)` gives it."""
    weight_dtype: torch.dtype
    """The dtype of the edited weights; content hashes depend on it."""
    written_dtype: torch.dtype
    """What the product of the factors is rounded to before it is added to a weight."""
    versions: dict[str, str]
    """The versions of the libraries that made the patch."""
    seed: int
    """The seed of the edit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", tuple(self.batches))
        if not self.batches:
            raise ValueError("batches=(): a patch needs at least one batch; edit something first.")
        # A patch is then the same after saving and loading: JSON has no tuples and no integer keys.
        for name in ("settings", "config", "versions"):
            try:
                object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{name} cannot be written as JSON: {error}; give plain numbers, texts, lists and dicts."
                ) from error
        left: dict[int, str] = {}
        for index, batch in enumerate(self.batches):
            broken = [layer for layer, found in batch.before.items() if left.get(layer, found) != found]
            if broken:
                raise ValueError(
                    f"batches[{index}] does not begin where the batch before it ended: the weights of "
                    f"{layer_list(broken)} differ. Give batches that were edited one after another."
                )
            left |= batch.left

    def __repr__(self) -> str:
        size = f"{counted(len(self.facts), 'fact')} in {counted(len(self.batches), 'batch')}"
        about = f"{self.method}, {size}, {layer_list(self.layers)}"
        return f"<Patch: {about}, {self.num_bytes:,} bytes>"

    @property
    def facts(self) -> list[Fact]:
        """The facts in force: of two that answer the same question, the newer."""
        return latest(batch.facts for batch in self.batches)[0]

    @property
    def chat(self) -> bool:
        """Whether its facts were edited as turns of a chat; of a composed patch, whether all were."""
        return asked_in_chat(self.settings)

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending."""
        return tuple(sorted({layer_of(place) for place in self.places}))

    @property
    def places(self) -> tuple[int, ...]:
        """The edited weights, ascending: the layers themselves, where down-projections alone are edited."""
        return tuple(sorted({place for batch in self.batches for place in batch.shifts}))

    @property
    def shared_expert(self) -> bool:
        """Whether the shared expert of a mixture of experts was edited."""
        return self.config.get(SHARED_EXPERT) is True

    @property
    def ranks(self) -> dict[int, int]:
        """The rank of the shifts of each place that are products of factors, summed over batches."""
        found: dict[int, int] = {}
        for layer, shift in ((layer, shift) for batch in self.batches for layer, shift in batch.shifts.items()):
            if isinstance(shift, LowRank):
                found[layer] = found.get(layer, 0) + shift.down.shape[0]
        return dict(sorted(found.items()))

    @property
    def sealed(self) -> bool:
        """Whether the patch records which weights it leaves."""
        return all(batch.after for batch in self.batches)

    @property
    def load_dtype(self) -> torch.dtype:
        """The dtype to load its base model in: that of the weights, or what a quantized model computes in."""
        if self.config.get("quantization_config") is None:
            return self.weight_dtype
        computes = getattr(torch, str(self.config.get("dtype")).removeprefix("torch."), None)
        return computes if isinstance(computes, torch.dtype) else self.weight_dtype

    @property
    def num_bytes(self) -> int:
        """The size of all shifts."""
        shifts = [shift for batch in self.batches for shift in batch.shifts.values()]
        return sum(tensor.nbytes for shift in shifts for tensor in shift.tensors().values())

    def states(self) -> list[dict[int, str]]:
        """The content hashes of the edited weights before the first batch and after each one; "" if unknown."""
        return states(self.batches)

    def apply(self, model: Any) -> None:
        """Write all batches to a model, in order.

        The model gets the very bits of the edit, provided that this machine rounds the products of the factors as the
        editing machine did. Otherwise it is the same up to rounding, and a warning names the layers.

        Args:
            model: The unedited base model: a transformers model or a `LanguageModel`.

        Raises:
            PatchMismatchError: It is another model, or already patched.
            FloatingPointError: A shift makes a weight infinite or undefined.
            ValueError: The model's family is unknown, its weights are not loaded, or it is quantized and cannot run.
        """
        weights = self._weights_of(model)
        check_state(self.config, self.batches, weights, model, wanted=0)
        with unchanged_on_failure(weights):
            write_all(weights, self.batches, self.written_dtype)
            # Only the end is compared: what this machine rounds differently on the way shows there or does not matter.
            rounded = changed_layers(weights, last_states(self.batches), self.places) if self.sealed else []
            if rounded:
                logger.warning(
                    "%s: this machine rounds the shift differently from the one that made the patch; the edit is the "
                    "same up to rounding, not bit for bit. To remove it, give the base model.",
                    layer_list(rounded),
                )

    def remove(self, model: Any, base: Any = None) -> None:
        """Take the patch off a model that holds it.

        Without `base` the shifts are subtracted, last to first, in the dtype in which they were added, and the result
        is rounded once. This restores a weight up to rounding: one unit in the last place of its dtype per batch at
        most, relative to the largest magnitude that the weight has had, max(|W|, |W + Δ|) for one batch. With `base`
        the weights are copied from there, bit for bit.

        Args:
            model: A transformers model or a `LanguageModel`, with the whole patch in it.
            base: The unedited model, or the directory of safetensors that holds it; only edited weights are read.

        Raises:
            PatchMismatchError: The model does not hold the patch, or `base` is not the model the patch was made for.
            FileNotFoundError: `base` is a path without safetensors in it.
            FloatingPointError, ValueError: As in `apply`.
        """
        weights = self._weights_of(model)
        if base is None:
            check_state(self.config, self.batches, weights, model, wanted=len(self.batches))
            with unchanged_on_failure(weights):
                subtract_all(weights, self.batches, self.written_dtype)
            return
        originals = base_weights(self.config, self.weight_dtype, first_states(self.batches), model, base)
        left = last_states(self.batches)
        if changed_layers(weights, left, self.places) and not self._made_here(weights, originals):
            check_state(self.config, self.batches, weights, model, wanted=len(self.batches))
        with unchanged_on_failure(weights):
            restore(weights, originals)

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Hold the patch in a model while the block runs; the edited weights are then restored bit for bit.

        Raises:
            PatchMismatchError, FloatingPointError, ValueError: As in `apply`.
        """
        copies = snapshot(self._weights_of(model))
        try:
            self.apply(model)
            yield
        finally:
            # Looked up again, since the block may have moved the model to another device.
            restore(editable_weights(transformers_model(model), self.places, self.shared_expert), copies)

    @classmethod
    def join(cls, patches: Sequence[Patch]) -> Patch:
        """Make one patch of successive ones, in the order in which they were edited.

        The seed and the versions are those of the first.

        Raises:
            ValueError: There are no patches, they differ in method, settings, model or dtypes, or one does not begin
                with the weights that an earlier one left.
        """
        first = _check_alike(patches, ("method", "settings", *_DTYPE_FIELDS))
        return replace(first, batches=tuple(batch for patch in patches for batch in patch.batches))

    @classmethod
    def compose(cls, patches: Sequence[Patch]) -> Patch:
        """Sum several patches of one model, in the order in which they were edited, into a patch of a single batch.

        They may be successive, or made independently on the same weights, by different methods too. The sum does not
        record which weights it leaves, since that takes the base model: `rebase` onto it adds this.

        Raises:
            ValueError: There are no patches, they are of different models or dtypes, one was made on weights that
                neither the base model nor the patches before it have, or independent ones edit the same fact.
        """
        first = _check_alike(patches, _DTYPE_FIELDS)
        base = check_summable([patch.batches for patch in patches])
        batches = [batch for patch in patches for batch in patch.batches]
        settings = first.settings
        if any(patch.settings != settings for patch in patches):
            parts = [patch.settings.get("composed", [{"method": patch.method, **patch.settings}]) for patch in patches]
            settings = {"composed": [part for some in parts for part in some]}
        methods = " + ".join(dict.fromkeys(patch.method for patch in patches))
        return replace(first, batches=(summed(batches, base),), method=methods, settings=settings)

    def rebase(self, base: Any) -> Patch:
        """The same shifts for other weights of the same shape, such as those of a fine-tuned model.

        Nothing guarantees that the facts hold there: verify them.

        Args:
            base: The transformers model or `LanguageModel` to apply the patch to later; it is not changed.

        Raises:
            PatchMismatchError: Another architecture, or the patch is in these weights already.
            FloatingPointError: A shift makes a weight infinite or undefined.
        """
        model = transformers_model(base)
        check_config(self.config, model)
        known = editable_names(model, self.shared_expert)
        there = [place for place in self.places if place in known]
        dtypes = [weight.dtype for weight in editable_weights(model, there[:1], self.shared_expert).values()]
        dtype = dtypes[0] if dtypes else self.weight_dtype  # without one of the layers, the check below refuses it
        patch = replace(self, config=described_config(model, self.shared_expert), weight_dtype=dtype)
        weights = snapshot(patch._weights_of(model))
        if self.sealed and not changed_layers(weights, last_states(self.batches), self.places):
            raise PatchMismatchError("base: it holds this patch already, which would be added a second time.")
        return replace(patch, batches=tuple(rebased(weights, self.batches, self.written_dtype)))

    def shrink(self, rank: int | None = None, energy: float | None = None) -> Patch:
        """A smaller patch that does almost the same: its total shift by its largest singular values.

        Its settings hold under "shrunk" the arguments and, by layer, the rank and the relative error in the Frobenius
        norm. Like a composed patch it does not record which weights it leaves; `rebase` adds this.

        Args:
            rank: The largest rank to keep.
            energy: The least share to keep of the sum of squared singular values, above 0 and at most 1.

        Raises:
            ValueError: Not exactly one of them is given, or it is out of range.
        """
        batch, about = shrunk(summed(self.batches, first_states(self.batches)), rank, energy)
        settings = {**self.settings, "shrunk": {"rank": rank, "energy": energy, "layers": about}}
        return replace(self, batches=(batch,), settings=settings)

    def factors(
        self, rank: int | None = None, energy: float | None = None, dtype: torch.dtype | None = None
    ) -> LowRankFactors:
        """The sum of all shifts as products of low rank, from which adapters are written.

        Args:
            rank: The largest rank to keep; by default the one that is exact up to rounding.
            energy: In place of `rank`, the least share to keep of the sum of squared singular values.
            dtype: What the factors are rounded to; by default `written_dtype`.

        Raises:
            ValueError: `rank` or `energy` is out of range; or neither is given and the shift is not of low rank; the
                message says what it needs.
            FloatingPointError: A shift is not finite.
        """
        parts = {layer: decomposed(shift) for layer, shift in total_shifts(self.batches).items()}
        return low_rank(parts, dtype or self.written_dtype, rank, energy, experts_of(self.config))

    def to_lora(
        self,
        directory: str | Path,
        rank: int | None = None,
        base_model_name: str | None = None,
        energy: float | None = None,
    ) -> dict[int, int]:
        """Write the patch as a LoRA adapter that peft, and servers that take LoRA, load on the base model.

        Args:
            directory: A new or empty directory.
            rank: As in `factors`.
            energy: As in `factors`.
            base_model_name: The base model as peft's AutoPeftModel and servers are to find it, an ID on the Hugging
                Face Hub or a directory. By default the ID that the model was loaded by; of a local model, none.

        Returns:
            By layer, how many singular values are written.

        Raises:
            ValueError, FloatingPointError: As in `factors`.
            FileExistsError: The directory exists and is not empty.
        """
        factors = self.factors(rank, energy)
        write_lora(factors, self.config, directory, base_model_name)
        return factors.ranks

    def to_gguf_lora(self, path: str | Path, rank: int | None = None, energy: float | None = None) -> dict[int, int]:
        """Write the patch as an adapter that llama.cpp and Ollama load on the base model, quantized or not.

        Args:
            path: A file; one that is there is replaced.
            rank: As in `factors`.
            energy: As in `factors`.

        Returns:
            By layer, how many singular values are written.

        Raises:
            ValueError: llama.cpp has no models of this family, or as in `factors`.
            FloatingPointError: As in `factors`.
        """
        factors = self.factors(rank, energy, torch.float32)
        write_gguf_lora(factors, self.config, path)
        return factors.ranks

    def save(self, path: str | Path) -> None:
        """Write the patch to one safetensors file, replacing an existing one; the same patch gives the same bytes.

        Raises:
            ValueError: The facts need more room than the format's header has.
            OSError: The file cannot be written; nothing is left behind.
        """
        document: dict[str, Any] = {
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            **{name: dtype_name(getattr(self, name)) for name in _DTYPE_FIELDS},
            "batches": [
                {
                    "facts": [fact.to_dict() for fact in batch.facts],
                    "before": {name_of(place): digest for place, digest in batch.before.items()},
                    "after": {name_of(place): digest for place, digest in batch.after.items()},
                    "edits": batch.edits,
                    "conditioned": batch.conditioned,
                }
                for batch in self.batches
            ],
        }
        facts = [fact for batch in document["batches"] for fact in batch["facts"]]
        document["format"] = format_of(facts, self.places)
        write_patch_file(path, document, tensors_by_name(batch.shifts for batch in self.batches))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch that `save` wrote.

        Raises:
            PatchFileError: There is no such file, or it is not a patch, of a newer format, cut short or altered.
        """
        described, tensors = read_patch_file(path)
        try:
            shifts = shifts_by_batch(tensors)
            batches = tuple(
                Batch(
                    facts=tuple(batch.facts),
                    shifts=shifts[index],
                    before=batch.before,
                    after=batch.after,
                    edits=tuple(batch.edits),
                    conditioned=batch.conditioned,
                )
                for index, batch in enumerate(described.batches)
            )
            fields: dict[str, Any] = {name: getattr(described, name) for name in _PLAIN_FIELDS}
            fields.update({name: getattr(torch, getattr(described, name)) for name in _DTYPE_FIELDS})
            return cls(batches=batches, **fields)
        except (TypeError, ValueError) as error:
            raise unusable(path, error) from error

    def _weights_of(self, model: Any) -> dict[int, Tensor]:
        return fitting_weights(self.config, self.weight_dtype, self.batches, model)

    def _made_here(self, weights: Mapping[int, Tensor], originals: Mapping[int, Tensor]) -> bool:
        """Whether applying the patch on this machine gives these weights, though the hashes say otherwise."""
        copies = {layer: original.to(weights[layer].device, copy=True) for layer, original in originals.items()}
        write_all(copies, self.batches, self.written_dtype)
        return all(torch.equal(copies[layer], weights[layer]) for layer in self.places)


def _check_alike(patches: Sequence[Patch], fields: Sequence[str]) -> Patch:
    """Return the first patch; raise ValueError unless all agree with it in some fields and in the model."""
    if not patches:
        raise ValueError("patches=[]: give at least one patch.")
    first = patches[0]
    for index, patch in enumerate(patches):
        for name in fields:
            if getattr(patch, name) != getattr(first, name):
                raise ValueError(
                    f"patches[{index}] has {name}={quoted(getattr(patch, name))} and patches[0] "
                    f"{quoted(getattr(first, name))}; " + (_OF_ONE_DTYPE if name in _DTYPE_FIELDS else _OF_ONE_SESSION)
                )
        differing = same_model(first.config, patch.config)
        if differing:
            raise ValueError(
                f"patches[{index}] was made for another model than patches[0]: the configs differ in "
                f"{', '.join(differing)}."
            )
    return first
