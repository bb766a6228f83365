"""A causal language model with its tokenizer, seen the way an editor sees it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.utils import HFValidationError
from torch import Tensor, nn

from factpatch.model.architectures import (
    EDITED_AT,
    EXPERTS_OF,
    SHARED_EXPERT,
    TEXT_MODEL_AT,
    Architecture,
    architecture_of,
)
from factpatch.model.experts import FUSED, expert_count, weight_name, wide_range
from factpatch.model.frame import PLAIN, Frame, Turn, chat_frame
from factpatch.model.hooks import frozen, masked_attention
from factpatch.model.places import GATE, UP, layer_of, makes_keys, path_at, place_of
from factpatch.model.quantized import check_mergeable, first_pass, held, is_quantized, release, unmerged
from factpatch.model.tokens import check_tokenizer, no_embedding
from factpatch.model.weights import content_hash, matrix_shape, oriented
from factpatch.support.files import atomic_directory


@dataclass(frozen=True)
class Wrapper:
    """What people put around a model, or in the place of its modules, that an edit would miss or break."""

    package: str
    """Where its classes come from."""
    what: str
    remedy: str
    """What to do, with {place} for where it is."""


WRAPPERS = (
    Wrapper(
        "peft",
        "a PEFT adapter, whose weights are beside the model's",
        "Call model = model.merge_and_unload() first, or model = model.unload() to do without it; a model that was "
        "given it with add_adapter has model.delete_adapter(NAME), or is merged once PeftModel has loaded the adapter",
    ),
    Wrapper("torch._dynamo", "compiled by torch.compile", "Give {place}._orig_mod, which has the same weights"),
    Wrapper("torch.nn.parallel", "spread over devices", "Give {place}.module, which has the same weights"),
    Wrapper("torch.optim.swa_utils", "an average of models", "Give {place}.module"),
    Wrapper("torch.distributed", "sharded over processes", "Load the whole model, with device_map if need be"),
    Wrapper("deepspeed", "an engine of DeepSpeed", "Give {place}.module, with whole weights"),
    Wrapper("transformers.pipelines", "a pipeline", "Give {place}.model"),
    Wrapper("transformers.trainer", "a trainer", "Give {place}.model"),
    Wrapper("trl", "a wrapper of trl", "Give {place}.pretrained_model"),
)


def _wrapper(kind: type) -> Wrapper | None:
    # By all classes that it is derived from, since people derive their own, and FSDP does so at run time.
    packages = [f"{base.__module__}." for base in kind.__mro__]
    return next((it for it in WRAPPERS if any(name.startswith(f"{it.package}.") for name in packages)), None)


def check_transformers_model(model: Any) -> None:
    """Raise ValueError unless a loaded model is one of transformers, without a wrapper around it or inside it."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {"": model}
    wrappers = {kind: _wrapper(kind) for kind in {type(module) for module in modules.values()}}
    for name, module in modules.items():
        if wrapper := wrappers[type(module)]:
            part = f"its module {name} ({type(module).__name__}) is" if name else "it is"
            remedy = wrapper.remedy.format(place=f"model.{name}" if name else "model")
            raise ValueError(f"model={type(model).__name__}: {part} {wrapper.what}. {remedy}.")
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ValueError(
            f"model={type(model).__name__}: it is no model of transformers. Give a directory, an id of the Hugging "
            "Face Hub, or what AutoModelForCausalLM.from_pretrained returns."
        )


def text_config(model: Any) -> Any:
    """Return the config of a transformers model's text part, which for a text model is its config.

    Raises:
        ValueError: It is no model of transformers, or wrapped.
    """
    check_transformers_model(model)
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def described_config(model: Any, shared_expert: bool = False) -> dict[str, Any]:
    """Return what a patch records of a transformers model: the config of its text part, and what that leaves open.

    Where the text part is in a model of images and text, that is the whole model's name and the path to this part; of a
    mixture of experts, how many experts each layer has, or that the shared expert was edited.
    """
    config: dict[str, Any] = text_config(model).to_dict()
    row = loaded_architecture(model, shared_expert)
    blocks = list(model.get_submodule(row.blocks).children())
    paths = {str(layer): first_path(block, row.down_projection) for layer, block in enumerate(blocks)}
    found = {layer: expert_count(blocks[int(layer)].get_submodule(path)) for layer, path in paths.items()}
    experts = {layer: count for layer, count in found.items() if count}
    if row.text_model is not None:
        config |= {"_name_or_path": getattr(model.config, "_name_or_path", ""), TEXT_MODEL_AT: row.text_model}
    about = {
        **({EDITED_AT: paths} if "|" in row.down_projection else {}),
        **({EXPERTS_OF: experts} if experts else {}),
        **({SHARED_EXPERT: True} if shared_expert else {}),
    }
    return {**config, **about}


def model_name(config: Any) -> str:
    """Return what messages call a model: where it was loaded from, or its family."""
    return str(getattr(config, "_name_or_path", "") or config.model_type)


def projection_name(model_config: Mapping[str, Any], place: int, within: bool = True) -> str:
    """Return the path from a model to the module at a place, given the config that a patch records.

    Args:
        model_config: As `described_config` returns it.
        within: Whether to begin at the model as a whole; otherwise at its text model, as if that were on its own.
    """
    alone = {name: value for name, value in model_config.items() if within or name != TEXT_MODEL_AT}
    row = architecture_of(SimpleNamespace(**alone))
    layer = layer_of(place)
    path = model_config.get(EDITED_AT, {}).get(str(layer), row.down_projection)
    return f"{row.blocks}.{layer}.{path_at(place, path)}"


def _edited_modules(model: Any, shared_expert: bool) -> dict[int, tuple[str, nn.Module]]:
    """The path to each layer's down-projection and to what makes its keys where that is apart, and the modules."""
    row = loaded_architecture(model, shared_expert)
    found = {}
    for layer, (name, block) in enumerate(model.get_submodule(row.blocks).named_children()):
        path = first_path(block, row.down_projection)
        try:
            found[layer] = f"{row.blocks}.{name}.{path}", block.get_submodule(path)
        except AttributeError:
            # Families leave their shared expert out where its width is zero.
            advice = ", so there is no expert that every token passes. Leave shared_expert out" if shared_expert else ""
            raise ValueError(f"model={type(model).__name__}: block {name} has no {path}{advice}.") from None
        for place in (place_of(layer, GATE), place_of(layer, UP)):
            with suppress(AttributeError):
                found[place] = f"{row.blocks}.{name}.{path_at(place, path)}", block.get_submodule(path_at(place, path))
    return found


def editable_names(model: Any, shared_expert: bool = False) -> dict[int, str]:
    """Return the name, as in `named_parameters`, of the weight at each place; ValueError for an unknown family."""
    modules = _edited_modules(model, shared_expert)
    return {place: f"{path}.{weight_name(module)}" for place, (path, module) in modules.items()}


def loaded_architecture(model: Any, shared_expert: bool = False) -> Architecture:
    """Return the row for a loaded model, or for an edit of its shared expert.

    Raises:
        ValueError: It is wrapped, its family is unknown or has no shared expert, or its blocks are not where those of
            its family are.
    """
    check_transformers_model(model)
    row = architecture_of(model.config)
    row = row.of_shared_expert() if shared_expert else row
    try:
        model.get_submodule(row.blocks)
    except AttributeError:
        raise ValueError(
            f"model={type(model).__name__}: it has no {row.blocks}, where a causal language model of this family has "
            "its blocks. Load it with AutoModelForCausalLM."
        ) from None
    return row


def _check_parameters(model: Any, names: Mapping[int, str], modules: Mapping[int, nn.Module]) -> None:
    """Raise ValueError if a weight is computed anew in each pass, so that what is written to it would be lost."""
    for layer, module in modules.items():
        if not isinstance(getattr(module, weight_name(module)), nn.Parameter):
            raise ValueError(
                f"model={type(model).__name__}: {names[layer]} is computed from other weights, by pruning or a "
                "parametrization. Make it permanent first: torch.nn.utils.prune.remove(module, 'weight') or "
                "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
            )


def check_editable(model: Any, layers: Sequence[int], shared_expert: bool = False) -> None:
    """Raise ValueError unless an edit can write to some layers of a transformers model.

    Whether a quantized one runs here shows when its weights are read; see `factpatch.model.quantized`.
    """
    row, names = loaded_architecture(model, shared_expert), editable_names(model, shared_expert)
    name = model_name(text_config(model))
    modules = _projections(model, layers, shared_expert)
    if is_quantized(model):
        if any(hasattr(module, FUSED) for module in modules.values()):
            raise ValueError(
                f"{name} is a quantized mixture of experts, whose experts are not edited beside their quantized "
                "weights. Edit the model that it was made from, or another one."
            )
        return
    weights = [oriented(module, row.turned(place)) for place, module in modules.items()]
    _check_parameters(model, names, modules)
    for weight in weights:
        if weight.is_meta:
            raise ValueError(
                f"{name} has no weights in memory for the layers to edit (they are on the meta device or offloaded to "
                "disk); keep these layers in memory, as with a device_map that puts them on the CPU."
            )


def editable_weights(model: Any, layers: Sequence[int], shared_expert: bool = False) -> dict[int, Tensor]:
    """Return the editable weights of some layers of a transformers model, as (d_value, d_key) views.

    Those of a quantized model are dense and lie beside it.

    Raises:
        ValueError: Unknown family, absent weights, or a quantized model that cannot run here.
    """
    check_editable(model, layers, shared_expert)
    modules = _projections(model, layers, shared_expert)
    if is_quantized(model):
        return {layer: found.weight.detach() for layer, found in unmerged(model, modules).items()}
    row = loaded_architecture(model)
    return {place: oriented(module, row.turned(place)) for place, module in modules.items()}


def _projections(model: Any, layers: Sequence[int], shared_expert: bool) -> dict[int, nn.Module]:
    modules = _edited_modules(model, shared_expert)
    return {layer: modules[layer][1] for layer in layers}


def _is_plain_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.bias is None


def first_path(block: nn.Module, paths: str) -> str:
    """The first of some paths, with `|` between them, that leads to a module of a block; the last if none does."""
    *others, last = paths.split("|")
    for path in others:
        with suppress(AttributeError):
            block.get_submodule(path)
            return path
    return last


def first_of(block: nn.Module, paths: str) -> nn.Module:
    """The module of a block that `first_path` leads to; AttributeError if there is none."""
    return block.get_submodule(first_path(block, paths))


# What turns images and sounds into what a model reads, beside its tokenizer.
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def copy_processor(config: Any, directory: Path) -> None:
    """Copy the settings of a model's processor from where the model was loaded, if they are there."""
    source = str(getattr(config, "_name_or_path", ""))
    for name in _PROCESSOR:
        found = Path(source) / name
        if not found.is_file():
            with suppress(HFValidationError):
                cached = try_to_load_from_cache(source, name)
                found = Path(cached) if isinstance(cached, str) else found
        if found.is_file() and not (directory / name).exists():
            shutil.copyfile(found, directory / name)


class LanguageModel:
    """A transformers model and its tokenizer, reduced to the few operations that editing needs.

    Layers are counted from 0. Nothing here changes the model; an edit writes to the views that `weight` returns.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its fast tokenizer.
        chat: Ask every prompt as a user's turn of a chat, so that its target begins the assistant's answer.

    Raises:
        ValueError: A wrapped model or one without a head, an unknown family, absent weights, a quantized model that
            cannot run here, a tokenizer without offsets, with more tokens than the model or, for a chat, without a
            usable chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, chat: bool = False) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.loaded_from: str | None = None  # what `load_language_model` was given, unless that was a loaded model
        self.config = text_config(model)
        self.architecture = loaded_architecture(model)
        if model.get_output_embeddings() is None:
            raise ValueError(
                f"model={type(model).__name__}: it has no head that gives the next token. Load it with "
                "AutoModelForCausalLM."
            )
        check_tokenizer(tokenizer, self.embedded_tokens)
        self.quantized = is_quantized(model)
        if self.quantized:
            (self._key,) = first_pass(model, {0: self.down_projection(0)}).values()
        check_editable(model, [layer for layer in range(self.num_layers) if self.in_memory(layer)][:1] or [0])
        self.frame: Frame = chat_frame(tokenizer) if chat else PLAIN

    shared_expert = False
    """Whether the shared expert is what is edited of a mixture of experts."""
    _stream_dtype: torch.dtype | None = None

    @cached_property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.get_submodule(self.architecture.blocks).children())

    @cached_property
    def turn(self) -> Frame | None:
        """A user's turn in the tokenizer's chat template, however the model is asked; None if there is none to use."""
        return self.turn_after(())

    def turn_after(self, earlier: Sequence[Turn]) -> Frame | None:
        """As `turn`, after other turns; None also if the template has no place for these, such as a system turn."""
        try:
            return chat_frame(self.tokenizer, earlier)
        except ValueError:
            return None

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @property
    def name(self) -> str:
        return model_name(self.config if self.architecture.text_model is None else self.model.config)

    @property
    def text_model(self) -> Any:
        """What reads text: the whole model, or in a model of images and text a part without a head."""
        path = self.architecture.text_model
        return self.model if path is None else self.model.get_submodule(path)

    def down_projection(self, layer: int) -> nn.Module:
        return first_of(self.blocks[layer], self.architecture.down_projection)

    def projection(self, place: int) -> nn.Module:
        """The module whose weight is at a place; AttributeError if the MLP has none there."""
        path = first_path(self.blocks[layer_of(place)], self.architecture.down_projection)
        return self.blocks[layer_of(place)].get_submodule(path_at(place, path))

    def gated(self, layer: int) -> bool:
        """Whether a layer's MLP makes its keys of two weights that can be edited, σ(G x) ⊙ (U x), and nothing else."""
        mlp = self.mlp(layer)
        try:
            parts = [self.projection(place_of(layer, part)) for part in (GATE, UP)]
        except AttributeError:
            return False
        alone = {*parts, self.down_projection(layer), getattr(mlp, "act_fn", None)} >= set(mlp.children())
        return alone and callable(getattr(mlp, "act_fn", None)) and all(map(_is_plain_linear, parts))

    def block(self, layer: int) -> nn.Module:
        return self.blocks[layer]

    def mlp(self, layer: int) -> nn.Module:
        return first_of(self.blocks[layer], self.architecture.mlp)

    def attention(self, layer: int) -> nn.Module:
        return first_of(self.blocks[layer], self.architecture.attention)

    def whole(self, layer: int) -> nn.Module:
        """The module that runs on whole texts, of a family that has one."""
        assert self.architecture.whole is not None
        return first_of(self.blocks[layer], self.architecture.whole)

    def in_memory(self, layer: int) -> bool:
        """Whether the editable weight of a layer can be written."""
        return self.quantized or not oriented(self.down_projection(layer), self.architecture.transposed).is_meta

    def weight(self, layer: int) -> Tensor:
        """The editable weight of a layer, a (d_value, d_key) view; of a quantized model, dense and beside it."""
        return self.weights([layer])[layer]

    def weights(self, places: Sequence[int]) -> dict[int, Tensor]:
        modules = {place: self.projection(place) for place in places}
        if self.quantized:
            return {place: found.weight.detach() for place, found in unmerged(self.model, modules).items()}
        return {place: oriented(module, self.architecture.turned(place)) for place, module in modules.items()}

    def weight_hash(self, place: int) -> str:
        """The content hash of the weight at a place. For it, no dense weight is kept beside a quantized model."""
        module = self.projection(place)
        needed = not self.quantized or held(module) is not None
        digest = content_hash(self.weight(place))
        if not needed:
            release(module)
        return digest

    @property
    def d_value(self) -> int:
        return int(self.config.hidden_size) if self.quantized else self.weight(0).shape[0]

    @property
    def d_key(self) -> int:
        """How many dimensions a key has; of experts, those of all of them by how many of them a token is sent to."""
        return self._key.shape[-1] if self.quantized else max(self._key_sizes)

    @cached_property
    def _key_sizes(self) -> list[int]:
        sizes = [
            matrix_shape(oriented(self.down_projection(layer), self.architecture.transposed))[1]
            for layer in range(self.num_layers)
        ]
        if not any(map(self.experts, range(self.num_layers))):
            return sizes[:1]
        share = max(1, int(getattr(self.config, "num_experts_per_tok", None) or 1))
        return [size // share if self.experts(layer) else size for layer, size in enumerate(sizes)]

    def key_width(self, layer: int) -> int:
        """How many dimensions a layer's keys have; of experts, those of one of them.

        At the place of a weight that makes keys, those of its inputs and one for a constant.
        """
        if makes_keys(layer):
            return self.d_value + 1
        if self.quantized:
            return self.d_key
        weight = oriented(self.down_projection(layer), self.architecture.transposed)
        return int(weight.shape[-1])

    def experts(self, layer: int) -> int:
        """How many experts a layer has; 0 of a layer without a router."""
        return 0 if makes_keys(layer) else expert_count(self.down_projection(layer))

    @property
    def embedded_tokens(self) -> int:
        """How many tokens the model has an embedding for; often more than its tokenizer has tokens."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model takes its input."""
        embeddings = self.model.get_input_embeddings()
        device = embeddings.weight.device
        if device.type == "meta":  # offloaded: accelerate brings it to where it runs
            device = torch.device(embeddings._hf_hook.execution_device)
        assert isinstance(device, torch.device)
        return device

    @property
    def spread(self) -> bool:
        """Whether the model lies on several devices."""
        return len(set((getattr(self.model, "hf_device_map", None) or {}).values())) > 1

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored in; of a quantized model, what its layers are given."""
        return self._key.dtype if self.quantized else self.weight(0).dtype

    @property
    def weight_dtype(self) -> torch.dtype:
        """What edits are written to: the dtype of the weights, or beside a quantized model float32 or wider."""
        return torch.promote_types(self.dtype, torch.float32) if self.quantized else self.dtype

    @property
    def stream_dtype(self) -> torch.dtype:
        """The dtype of hidden states: that of the weights, except inside `factpatch.model.precision.computing`."""
        return self._stream_dtype or self.dtype

    def with_shared_expert(self) -> LanguageModel:
        """Return the same model, seen as one of which the shared expert is edited in place of the routed ones.

        Raises:
            ValueError: It has none.
        """
        view = copy(self)
        view.architecture, view.shared_expert = self.architecture.of_shared_expert(), True
        view.__dict__.pop("_key_sizes", None)
        _edited_modules(self.model, shared_expert=True)
        return view

    def with_stream(self, dtype: torch.dtype) -> LanguageModel:
        """Return the same model, seen as one whose hidden states have this dtype; the caller makes it so."""
        view = copy(self)
        view._stream_dtype = dtype
        return view

    @property
    def work_dtype(self) -> torch.dtype:
        """The dtype of losses, values and optimizer states: float64 if hidden states are (exact mode), else float32."""
        return torch.float64 if self.stream_dtype == torch.float64 else torch.float32

    def body(self, **inputs: Any) -> Tensor:
        """Run everything but the head; return the last hidden states, (rows, tokens, d_value), after the final norm."""
        hidden = self.text_model.base_model(**inputs).last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head to (positions, d_value) hidden states: (positions, vocabulary), in the work dtype."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        if self.architecture.logits is not None:
            logits = self.architecture.logits.of(logits, self.config)
        return logits.to(self.work_dtype)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """As `logits`, with the logarithm of the softmax."""
        return torch.log_softmax(self.logits(hidden), dim=-1)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No dropout, no parameter gradients, attention that honors our masks; all restored afterwards."""
        with frozen(self.model), masked_attention(self.text_model), wide_range(self.model):
            yield

    def save_pretrained(self, directory: str | Path, card: str | None = None) -> None:
        """Write the model with its tokenizer, and the text of a model card if given, to a directory for transformers.

        The directory must be new or empty, and appears whole or not at all.

        Raises:
            ValueError: It is quantized.
            FileExistsError: The directory exists and is not empty.
            OSError: It cannot be written.
        """
        self.check_savable()
        with atomic_directory(directory) as draft:
            offloaded = any(parameter.is_meta for parameter in self.model.parameters())
            # Else transformers would look for the weights in the modules, where accelerate leaves placeholders.
            state = get_state_dict_offloaded_model(self.model) if offloaded else None
            self.model.save_pretrained(draft, state_dict=state)
            self.tokenizer.save_pretrained(draft)
            if self.architecture.text_model is not None:
                copy_processor(self.model.config, draft)
            if card is not None:
                (draft / "README.md").write_text(card, encoding="utf-8")

    def check_savable(self) -> None:
        """Raise ValueError for a quantized model: its files have no place for what was written beside it."""
        check_mergeable(self.model)

    def window(self, wanted: int) -> int:
        """Return the longest text to run at once: `wanted` tokens, or fewer if the model has fewer positions."""
        return min(wanted, int(getattr(self.config, "max_position_embeddings", None) or wanted))

    @property
    def longest(self) -> int | None:
        """The most tokens that a text may have: the model's positions, or fewer if its attention reaches less far."""
        limits = (getattr(self.config, name, None) for name in ("max_position_embeddings", "sliding_window"))
        return min((int(limit) for limit in limits if limit), default=None)  # 0 stands for none, too

    def has_room(self, tokens: int) -> bool:
        """Whether a text of so many tokens can be read."""
        return self.longest is None or tokens <= self.longest

    def check_length(self, ids: Sequence[int], text: str) -> None:
        """Raise ValueError for a text with more tokens than the model has positions, or than its attention reaches.

        So it does for a text with a token that the model has no embedding for.
        """
        if not self.has_room(len(ids)):
            raise ValueError(f"{text[:60]!r}... takes {len(ids)} tokens; {self.name} reads {self.longest}. Shorten it.")
        if max(ids, default=0) >= self.embedded_tokens:
            token = str(self.tokenizer.convert_ids_to_tokens(max(ids)))
            raise ValueError(f"{text[:60]!r}: {no_embedding(token, self.embedded_tokens)}")

    def check_chat(self, chat: bool) -> None:
        """Raise ValueError if a chat is wanted and this model is asked plainly."""
        if chat and not self.frame.chat:
            raise ValueError(
                "chat=True: this LanguageModel asks plainly; make it with LanguageModel(model, tokenizer, chat=True)."
            )

    def check_layers(self, layers: Sequence[int], argument: str = "critical_layers") -> None:
        """Raise ValueError for an empty, unordered or absent layer."""
        if not layers:
            raise ValueError(f"{argument}=[]: name at least one layer.")
        for layer in layers:
            if not 0 <= layer < self.num_layers:
                raise ValueError(
                    f"{argument}={list(layers)}: layer {layer} does not exist; {self.name} has layers 0 to "
                    f"{self.num_layers - 1}."
                )
        if list(layers) != sorted(set(layers)):
            raise ValueError(f"{argument}={list(layers)}: give each layer once, in ascending order.")
