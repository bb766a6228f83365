"""Patch: what an edit changed; applied to a model, removed from it, joined, saved to one file and loaded."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from factpatch.facts import Fact, latest
from factpatch.files import atomic_write
from factpatch.model.architectures import architecture_of
from factpatch.model.language_model import LanguageModel, editable_names, editable_weights, model_name, text_config
from factpatch.model.weights import add_shift, changed_layers, content_hash, restore, snapshot
from factpatch.shift import LowRank, Shift, shift_from_tensors

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised by one when files are written differently; a file of a newer format is refused."""

# What a model of the same kind must share with the one that was edited, and how older families call it.
_DIMENSIONS = {
    "model_type": (),
    "hidden_size": ("n_embd",),
    "intermediate_size": ("n_inner", "ffn_dim"),
    "num_hidden_layers": ("n_layer",),
}
_DTYPE_CODES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
# The safetensors format allows no longer header.
_LONGEST_HEADER = 100_000_000


class PatchMismatchError(ValueError):
    """A patch and a model do not belong together; the model is unchanged and the message says what differs."""


class PatchFileError(ValueError):
    """A file is not a patch that can be read; the message names the file and says what is wrong with it."""


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
            object.__setattr__(self, name, _as_json(name, getattr(self, name)))
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
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

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
        with _unchanged_on_failure(weights), torch.no_grad():
            restore(weights, originals)

    @contextmanager
    def applied(self, model: Any) -> Iterator[None]:
        """Hold the patch in a model while the block runs; the edited weights are then restored bit for bit.

        Raises:
            PatchMismatchError: As in `apply`.
            FloatingPointError: As in `apply`.
            ValueError: As in `apply`.
        """
        weights = self._weights(model)
        self._check_state(weights, model, wanted=0)
        copies = snapshot(weights)
        try:
            self._write(weights)
            self._warn_of_rounding(weights)
            yield
        finally:
            with torch.no_grad():
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
            for name in ("method", "settings", "weight_dtype", "written_dtype"):
                mine, its = getattr(first, name), getattr(patch, name)
                if mine != its:
                    raise ValueError(
                        f"patches[{index}] has {name}={its!r} and patches[0] {mine!r}; only patches of one session can "
                        "be joined. Apply them one after another instead."
                    )
            mine, its = _comparable(first.config), _comparable(patch.config)
            differing = sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))
            if differing:
                raise ValueError(
                    f"patches[{index}] was made for another model than patches[0]: the configs differ in "
                    f"{', '.join(differing)}."
                )
        return replace(first, batches=tuple(batch for patch in patches for batch in patch.batches))

    def save(self, path: str | Path) -> None:
        """Write the patch to one safetensors file, which replaces a file that is there.

        The tensors are named batch.layer.part. The metadata holds everything else as JSON under "factpatch", and under
        "sha256" a checksum of that JSON and all tensors. The same patch gives the same bytes every time.

        Raises:
            ValueError: The facts need more room than the format's header has.
            OSError: The file cannot be written; nothing is left behind.
        """
        tensors = self._tensors()
        text = json.dumps(self._document(), sort_keys=True)
        header = _header(tensors, {"factpatch": text, "sha256": _checksum(text, tensors)})
        if len(header) > _LONGEST_HEADER:
            raise ValueError(
                f"the facts take {len(header)} bytes and a safetensors header holds {_LONGEST_HEADER}; save the patch "
                "in several parts, or leave out paraphrases and neighbors."
            )

        # Not safetensors' own writer, which orders the metadata at random.
        def write(draft: Path) -> None:
            with draft.open("xb") as file:
                file.write(struct.pack("<Q", len(header)) + header)
                for name in _file_order(tensors):
                    file.write(_bytes(tensors[name]))

        atomic_write(path, write)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch that `save` wrote.

        Raises:
            PatchFileError: There is no such file, it is no patch, of a newer format, cut short, or altered anywhere.
        """
        text, _ = _metadata(path)
        document = _document_in(path, text)
        altered = PatchFileError(f"{path}: was altered: its checksum does not fit its content. Get an intact copy.")
        try:
            with safe_open(path, framework="pt") as file:
                # Copies, since a tensor that is still mapped changes with the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            with Path(path).open("rb") as opened:
                (length,) = struct.unpack("<Q", opened.read(8))
                header = opened.read(length)
        except (OSError, SafetensorError) as error:
            raise PatchFileError(f"{path}: cannot be read: {error}.") from error
        if not {tensor.dtype for tensor in tensors.values()} <= set(_DTYPE_CODES):
            raise altered
        # The header holds the checksum. Comparing all of it also finds what a checksum of the content cannot see, such
        # as an exchanged space.
        if header != _header(tensors, {"factpatch": text, "sha256": _checksum(text, tensors)}):
            raise altered
        try:
            return cls._from_document(document, tensors)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PatchFileError(f"{path}: holds an incomplete patch: {type(error).__name__}: {error}.") from error

    # --- to a model

    def _weights(self, model: Any) -> dict[int, Tensor]:
        """The weights to edit, of a model that has the right architecture, shapes and dtype."""
        model = _transformers_model(model)
        config = text_config(model)
        self._check_config(config.to_dict(), model_name(config))
        known = editable_names(model)
        missing = [layer for layer in self.layers if layer not in known]
        if missing:
            raise PatchMismatchError(
                f"the patch edits {_layers(missing)}, but {model_name(config)} has layers 0 to {len(known) - 1}."
            )
        weights = editable_weights(model, self.layers)
        for batch in self.batches:
            for layer, shift in batch.shifts.items():
                if _shape(shift) != tuple(weights[layer].shape):
                    raise PatchMismatchError(
                        f"layer {layer}: the patch shifts a weight of shape {_shape(shift)}, but that of "
                        f"{model_name(config)} has shape {tuple(weights[layer].shape)}."
                    )
        others = [layer for layer in self.layers if weights[layer].dtype != self.weight_dtype]
        if others:
            raise PatchMismatchError(
                f"the patch was made for {_dtype_name(self.weight_dtype)} weights, but the weights of "
                f"{_layers(others)} are {_dtype_name(weights[others[0]].dtype)}; load the model with "
                f"dtype={self.weight_dtype}."
            )
        return weights

    def _check_config(self, found: Mapping[str, Any], name: str) -> None:
        differing = []
        for field, aliases in _DIMENSIONS.items():
            ours, its = (
                [config[key] for key in (field, *aliases) if config.get(key) is not None]
                for config in (self.config, found)
            )
            # A field that is open in one of them decides nothing; shapes and hashes will.
            if ours and its and ours[0] != its[0]:
                differing.append(f"{field} is {ours[0]!r} in the patch and {its[0]!r} in the model")
        if differing:
            raise PatchMismatchError(
                f"the patch was made for another architecture than {name}: {'; '.join(differing)}."
            )

    def _states(self) -> list[dict[int, str]]:
        """The content hashes of the edited weights before the first batch and after each one."""
        state: dict[int, str] = {}
        for batch in reversed(self.batches):
            state.update(batch.before)
        states = [state]
        for batch in self.batches:
            state = {**state, **batch.after}
            states.append(state)
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
                    with torch.no_grad():
                        write_shift(weights[layer], shift, self.written_dtype)
                except FloatingPointError as error:
                    raise FloatingPointError(
                        f"batches[{index}], layer {layer}: {error}; nothing was changed"
                    ) from error

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
            with torch.no_grad():
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
            self._check_config(text_config(base).to_dict(), name)
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

    # --- to a file

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{index}.{layer}.{part}": tensor.detach().to("cpu").contiguous()
            for index, batch in enumerate(self.batches)
            for layer, shift in batch.shifts.items()
            for part, tensor in shift.tensors().items()
        }

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "method": self.method,
            "settings": self.settings,
            "config": self.config,
            "weight_dtype": _dtype_name(self.weight_dtype),
            "written_dtype": _dtype_name(self.written_dtype),
            "versions": self.versions,
            "seed": self.seed,
            "batches": [
                {"facts": [fact.to_dict() for fact in batch.facts], "before": batch.before, "after": batch.after}
                for batch in self.batches
            ],
        }

    @classmethod
    def _from_document(cls, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
        parts: dict[tuple[int, int], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, layer, part = name.split(".")
            parts.setdefault((int(index), int(layer)), {})[part] = tensor
        batches = tuple(
            Batch(
                facts=tuple(Fact.from_dict(fact) for fact in batch["facts"]),
                shifts={
                    layer: shift_from_tensors(parts.pop((index, layer))) for layer in sorted(map(int, batch["before"]))
                },
                before={int(layer): digest for layer, digest in batch["before"].items()},
                after={int(layer): digest for layer, digest in batch["after"].items()},
            )
            for index, batch in enumerate(document["batches"])
        )
        if parts:
            raise ValueError(f"shifts of no batch: {sorted(parts)}")
        return cls(
            batches=batches,
            method=document["method"],
            settings=document["settings"],
            config=document["config"],
            weight_dtype=_dtype_named(document["weight_dtype"]),
            written_dtype=_dtype_named(document["written_dtype"]),
            versions=document["versions"],
            seed=document["seed"],
        )


def describe(path: str | Path) -> dict[str, Any]:
    """Return what a patch file says about itself, without reading its tensors and so without its checksum.

    Returns:
        The fields of `Patch`, with dtypes by name and batches without shifts, plus "format", "layers", the "sha256"
        that the file states, and the file's size as "bytes".

    Raises:
        PatchFileError: There is no such file, it is no patch, of a newer format, or cut short.
    """
    text, checksum = _metadata(path)
    document = _document_in(path, text)
    try:
        layers = sorted({int(layer) for batch in document["batches"] for layer in batch["before"]})
    except (KeyError, TypeError, ValueError) as error:
        raise PatchFileError(f"{path}: was altered: its batches cannot be read. Get an intact copy.") from error
    return {**document, "layers": layers, "sha256": checksum, "bytes": Path(path).stat().st_size}


def _transformers_model(model: Any) -> Any:
    return model.model if isinstance(model, LanguageModel) else model


@contextmanager
def _unchanged_on_failure(weights: Mapping[int, Tensor]) -> Iterator[None]:
    copies = snapshot(weights)
    try:
        yield
    except BaseException:
        with torch.no_grad():
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
        shards = {} if single.is_file() else json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for layer in layers:
            # A checkpoint of the body alone, such as the original GPT-2, lacks the name of the body.
            bare = names[layer].removeprefix(f"{model.base_model_prefix}.")
            for name in (names[layer], bare):
                if shards and name not in shards:
                    continue
                with safe_open(directory / shards.get(name, single.name), framework="pt") as file:
                    if name not in file.keys():  # noqa: SIM118
                        continue
                    tensor = file.get_tensor(name)
                weights[layer] = tensor.T if transposed else tensor
                break
            else:
                raise PatchMismatchError(f"base={str(directory)!r} has no weight named {names[layer]}.")
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise PatchMismatchError(f"base={str(directory)!r} cannot be read: {error}.") from error
    return weights


def _metadata(path: str | Path) -> tuple[str, str]:
    """The JSON text and the checksum that a patch file states."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise PatchFileError(f"{path}: no such file.") from error
    except OSError as error:
        raise PatchFileError(f"{path}: cannot be read: {error}.") from error
    except SafetensorError as error:
        raise PatchFileError(
            f"{path}: is not a safetensors file, or one that was cut short or altered ({error}). Get an intact copy."
        ) from error
    if not {"factpatch", "sha256"} <= metadata.keys():
        raise PatchFileError(f"{path}: is a safetensors file, but not one that factpatch wrote.")
    return metadata["factpatch"], metadata["sha256"]


def _document_in(path: str | Path, text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        version = document["format"]
        newer = version > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise PatchFileError(f"{path}: was altered: its description cannot be read. Get an intact copy.") from error
    if newer:
        raise PatchFileError(
            f"{path}: is of format {version}, which a newer factpatch wrote; this one reads up to {FORMAT}. Upgrade "
            "factpatch."
        )
    assert isinstance(document, dict)
    return document


def _file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    # Wide numbers first, so that every tensor begins at a multiple of its width.
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in _file_order(tensors):
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        digest.update(f"{name}{_DTYPE_CODES[tensors[name].dtype]}{tuple(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _as_json(name: str, value: dict[str, Any]) -> dict[str, Any]:
    try:
        plain = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} cannot be written as JSON: {error}; give plain numbers, texts, lists and dicts."
        ) from error
    assert isinstance(plain, dict)
    return plain


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    # Where a model was loaded from, and with which version, does not make it another model.
    return {
        name: value for name, value in config.items() if not name.startswith("_") and name != "transformers_version"
    }


def _shape(shift: Shift) -> tuple[int, ...]:
    if isinstance(shift, LowRank):
        return (shift.up.shape[0], shift.down.shape[1])
    return tuple(shift.full.shape)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name!r} is not a dtype")
    return dtype


def _layers(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, sorted(layers)))}"
