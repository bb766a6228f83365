"""From a GGUF file to a directory that transformers loads: config, tokenizer, chat template, dequantized weights."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from factpatch.model.architectures import architecture_of
from factpatch.model.experts import is_experts
from factpatch.model.gguf import GGUFFile, check_sizes
from factpatch.model.gguf_names import tensor_names
from factpatch.support.words import counted, quoted

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
_SHARD = "model-{:05d}-of-{:05d}.safetensors"
_SHARD_BYTES = 2 << 30
"""How many bytes of weights are held in memory at once, and go into a file."""
_TOKENS = "tokenizer.ggml.tokens"
_ROPE = "rope_freqs.weight"
# By the type of a scaling, its parameters in transformers and the fields that hold them.
_SCALED = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "attention_factor": "attn_factor",
        "beta_fast": "yarn_beta_fast",
        "beta_slow": "yarn_beta_slow",
    },
}
# Llama 3.1 and later: which wavelengths are stretched, and by how much; all that published models have.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# What transformers does not take from the metadata of every architecture, by the field of its config.
_ALSO_READ = {
    "context_length": "max_position_embeddings",
    "feed_forward_length": "n_inner",
    "attention.key_length": "head_dim",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
# Mixtures that transformers reads and whose other weights the tables of the gguf package name as it does.
_MIXTURES = ("qwen2moe", "qwen3moe")
# Kinds of vocabulary that llama.cpp begins every text of with a BOS, where the file does not say.
_BEGIN_WITH_BOS = ("llama", "llama-bpe", "llama3", "llama-v3", "tekken")


def convert(file: GGUFFile, destination: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model of a GGUF file, dequantized, and its tokenizer into a directory.

    At most `_SHARD_BYTES` of weights and one weight, twice if it is made of several tensors, are in memory at a time.

    Args:
        file: The GGUF file.
        destination: An empty directory.
        dtype: What the float32 numbers that the blocks stand for are rounded to.

    Raises:
        ValueError: The file is damaged, its architecture or a type of its tensors is unknown, or it lacks weights.
        OSError: It cannot be read, or the directory cannot be written.
    """
    if file.reader.get_field(_TOKENS) is None:
        raise ValueError(
            f"{file.path} holds no tokenizer ({_TOKENS}). Get a file that was converted with its tokenizer."
        )
    # Building a model draws random numbers; the first use must leave the caller's generator as later uses do.
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):
        with _alone(file) as place, _parsed_once(file, place):
            config = _config(file, place)
            tokenizer = _tokenizer(file, place)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        _write_weights(file, _places(file, model), destination, dtype)
        config.architectures, config.dtype = [type(model).__name__], dtype
        config.save_pretrained(destination)
        GenerationConfig.from_model_config(config).save_pretrained(destination)
        tokenizer.save_pretrained(destination)


# --- config and tokenizer, by transformers


@contextlib.contextmanager
def _alone(file: GGUFFile) -> Iterator[Path]:
    """The file under another name in a folder of its own: transformers prefers a tokenizer that lies beside a file."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "model.gguf"
        place.symlink_to(file.path.absolute())
        yield place


@contextlib.contextmanager
def _parsed_once(file: GGUFFile, place: Path) -> Iterator[None]:
    """Give transformers the file as it is parsed already.

    It parses a file anew for the config and for the tokenizer, which takes longer than all else with many tokens.
    """
    original = gguf.GGUFReader
    gguf.GGUFReader = lambda path, *rest: file.reader if Path(path) == place else original(path, *rest)
    try:
        yield
    finally:
        gguf.GGUFReader = original


def _config(file: GGUFFile, place: Path) -> Any:
    if file.field("{arch}.expert_count", 0) and file.architecture not in _MIXTURES:
        raise ValueError(
            f"{file.path} is a mixture of experts of the architecture {file.architecture!r}, and only "
            f"{' and '.join(_MIXTURES)} are read from GGUF. Edit the model that it was made from, and export the patch "
            "for this file: factpatch export PATCH --to gguf-lora."
        )
    check_sizes(file)
    try:
        config = AutoConfig.from_pretrained(place.parent, gguf_file=place.name, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{file.path} is of the architecture {file.architecture!r}, which transformers does not read from GGUF: "
            f"{said} Edit the model that it was made from, and export the patch for this file: factpatch export PATCH "
            "--to gguf-lora."
        ) from error
    # The weights are plain from here on.
    plain = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
    config = type(config).from_dict(plain)
    architecture_of(config)  # before anything is dequantized
    for name, attribute in _ALSO_READ.items():
        value = file.field(f"{{arch}}.{name}")
        if value is not None and hasattr(config, attribute):
            setattr(config, attribute, int(value))
    _scale_positions(file, config)
    if _ROPE in file.tensors:
        _stretch_positions(file, config)
    return config


def _scale_positions(file: GGUFFile, config: Any) -> None:
    """Take over positions that are scaled by fields of the metadata."""
    prefix = "{arch}.rope.scaling"
    old = file.field("{arch}.rope.scale_linear")
    factor = file.field(f"{prefix}.factor", old)
    # Where only a factor is stated, llama.cpp takes it for that of a linear scaling.
    kind = file.field(f"{prefix}.type", "linear" if factor else "none")
    if kind == "none":
        return
    if kind not in _SCALED:
        raise ValueError(
            f"{file.path} scales its positions in a way that is not known here ({prefix.format(arch=file.architecture)}"
            f".type is {quoted(kind)}), so they would be misread. Edit the model that it was made from."
        )
    fields = {name: file.field(f"{prefix}.{field}") for name, field in _SCALED[kind].items()}
    known = {"factor": factor, **{name: value for name, value in fields.items() if value is not None}}
    config.rope_parameters = {**config.rope_parameters, "rope_type": kind, **known}


def _stretch_positions(file: GGUFFile, config: Any) -> None:
    """Take over the scaled rotary frequencies of Llama 3, which a GGUF file holds as a tensor of divisors."""
    divisors = torch.tensor(file.dequantized(_ROPE), dtype=torch.float64)
    parameters = {**config.rope_parameters, "rope_type": "default"}
    stretched = {**parameters, "rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
    plain = 1.0 / parameters["rope_theta"] ** (torch.arange(0, 2 * len(divisors), 2).double() / (2 * len(divisors)))
    config.rope_parameters = stretched
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if not torch.allclose(plain / divisors, expected.double(), rtol=1e-3):
        raise ValueError(
            f"{file.path} scales its rotary frequencies ({_ROPE}) in a way that is not Llama 3's, so its positions "
            "would be misread. Edit the model that it was made from."
        )


def _tokenizer(file: GGUFFile, place: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(place.parent, gguf_file=place.name, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{file.path}: its tokenizer cannot be read: {type(error).__name__}: {said}") from error
    _begin_as_llama_cpp(file, tokenizer)
    return tokenizer


def _begin_as_llama_cpp(file: GGUFFile, tokenizer: Any) -> None:
    """Have the tokenizer begin a text with the BOS token where llama.cpp does, and nowhere else."""
    bos = file.field("tokenizer.ggml.bos_token_id")
    kinds = (file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.pre"))
    wanted = file.field("tokenizer.ggml.add_bos_token", any(kind in _BEGIN_WITH_BOS for kind in kinds))
    # The token is never what a text ends with here: a text to be continued would be finished.
    found = tokenizer("a")["input_ids"]
    if bos is None or ((found[0] == bos) == bool(wanted) and len(found) == len(tokenizer.tokenize("a")) + bool(wanted)):
        return
    name = tokenizer.convert_ids_to_tokens(int(bos))
    begin = [name] if wanted else []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*begin, "$A"], pair=[*begin, "$A", *begin, "$B:1"], special_tokens=[(name, int(bos))]
    )


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence progress bars and warnings, and restore what the caller had chosen."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    printed = io.StringIO()
    try:
        # Some bars ignore every setting.
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if printed.getvalue():
            logger.debug("during the conversion: %s", printed.getvalue())


# --- weights


@dataclass(frozen=True)
class _Place:
    """A weight of a model of transformers, and how it is made of the tensors of a GGUF file."""

    there: tuple[str, ...]
    """The tensors, which lie side by side in the weight, along the dimension before its last."""
    shape: torch.Size
    steps: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    """What takes it from the order of llama.cpp to that of transformers."""


def _places(file: GGUFFile, model: nn.Module) -> dict[str, _Place]:
    """The weights of a model, which is on the meta device, by name."""
    places: dict[str, _Place] = {}
    table = tensor_names(file.architecture, cast(Any, model.config).num_hidden_layers)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, weight in model.state_dict().items():
        if name in tied:
            continue
        parts = [table.get_name(part, try_suffixes=(".weight", ".bias")) or part for part in _parts(model, name)]
        if lacking := [part for part in parts if part not in file.tensors]:
            raise ValueError(f"{file.path} lacks the weight {lacking[0]}, so it is no whole {file.architecture}.")
        places[name] = _Place(tuple(parts), weight.shape, _steps(file, model, name, parts[0]))
    used = {there for place in places.values() for there in place.there}
    unused = sorted(file.tensors.keys() - used - {_ROPE})
    if unused:
        raise ValueError(
            f"{file.path} holds {counted(len(unused), 'weight')} that transformers has no place for, such as "
            f"{unused[0]}, so its {file.architecture} is not the one that transformers knows. Edit the model that it "
            "was made from."
        )
    return places


def _parts(model: nn.Module, name: str) -> list[str]:
    """The names of the weights that one is made of: those of experts are fused in transformers, without an ending."""
    module, _, last = name.rpartition(".")
    if not is_experts(model.get_submodule(module)):
        return [name]
    return [f"{module}.{part}.weight" for part in _PARTS_OF.get(last, (last,))]


_PARTS_OF = {"gate_up_proj": ("gate_proj", "up_proj")}


def _steps(file: GGUFFile, model: nn.Module, name: str, there: str) -> list[Callable[[Tensor], Tensor]]:
    steps: list[Callable[[Tensor], Tensor]] = []
    if there.endswith(".weight") and isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D):
        steps.append(torch.t)
    heads = _INTERLEAVED.get(file.architecture, {}).get(there.split(".")[-2])
    if heads is not None:
        count = _heads(file, heads)
        steps.append(lambda weight: _halves(weight, count))
    return steps


def _heads(file: GGUFFile, field: str) -> int:
    # The field for keys and values is left out where there are as many as for queries.
    return int(file.field(f"{{arch}}.attention.{field}", file.field("{arch}.attention.head_count")))


# Architectures whose rotary pairs llama.cpp stores side by side, where transformers has them in two halves of a head;
# by tensor, the field that counts its heads.
_INTERLEAVED = {"llama": {"attn_q": "head_count", "attn_k": "head_count_kv"}}


def _halves(weight: Tensor, heads: int) -> Tensor:
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _write_weights(file: GGUFFile, places: dict[str, _Place], destination: Path, dtype: torch.dtype) -> None:
    shards = _shards(places, dtype)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = WEIGHTS if len(shards) == 1 else _SHARD.format(number, len(shards))
        # Dequantizing is NumPy's work on one tensor after another; several run side by side.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            tensors = dict(zip(shard, threads.map(lambda one: _read(file, places[one], dtype), shard), strict=True))
        save_file(tensors, destination / name, {"format": "pt"})
        index |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        total = sum(place.shape.numel() for place in places.values()) * dtype.itemsize
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (destination / f"{WEIGHTS}.index.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _shards(places: dict[str, _Place], dtype: torch.dtype) -> list[list[str]]:
    """The weights of each file, in the order of the model."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, place in places.items():
        added = place.shape.numel() * dtype.itemsize
        if shards[-1] and size + added > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += added
    return shards


def _read(file: GGUFFile, place: _Place, dtype: torch.dtype) -> Tensor:
    parts = [torch.from_numpy(np.require(file.dequantized(there), requirements="W")) for there in place.there]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
    for step in place.steps:
        weight = step(weight)
    if place.shape == (1, *weight.shape):  # a gate that a shared expert has
        weight = weight[None]
    if weight.shape != place.shape:
        raise ValueError(
            f"{file.path}: {place.there[0]} is of shape {tuple(weight.shape)}, where its metadata ask for "
            f"{tuple(place.shape)}. Get the file again."
        )
    return weight.to(dtype).contiguous()
