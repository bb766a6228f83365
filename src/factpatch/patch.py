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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from factpatch.facts import Fact, latest
from factpatch.model.architectures import architecture_of
from factpatch.model.language_model import LanguageModel, editable_names, editable_weights, model_name, text_config
from factpatch.model.weights import add_shift, changed_layers, content_hash, restore, snapshot
from factpatch.patch_file import (
    PatchFileError,
    dtype_name,
    dtype_named,
    read_patch_file,
    shifts_by_batch,
    tensors_by_name,
    write_patch_file,
)
from factpatch.shift import LowRank, Shift

logger = logging.getLogger(__name__)

# What a model of the same kind must share with the one that was edited, and how older families call it.
_DIMENSIONS = (
    ("model_type",),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner", "ffn_dim"),
    ("num_hidden_layers", "n_layer"),
)
# The fields of a patch that a file holds as they are, and those that it holds by name.
_PLAIN_FIELDS = ("method", "settings", "config", "versions", "seed")
_DTYPE_FIELDS = ("weight_dtype", "written_dtype")


class PatchMismatchError(ValueError):
    """A patch and a model do not belong together; the model is unchanged and the message says what differs."""


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
    """What one call of the editor changed.

    Raises:
        ValueError: `shifts`, `before` and `after` do not hold the same layers.
    """

    facts: tuple[Fact, ...]
    """The facts that were edited at once."""
    shifts: dict[int, Shift]
    """Δ by layer, in the dtype it is stored in: float32, or float64 in exact mode."""
    before: dict[int, str]
    """The content hash of each edited weight before the batch."""
    after: dict[int, str]
    """The content hash of each edited weight after the batch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", tuple(self.facts))
        for name in ("before", "after"):
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
                    f"{_layers(broken)} differ. Give batches that were edited one after another."
                )
            left.update(batch.after)

    @property
    def facts(self) -> list[Fact]:
        """The facts in force: of two that answer the same question, the newer."""
        return latest(batch.facts for batch in self.batches)[0]

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending."""
        return tuple(sorted({layer for batch in self.batches for layer in batch.shifts}))

    @property
    def num_bytes(self) -> int:
        """The size of all shifts."""
        shifts = [shift for batch in self.batches for shift in batch.shifts.values()]
        return sum(tensor.nbytes for shift in shifts for tensor in shift.tensors().values())

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
        weights = self._weights(model)
        self._check_state(weights, model, wanted=0)
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
        weights = self._weights(model)
        if base is None:
            self._check_state(weights, model, wanted=len(self.batches))
            with _unchanged_on_failure(weights):
                self._subtract(weights)
            return
        originals = self._base_weights(model, base)
        if changed_layers(weights, self._states()[-1], self.layers) and not self._made_here(weights, originals):
            self._check_state(weights, model, wanted=len(self.batches))
        with _unchanged_on_failure(weights):
            restore(weights, originals)

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Hold the patch in a model while the block runs; the edited weights are then restored bit for bit.

        Raises:
            PatchMismatchError, FloatingPointError, ValueError: As in `apply`.
        """
        weights = self._weights(model)
        self._check_state(weights, model, wanted=0)
        copies = snapshot(weights)
        try:
            self._write(weights)
            self._warn_of_rounding(weights)
            yield
        finally:
            # Looked up again, since the block may have moved the model to another device.
            restore(editable_weights(_transformers_model(model), self.layers), copies)

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
        return replace(first, batches=tuple(batch for patch in patches for batch in patch.batches))

    def save(self, path: str | Path) -> None:
        """Write the patch to one safetensors file, which replaces a file that is there.

        `factpatch.patch_file` says what is in it. The same patch gives the same bytes every time.

        Raises:
            ValueError: The facts need more room than the format's header has.
            OSError: The file cannot be written; nothing is left behind.
        """
        document = {
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            **{name: dtype_name(getattr(self, name)) for name in _DTYPE_FIELDS},
            "batches": [
                {"facts": [fact.to_dict() for fact in batch.facts], "before": batch.before, "after": batch.after}
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

    def _weights(self, model: Any) -> dict[int, Tensor]:
        """The weights to edit, of a model that has the right architecture, shapes and dtype."""
        model = _transformers_model(model)
        self._check_config(model)
        name = model_name(text_config(model))
        known = editable_names(model)
        missing = [layer for layer in self.layers if layer not in known]
        if missing:
            raise PatchMismatchError(
                f"the patch edits {_layers(missing)}, but {name} has layers 0 to {len(known) - 1}."
            )
        weights = editable_weights(model, self.layers)
        for batch in self.batches:
            for layer, shift in batch.shifts.items():
                if _shape(shift) != tuple(weights[layer].shape):
                    raise PatchMismatchError(
                        f"layer {layer}: the patch shifts a weight of shape {_shape(shift)}, but that of {name} has "
                        f"shape {tuple(weights[layer].shape)}."
                    )
        others = [layer for layer in self.layers if weights[layer].dtype != self.weight_dtype]
        if others:
            raise PatchMismatchError(
                f"the patch was made for {dtype_name(self.weight_dtype)} weights, but the weights of "
                f"{_layers(others)} are {dtype_name(weights[others[0]].dtype)}; load the model with "
                f"dtype={self.weight_dtype}."
            )
        return weights

    def _check_config(self, model: Any) -> None:
        config = text_config(model)
        differing = []
        for names in _DIMENSIONS:
            ours, its = (
                [d[name] for name in names if d.get(name) is not None] for d in (self.config, config.to_dict())
            )
            # A field that is open in one of them decides nothing; shapes and hashes will.
            if ours and its and ours[0] != its[0]:
                differing.append(f"{names[0]} is {ours[0]!r} in the patch and {its[0]!r} in the model")
        if differing:
            raise PatchMismatchError(
                f"the patch was made for another architecture than {model_name(config)}: {'; '.join(differing)}."
            )

    def _states(self) -> list[dict[int, str]]:
        """The content hashes of the edited weights before the first batch and after each one."""
        states: list[dict[int, str]] = [{}]
        for batch in reversed(self.batches):
            states[0].update(batch.before)
        for batch in self.batches:
            states.append({**states[-1], **batch.after})
        return states

    def _check_state(self, weights: Mapping[int, Tensor], model: Any, wanted: int) -> None:
        """Raise unless the weights are those after the first `wanted` batches, and say what they are instead."""
        states = self._states()
        found = {layer: content_hash(weights[layer]) for layer in self.layers}
        if found == states[wanted]:
            return
        last = len(self.batches)
        name = model_name(text_config(_transformers_model(model)))
        held = states.index(found) if found in states else None
        if held == last:
            raise PatchMismatchError(f"{name} already holds this patch; it was not applied a second time.")
        if held == 0:
            raise PatchMismatchError(f"{name} does not hold this patch: its weights are those from before the edit.")
        if held is not None:
            raise PatchMismatchError(
                f"{name} holds only the first {held} of the patch's {last} batches; restore the base model first."
            )
        differing = _layers([layer for layer in self.layers if found[layer] != states[wanted][layer]])
        if wanted == 0:
            raise PatchMismatchError(
                f"the weights of {differing} of {name} are not those that the patch was made for"
                f"{self._made_for()}. Load that model, without other edits."
            )
        raise PatchMismatchError(
            f"the weights of {differing} of {name} are not those that the patch leaves. If they were edited after it, "
            "remove the later edits first. If applying the patch warned that they are rounded differently on this "
            "machine, give base."
        )

    def _made_for(self) -> str:
        origin = self.config.get("_name_or_path")
        return f" ({origin})" if origin else ""

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
        rounded = changed_layers(weights, self._states()[-1], self.layers)
        if rounded:
            logger.warning(
                "%s: this machine rounds the shift differently than the one that made the patch; the edit is equal to "
                "rounding, not bit for bit. To remove it, give the base model.",
                _layers(rounded),
            )

    def _made_here(self, weights: Mapping[int, Tensor], originals: Mapping[int, Tensor]) -> bool:
        """Whether applying the patch on this machine gives these weights, though the hashes say otherwise."""
        copies = {layer: original.to(weights[layer].device, copy=True) for layer, original in originals.items()}
        self._write(copies)
        return all(torch.equal(copies[layer], weights[layer]) for layer in self.layers)

    def _base_weights(self, model: Any, base: Any) -> dict[int, Tensor]:
        """The unedited weights from a model or a directory, checked."""
        if isinstance(base, (str, Path)):
            name = str(base)
            found = _saved_weights(Path(base), _transformers_model(model), self.layers)
        else:
            base = _transformers_model(base)
            name = model_name(text_config(base))
            self._check_config(base)
            found = editable_weights(base, self.layers)
        # As loading a saved model in the patch's dtype does.
        weights = {layer: weight.to(self.weight_dtype) for layer, weight in found.items()}
        differing = changed_layers(weights, self._states()[0], self.layers)
        if differing:
            raise PatchMismatchError(
                f"base={name}: the weights of {_layers(differing)} are not those that the patch was made for"
                f"{self._made_for()}."
            )
        return weights


def _transformers_model(model: Any) -> Any:
    return model.model if isinstance(model, LanguageModel) else model


@contextmanager
def _unchanged_on_failure(weights: Mapping[int, Tensor]) -> Iterator[None]:
    copies = snapshot(weights)
    try:
        yield
    except BaseException:
        restore(weights, copies)
        raise


def _saved_weights(directory: Path, model: Any, layers: Sequence[int]) -> dict[int, Tensor]:
    """Read the editable weights of some layers of a saved `model` from its safetensors, as (d_value, d_key) views."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if not single.is_file() and not index.is_file():
        raise FileNotFoundError(
            f"base={str(directory)!r} holds neither {single.name} nor {index.name}; give the directory of a model that "
            "was saved with save_pretrained."
        )
    transposed = architecture_of(text_config(model)).transposed
    names = editable_names(model)
    weights = {}
    try:
        if single.is_file():
            with safe_open(single, framework="pt") as file:
                shards = dict.fromkeys(file.keys(), single.name)
        else:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for layer in layers:
            # A checkpoint of the body alone, such as the original GPT-2, lacks the name of the body.
            bare = names[layer].removeprefix(f"{model.base_model_prefix}.")
            name = names[layer] if names[layer] in shards else bare
            if name not in shards:
                raise PatchMismatchError(f"base={str(directory)!r} has no weight named {names[layer]}.")
            with safe_open(directory / shards[name], framework="pt") as file:
                tensor = file.get_tensor(name)
            weights[layer] = tensor.T if transposed else tensor
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise PatchMismatchError(f"base={str(directory)!r} cannot be read: {error}.") from error
    return weights


def _shape(shift: Shift) -> tuple[int, ...]:
    if isinstance(shift, LowRank):
        return (shift.up.shape[0], shift.down.shape[1])
    return tuple(shift.full.shape)


def _layers(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, sorted(layers)))}"
