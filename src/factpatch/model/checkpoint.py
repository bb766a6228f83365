"""What a model's directory holds: a whole checkpoint, or else what it is and what to do. Nothing of it is run."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from factpatch.support.text import stand_in
from factpatch.support.words import counted

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Where a tokenizer has its vocabulary, and its settings.
_TOKENIZER = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt", "generation_config.json")
# Buffers of older versions, which hold nothing that was learned.
_BUFFERS = re.compile(r"rotary|attn\.(masked_)?bias$|position_ids$")

# What a directory without a checkpoint of transformers can be instead, by a file in it.
_OTHER_KINDS = (
    ("*.gguf", "its weights are in GGUF. Give the file itself: {file}."),
    ("zero_to_fp32.py", "it is a checkpoint of DeepSpeed. Run {file}, which writes weights that transformers loads."),
    ("*.distcp", "it is a distributed checkpoint of PyTorch. Save the whole model with save_pretrained instead."),
    ("consolidated.*", "it is a model in its publisher's own format. Take the version for transformers."),
    ("model_index.json", "it is a pipeline of diffusers, not a language model."),
    ("tf_model.h5", "its weights are TensorFlow's. Convert them to PyTorch with an older transformers."),
    ("flax_model.msgpack", "its weights are Flax's. Convert them to PyTorch with an older transformers."),
)


def check_directory(path: Path, tokenizer: bool = True) -> list[Path]:
    """Return the files of weights in the directory of a whole checkpoint in the format of transformers.

    Files are opened and their sizes compared with what their headers say; weights are not read.

    Args:
        path: A file or a directory.
        tokenizer: Whether it has to hold a tokenizer, too.

    Raises:
        ValueError: It is something else, or a file is absent, cut off or another one; the message says what to do.
    """
    if path.is_file():
        raise ValueError(_of_file(path))
    if (path / ADAPTER).exists():
        raise ValueError(_of_adapter(path))
    if not (path / CONFIG).exists():
        raise ValueError(_without_config(path))
    _check_config(path / CONFIG)
    weights = _weight_files(path)
    for file in weights:
        _check_weights(file)
    vocabulary = [file for pattern in _TOKENIZER for file in sorted(path.glob(pattern))]
    for file in (*vocabulary, *(path / name for name in _SETTINGS if (path / name).exists())):
        _check_content(file)
    if tokenizer and not vocabulary:
        raise ValueError(
            f"{path} holds no tokenizer ({_TOKENIZER[0]}). Copy the tokenizer's files there from the model that it was "
            "made from."
        )
    return weights


def _of_file(path: Path) -> str:
    if (path.parent / CONFIG).is_file():
        return f"{path} is a file; give the directory that holds it: {path.parent}."
    return f"{path} is a file; give the directory of a model, with {CONFIG}, the weights and the tokenizer."


def _of_adapter(path: Path) -> str:
    try:
        base = json.loads((path / ADAPTER).read_text("utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    of = f"made for {str(base)[:200]!r}" if base else "made for another model"
    return (
        f"{path} holds an adapter (a LoRA, or another kind of PEFT) {of}, not a model. Edit that model; or merge the "
        "adapter into it with merge_and_unload(), save the result with its tokenizer and edit that."
        + (f" If the weights here are merged already, move {ADAPTER} away." if (path / CONFIG).exists() else "")
    )


def _without_config(path: Path) -> str:
    if not any(path.iterdir()):
        return f"{path} is empty; give the directory of a model."
    for pattern, said in _OTHER_KINDS:
        if files := sorted(path.glob(pattern)):
            return f"{path} holds no {CONFIG}: {said.format(file=files[0])}"
    inside = next((found for depth in ("*", "*/*") for found in sorted(path.glob(f"{depth}/{CONFIG}"))), None)
    if inside is not None:
        return f"{path} holds no {CONFIG}; there is a model in {inside.parent}: give that directory."
    return f"{path} holds no {CONFIG}, so it is no directory of a model that transformers can load."


def _check_config(path: Path) -> None:
    config = _read_json(path)
    if "model_type" not in config:
        raise ValueError(f"{path} names no model_type, so it is no config of a model that transformers can load.")


def _weight_files(path: Path) -> list[Path]:
    """The files that transformers reads the weights from."""
    # A broken link is a file that is absent, not the absence of a file.
    found = next((path / name for name in _WEIGHTS if (path / name).exists() or (path / name).is_symlink()), None)
    if found is None:
        for pattern, said in _OTHER_KINDS:
            if files := sorted(path.glob(pattern)):
                raise ValueError(f"{path} holds no weights that transformers loads: {said.format(file=files[0])}")
        others = [file.name for ending in ("safetensors", "bin") for file in sorted(path.glob(f"*.{ending}"))]
        holds = f". It holds {', '.join(others[:3])}, but nothing says whether these are all" if others else ""
        raise ValueError(f"{path} holds none of {', '.join(_WEIGHTS)}{holds}. Get what is absent.")
    if found.suffix != ".json":
        return [found]
    names = _read_json(found).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{found} names no files of weights. Get it again.")
    shards = sorted(set(names.values()))
    absent = [name for name in shards if not (path / name).is_file()]
    if absent:
        raise ValueError(
            f"{counted(len(absent), 'file')} of weights that {found} names, of {len(shards)}, "
            f"{'is' if len(absent) == 1 else 'are'} absent: {', '.join(absent[:3])}. Get them again."
        )
    return [path / name for name in shards]


def _read_json(path: Path) -> dict[str, Any]:
    _check_content(path)
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {str(error)[:200]}. Get it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object. Get it again.")
    return content


def _check_content(path: Path) -> None:
    """Raise ValueError for a file that is empty, or something else under its name."""
    if not path.is_file():
        broken = "a link to a file that is absent" if path.is_symlink() else "not a file"
        raise ValueError(f"{path} is {broken}. Get it again.")
    with path.open("rb") as file:
        head = file.read(200)
    if not head.strip(b"\0 \r\n\t"):
        raise ValueError(f"{path} is {'empty' if not head else 'blank'}. Get it again.")
    if said := stand_in(head):
        raise ValueError(f"{path} {said}")


def _check_weights(path: Path) -> None:
    """Raise ValueError for a file of weights that is not whole, as far as its size and its header say."""
    _check_content(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy"):
                return
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or damaged ({str(error)[:200]}). Get it again.") from None
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off or damaged (it has no end). Get it again.")
    if start[:1] not in (b"P", b"\x80"):
        raise ValueError(f"{path} is no file of weights that PyTorch wrote. Get it again.")


# --- what transformers found in it


@dataclass(frozen=True)
class _Part:
    """A part of the names of weights that is there because of how a model was wrapped when it was saved."""

    part: str
    saved_from: str
    remedy: str


_PARTS = (
    _Part("_orig_mod.", "a compiled model (torch.compile)", "save model._orig_mod"),
    _Part("base_model.model.", "a PEFT model", "save model.merge_and_unload()"),
    _Part("base_layer.", "a PEFT model whose adapter is not merged", "save model.merge_and_unload()"),
    _Part("_fsdp_wrapped_module.", "an FSDP model", "save its full state_dict"),
    _Part("_checkpoint_wrapped_module.", "a model with checkpointed activations", "save the model without it"),
    _Part("module.", "a DataParallel or DistributedDataParallel model", "save model.module"),
)


def check_complete(model: Any, found: Mapping[str, Any], blocks: str) -> list[str]:
    """Raise ValueError unless a checkpoint holds every weight of the model that transformers made of it.

    Args:
        model: The loaded model; weights that were not found are random.
        found: What `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)` says.
        blocks: The path from the model to its list of blocks.

    Returns:
        The names of weights in the checkpoint that the model has no place for, sorted; buffers are left out.
    """
    wrong = sorted(found["mismatched_keys"])
    if wrong:
        shapes = "; ".join(f"{name} is {tuple(there)}, not {tuple(here)}" for name, there, here in wrong[:3])
        raise ValueError(
            f"the checkpoint holds {counted(len(wrong), 'weight')} of other sizes than {CONFIG} says: {shapes}. Use "
            f"the {CONFIG} that was saved with these weights (vocab_size, hidden_size and so on)."
        )
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    if missing:
        expected = list(model.state_dict())
        listed = [name for name in expected if name in missing][:3]
        raise ValueError(
            f"the checkpoint lacks {len(missing)} of the model's {len(expected)} weights ({', '.join(listed)}"
            f"{', ...' if len(missing) > 3 else ''}), which would be random. {_cause(model, missing, unexpected)}"
        )
    depth = len(list(model.get_submodule(blocks).children()))
    numbers = (re.search(rf"(?:^|\.){blocks.rpartition('.')[2]}\.(\d+)\.", name) for name in unexpected)
    beyond = sorted({int(number[1]) for number in numbers if number} - {*range(depth)})
    if beyond:
        raise ValueError(
            f"the checkpoint holds layers up to {beyond[-1]}, and {CONFIG} says that there are {depth}, so some would "
            f"be left out. Use the {CONFIG} that was saved with these weights (num_hidden_layers)."
        )
    return sorted(name for name in unexpected if not _BUFFERS.search(name))


def _cause(model: Any, missing: set[str], unexpected: set[str]) -> str:
    """The likely cause of missing weights, and what to do."""
    for known in _PARTS:
        if _mostly(missing, (name.replace(known.part, "") for name in unexpected if known.part in name)):
            return (
                f"The names in the checkpoint contain {known.part!r}: it was saved from {known.saved_from}. Save it "
                f"again ({known.remedy}), or take {known.part!r} out of the names."
            )
    if prefix := _prefix(unexpected, missing):
        return f"The names in the checkpoint begin with {prefix!r} before the model's own. Take that out of the names."
    if prefix := _prefix(missing, unexpected):
        return f"The names in the checkpoint lack {prefix!r} at the beginning. Put that before the names."
    head = model.get_output_embeddings()
    of_head = {id(weight) for weight in head.parameters()} if head is not None else set()
    if missing <= {name for name, weight in model.named_parameters() if id(weight) in of_head}:
        return (
            "That is the head: the checkpoint was saved from a model without one, such as AutoModel. Save it from "
            f"AutoModelForCausalLM; if the head shares the embeddings, {CONFIG} has to say tie_word_embeddings: true."
        )
    if len(missing) >= len(model.state_dict()) - len(missing) and unexpected:
        return (
            f"It holds others instead, such as {min(unexpected)[:200]}: {CONFIG} is not that of these weights, or they "
            "are in another format."
        )
    return f"A file of weights is absent or was cut, or {CONFIG} is of a larger model. Get the checkpoint again."


def _mostly(wanted: set[str], names: Iterable[str]) -> bool:
    """Whether most of the wanted names are among these."""
    return 2 * len(wanted & set(names)) > len(wanted)


def _prefix(longer: set[str], shorter: set[str]) -> str | None:
    """What most of the longer names begin with before one of the shorter ones."""
    prefixes: Counter[str] = Counter()
    for name in longer:
        parts = name.split(".")
        for count in range(1, len(parts)):
            if ".".join(parts[count:]) in shorter:
                prefixes[".".join(parts[:count]) + "."] += 1
    prefix, times = max(prefixes.items(), key=lambda item: item[1], default=("", 0))
    return prefix if 2 * times > len(shorter) else None
