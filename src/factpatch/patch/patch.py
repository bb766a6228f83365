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

from factpatch.facts import Fact, latest
from factpatch.model.language_model import editable_weights, text_config
from factpatch.model.weights import add_shift, changed_layers, content_hash, restore, snapshot
from factpatch.patch.compatibility import (
    PatchMismatchError,
    base_weights,
    check_config,
    check_state,
    fitting_weights,
    layer_list,
    transformers_model,
)
from factpatch.patch.file import (
    PatchFileError,
    dtype_name,
    dtype_named,
    read_patch_file,
    shifts_by_batch,
    tensors_by_name,
    write_patch_file,
)
from factpatch.patch.shift import LowRank, Shift, decomposed, smaller, total

logger = logging.getLogger(__name__)

# The fields of a patch that a file holds as they are, and those that it holds by name.
_PLAIN_FIELDS = ("method", "settings", "config", "versions", "seed")
_DTYPE_FIELDS = ("weight_dtype", "written_dtype")


def write_shift(weight: Tensor, shift: Shift, written_dtype: torch.dtype) -> None:
    """Add a shift to a (d_value, d_key) weight in place.

    This is the only way in which a shift reaches a weight, in an edit as in applying a patch: hence the same bits.

    Args:
        weight: The weight or a view of it.
        shift: Δ, as it is stored in a patch.
        written_dtype: What Δ, the product of the factors, is rounded to before it is added.

    Raises:
        FloatingPointError: The sum is not finite in the weight's dtype; the weight is unchanged.
    """
    add_shift(weight, shift.matrix().to(written_dtype))


@dataclass(frozen=True, eq=False)
class Batch:
    """What one call of the editor changed, or several together.

    Raises:
        ValueError: `shifts`, `before` and `after` do not hold the same layers, or `edits` does not count the facts.
    """

    facts: tuple[Fact, ...]
    """The facts that were edited at once."""
    shifts: dict[int, Shift]
    """Δ by layer, in the dtype it is stored in: float32, or float64 in exact mode."""
    before: dict[int, str]
    """The content hash of each edited weight before the batch."""
    after: dict[int, str]
    """The content hash of each edited weight after the batch; empty if nobody has computed the weights yet."""
    edits: tuple[int, ...] = ()
    """How many facts each edit had whose shifts were summed; one edit by default."""
    conditioned: bool = False
    """Whether a regularizer that acts on the session, such as PRUNE's, has acted on the sum."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        object.__setattr__(self, "edits", tuple(self.edits) or (len(self.facts),))
        if sum(self.edits) != len(self.facts):
            raise ValueError(f"edits={self.edits} count {sum(self.edits)} facts, but there are {len(self.facts)}.")
        for name in ("before", "after") if self.after else ("before",):
            if set(getattr(self, name)) != set(self.shifts):
                raise ValueError(
                    f"{name} holds the layers {sorted(getattr(self, name))}, but shifts holds {sorted(self.shifts)}; "
                    "they must be the same."
                )


@dataclass(frozen=True, eq=False)
class Patch:
    """All that an editor changed in a model, batch by batch, and what it takes to do and undo it elsewhere.

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
    """The base model's text config, as `text_config(model).to_dict()` gives it."""
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
        # A patch is then the same before and after it was saved: JSON has no tuples and no integer keys.
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
            left.update(batch.after or dict.fromkeys(batch.shifts, ""))

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
        return tuple(sorted({layer for batch in self.batches for layer in batch.shifts}))

    @property
    def sealed(self) -> bool:
        """Whether the patch says what weights it leaves."""
        return all(batch.after for batch in self.batches)

    @property
    def num_bytes(self) -> int:
        """The size of all shifts."""
        shifts = [shift for batch in self.batches for shift in batch.shifts.values()]
        return sum(tensor.nbytes for shift in shifts for tensor in shift.tensors().values())

    def states(self) -> list[dict[int, str]]:
        """The content hashes of the edited weights before the first batch and after each one; "" if unknown."""
        states: list[dict[int, str]] = [{}]
        for batch in reversed(self.batches):
            states[0].update(batch.before)
        for batch in self.batches:
            states.append({**states[-1], **(batch.after or dict.fromkeys(batch.shifts, ""))})
        return states

    def apply(self, model: Any) -> None:
        """Write all batches to a model, in order.

        The model gets the very bits that the edit gave, provided that this machine rounds the products of the factors
        as the editing machine did. Otherwise the edit is equal to rounding, and a warning names the layers.

        Args:
            model: The unedited base model: a transformers model or a `LanguageModel`.

        Raises:
            PatchMismatchError: It is another model, or already patched.
            FloatingPointError: A shift makes a weight infinite or undefined.
            ValueError: The model is of no known family, quantized, or its weights are not loaded.
        """
        weights = fitting_weights(self, model)
        check_state(self, weights, model, wanted=0)
        with _unchanged_on_failure(weights):
            self._write(weights)
            self._warn_of_rounding(weights)

    def remove(self, model: Any, base: Any = None) -> None:
        """Take the patch off a model that holds it.

        Without `base` the shifts are subtracted from last to first in the dtype in which they were added, and the
        result is rounded once. This restores a weight to rounding: up to one unit in the last place of its dtype per
        batch, relative to the largest magnitude that the weight has had, max(|W|, |W + Δ|) for one batch. With `base`
        the weights are copied from there and are the base model's bit for bit.

        Args:
            model: A transformers model or a `LanguageModel`, with the whole patch in it.
            base: The unedited model, or the path of a directory that holds it as safetensors; only the edited weights
                are read from it.

        Raises:
            PatchMismatchError: The model does not hold the patch, or `base` is not the model the patch was made for.
            FileNotFoundError: `base` is a path without safetensors in it.
            FloatingPointError: A restored weight is infinite or undefined.
            ValueError: The model is of no known family, quantized, or its weights are not loaded.
        """
        weights = fitting_weights(self, model)
        if base is None:
            check_state(self, weights, model, wanted=len(self.batches))
            with _unchanged_on_failure(weights):
                self._subtract(weights)
            return
        originals = base_weights(self, model, base)
        if changed_layers(weights, self.states()[-1], self.layers) and not self._made_here(weights, originals):
            check_state(self, weights, model, wanted=len(self.batches))
        with _unchanged_on_failure(weights):
            restore(weights, originals)

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Hold the patch in a model while the block runs; the edited weights are then restored bit for bit.

        Raises:
            PatchMismatchError, FloatingPointError, ValueError: As in `apply`.
        """
        weights = fitting_weights(self, model)
        check_state(self, weights, model, wanted=0)
        copies = snapshot(weights)
        try:
            self._write(weights)
            self._warn_of_rounding(weights)
            yield
        finally:
            # Looked up again, since the block may have moved the model to another device.
            restore(editable_weights(transformers_model(model), self.layers), copies)

    @classmethod
    def join(cls, patches: Sequence[Patch]) -> Patch:
        """Make one patch of successive ones. The seed and the versions are those of the first.

        Args:
            patches: In the order in which they were edited, each on the model that the one before it left.

        Raises:
            ValueError: There are no patches, they differ in method, settings, model or dtypes, or one does not begin
                with the weights that an earlier one left.
        """
        if not patches:
            raise ValueError("patches=[]: give at least one patch.")
        first = patches[0]
        for index, patch in enumerate(patches):
            for name in ("method", "settings", *_DTYPE_FIELDS):
                mine, its = getattr(first, name), getattr(patch, name)
                if mine != its:
                    raise ValueError(
                        f"patches[{index}] has {name}={its!r} and patches[0] {mine!r}; only patches of one session can "
                        "be joined. Apply them one after another instead."
                    )
            _check_same_model(first, patch, index)
        return replace(first, batches=tuple(batch for patch in patches for batch in patch.batches))

    @classmethod
    def compose(cls, patches: Sequence[Patch]) -> Patch:
        """Sum several patches of one model into a patch of a single batch, which a weight is rounded for only once.

        They may be successive, or made independently on the same weights, by different methods too. What comes out does
        not say which weights it leaves, since that takes the base model: `rebase` onto it tells.

        Args:
            patches: In the order in which they were edited.

        Raises:
            ValueError: There are no patches, they are of different models or dtypes, one was made on weights that
                neither the base model nor the patches before it have, or independent ones edit the same fact.
        """
        if not patches:
            raise ValueError("patches=[]: give at least one patch.")
        first = patches[0]
        base: dict[int, str] = {}
        present: dict[int, str] = {}
        for index, patch in enumerate(patches):
            for name in _DTYPE_FIELDS:
                if getattr(patch, name) != getattr(first, name):
                    raise ValueError(
                        f"patches[{index}] has {name}={getattr(patch, name)} and patches[0] {getattr(first, name)}; "
                        "patches of one dtype can be composed."
                    )
            _check_same_model(first, patch, index)
            before = patch.states()[0]
            successive = all(present.get(layer, found) == found for layer, found in before.items())
            independent = all(base.get(layer, found) == found for layer, found in before.items())
            if not successive and not independent:
                broken = [layer for layer, found in before.items() if present.get(layer, found) != found]
                raise ValueError(
                    f"patches[{index}] was made on weights of {layer_list(broken)} that neither the base model nor the "
                    "patches before it have; rebase it first, if it is meant for these."
                )
            # Between layers that are all apart, no hash tells which patch came first.
            if not successive or not present.keys() & before.keys():
                _check_apart(patches[:index], patch, index)
            base = {**before, **base}
            present |= patch.states()[-1] if successive else dict.fromkeys(patch.layers, "")
        batches = [batch for patch in patches for batch in patch.batches]
        methods = list(dict.fromkeys(patch.method for patch in patches))
        alike = all(patch.settings == first.settings for patch in patches)
        composed = [
            part
            for patch in patches
            for part in patch.settings.get("composed", [{"method": patch.method, **patch.settings}])
        ]
        layers = sorted(base)
        batch = Batch(
            facts=tuple(fact for batch in batches for fact in batch.facts),
            shifts={layer: _stored(shift, batches) for layer, shift in total_shifts(batches).items()},
            before={layer: base[layer] for layer in layers},
            after={},
            edits=tuple(count for batch in batches for count in batch.edits),
            conditioned=any(batch.conditioned for batch in batches),
        )
        settings = first.settings if alike else {"composed": composed}
        return replace(first, batches=(batch,), method=" + ".join(methods), settings=settings)

    def rebase(self, base: Any) -> Patch:
        """The same shifts for other weights of the same shape, such as those of a fine-tuned model.

        Nothing tells whether the facts hold there: verify them.

        Args:
            base: A transformers model or a `LanguageModel` that the patch is to be applied to; it stays as it is.

        Raises:
            PatchMismatchError: Another architecture, or the patch is in these weights already.
            FloatingPointError: A shift makes a weight infinite or undefined.
        """
        model = transformers_model(base)
        check_config(self, model)
        dtype = next(iter(editable_weights(model, self.layers[:1]).values())).dtype
        patch = replace(self, config=text_config(model).to_dict(), weight_dtype=dtype)
        weights = snapshot(fitting_weights(patch, model))
        if self.sealed and not changed_layers(weights, self.states()[-1], self.layers):
            raise PatchMismatchError("base: it holds this patch already, which would be added a second time.")
        batches = []
        for batch in self.batches:
            before = {layer: content_hash(weights[layer]) for layer in batch.shifts}
            for layer, shift in batch.shifts.items():
                write_shift(weights[layer], shift, self.written_dtype)
            after = {layer: content_hash(weights[layer]) for layer in batch.shifts}
            batches.append(replace(batch, before=before, after=after))
        return replace(patch, batches=tuple(batches))

    def shrink(self, rank: int | None = None, energy: float | None = None) -> Patch:
        """A smaller patch that does almost the same: its total shift by its largest singular values.

        Its settings say under "shrunk" what was asked for and, by layer, the rank and the relative error in the
        Frobenius norm. Like a composed patch it does not say which weights it leaves; `rebase` tells.

        Args:
            rank: The largest rank to keep.
            energy: The least share to keep of the sum of squared singular values, above 0 and at most 1.

        Raises:
            ValueError: Not exactly one of them is given, or it is out of range.
        """
        if (rank is None) == (energy is None):
            raise ValueError(f"rank={rank!r}, energy={energy!r}: give one of them.")
        if rank is not None and rank < 1:
            raise ValueError(f"rank={rank}: must be at least 1.")
        if energy is not None and not 0 < energy <= 1:
            raise ValueError(f"energy={energy}: must be a share above 0, at most 1.")
        whole = Patch.compose([self]).batches[0]
        shifts: dict[int, Shift] = {}
        kept: dict[str, Any] = {}
        for layer, shift in whole.shifts.items():
            left, singular, right = decomposed(shift)
            squares = singular.square().cumsum(0)
            size = rank or int(torch.searchsorted(squares, (energy or 1.0) * squares[-1])) + 1
            size = min(size, len(singular))
            short = LowRank(left[:, :size] * singular[:size], right[:size])
            shifts[layer] = _stored(smaller(short), [whole])
            full = shift.matrix()
            lost, norm = (float(torch.linalg.matrix_norm(m)) for m in (shifts[layer].matrix() - full, full))
            kept[str(layer)] = {"rank": size, "error": lost / norm if norm else 0.0}
        shrunk = {"rank": rank, "energy": energy, "layers": kept}
        return replace(self, batches=(replace(whole, shifts=shifts),), settings={**self.settings, "shrunk": shrunk})

    def to_lora(self, directory: str | Path, rank: int | None = None) -> None:
        """Write the patch as a LoRA adapter that peft, and servers that take LoRA, load on the base model.

        Args:
            directory: A new or empty directory.
            rank: The largest rank to write; by default what it takes to be exact to float32 rounding.

        Raises:
            ValueError: The shift has no low rank and `rank` is not given; the message says what it needs.
            FileExistsError: The directory exists and is not empty.
        """
        from factpatch.export.lora import write_lora  # peft is an extra

        write_lora(self, directory, rank)

    def save(self, path: str | Path) -> None:
        """Write the patch to one safetensors file, which replaces a file that is there.

        `factpatch.patch.file` says what is in it. The same patch gives the same bytes every time.

        Raises:
            ValueError: The facts need more room than the format's header has.
            OSError: The file cannot be written; nothing is left behind.
        """
        document = {
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            **{name: dtype_name(getattr(self, name)) for name in _DTYPE_FIELDS},
            "batches": [
                {
                    "facts": [fact.to_dict() for fact in batch.facts],
                    "before": batch.before,
                    "after": batch.after,
                    "edits": batch.edits,
                    "conditioned": batch.conditioned,
                }
                for batch in self.batches
            ],
        }
        write_patch_file(path, document, tensors_by_name(batch.shifts for batch in self.batches))

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch that `save` wrote.

        Raises:
            PatchFileError: There is no such file, it is no patch, of a newer format, cut short, or altered anywhere.
        """
        document, tensors = read_patch_file(path)
        try:
            shifts = shifts_by_batch(tensors)
            batches = tuple(
                Batch(
                    facts=tuple(Fact.from_dict(fact) for fact in batch["facts"]),
                    shifts=shifts.pop(index, {}),
                    before={int(layer): digest for layer, digest in batch["before"].items()},
                    after={int(layer): digest for layer, digest in batch["after"].items()},
                    edits=tuple(batch.get("edits", ())),
                    conditioned=bool(batch.get("conditioned", False)),
                )
                for index, batch in enumerate(document["batches"])
            )
            if shifts:
                raise ValueError(f"shifts of no batch: {sorted(shifts)}")
            fields: dict[str, Any] = {name: document[name] for name in _PLAIN_FIELDS}
            fields.update({name: dtype_named(document[name]) for name in _DTYPE_FIELDS})
            return cls(batches=batches, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PatchFileError(f"{path}: holds an incomplete patch: {type(error).__name__}: {error}.") from error

    def _write(self, weights: Mapping[int, Tensor]) -> None:
        for index, batch in enumerate(self.batches):
            for layer, shift in batch.shifts.items():
                try:
                    write_shift(weights[layer], shift, self.written_dtype)
                except FloatingPointError as error:
                    where = f"batches[{index}], layer {layer}"
                    raise FloatingPointError(f"{where}: {error}; nothing was changed") from error

    def _subtract(self, weights: Mapping[int, Tensor]) -> None:
        accumulator = torch.promote_types(torch.promote_types(self.weight_dtype, self.written_dtype), torch.float32)
        for layer, weight in weights.items():
            total = weight.to(accumulator, copy=True)
            for batch in reversed(self.batches):
                if layer in batch.shifts:
                    add_shift(total, -batch.shifts[layer].matrix().to(self.written_dtype))
            restored = total.to(weight.dtype)
            if not bool(torch.isfinite(restored).all()):
                raise FloatingPointError(
                    f"layer {layer}: without the patch the weight is not finite in {weight.dtype}; nothing was changed"
                )
            weight.copy_(restored)

    def _warn_of_rounding(self, weights: Mapping[int, Tensor]) -> None:
        # The end alone is compared: what a machine rounds differently on the way shows there or does not matter.
        rounded = changed_layers(weights, self.states()[-1], self.layers) if self.sealed else []
        if rounded:
            logger.warning(
                "%s: this machine rounds the shift differently than the one that made the patch; the edit is equal to "
                "rounding, not bit for bit. To remove it, give the base model.",
                layer_list(rounded),
            )

    def _made_here(self, weights: Mapping[int, Tensor], originals: Mapping[int, Tensor]) -> bool:
        """Whether applying the patch on this machine gives these weights, though the hashes say otherwise."""
        copies = {layer: original.to(weights[layer].device, copy=True) for layer, original in originals.items()}
        self._write(copies)
        return all(torch.equal(copies[layer], weights[layer]) for layer in self.layers)


@contextmanager
def _unchanged_on_failure(weights: Mapping[int, Tensor]) -> Iterator[None]:
    copies = snapshot(weights)
    try:
        yield
    except BaseException:
        restore(weights, copies)
        raise


def _check_same_model(first: Patch, patch: Patch, index: int) -> None:
    """Raise ValueError unless two patches were made for the same kind of model, wherever it was loaded from."""
    differing = [
        name
        for name in sorted(first.config.keys() | patch.config.keys())
        # Where a model was loaded from, and with which version, does not make it another model.
        if not name.startswith("_") and name != "transformers_version"
        if first.config.get(name) != patch.config.get(name)
    ]
    if differing:
        raise ValueError(
            f"patches[{index}] was made for another model than patches[0]: the configs differ in "
            f"{', '.join(differing)}."
        )


def total_shifts(batches: Sequence[Batch]) -> dict[int, Shift]:
    """The sum of all shifts, by layer in ascending order; see `factpatch.patch.shift.total`."""
    layers = sorted({layer for batch in batches for layer in batch.shifts})
    return {layer: total([batch.shifts[layer] for batch in batches if layer in batch.shifts]) for layer in layers}


def asked_in_chat(settings: Mapping[str, Any]) -> bool:
    """Whether settings are those of edits in a chat; of a composed patch, of all of them."""
    return all(part.get("chat", False) for part in settings.get("composed", [settings]))


def _check_apart(patches: Sequence[Patch], patch: Patch, index: int) -> None:
    """Raise ValueError if a patch edits a fact that an independent one edits too: the sum would go too far."""
    known = {fact.key for earlier in patches for batch in earlier.batches for fact in batch.facts}
    for batch in patch.batches:
        for fact in batch.facts:
            if fact.key in known:
                raise ValueError(
                    f"patches[{index}] edits {fact.text!r}, which a patch before it edits too, and nothing tells "
                    "that it was made after that one; their sum would go too far. Leave one of the patches out."
                )


def _stored(shift: Shift, batches: Sequence[Batch]) -> Shift:
    """A sum in the dtype of its terms."""
    parts = [tensor for batch in batches for part in batch.shifts.values() for tensor in part.tensors().values()]
    exact = any(tensor.dtype == torch.float64 for tensor in parts)
    return shift.to(torch.float64 if exact else torch.float32)
