"""From what a user names to a language model: files that `model_source` finds, an id of the Hub, or a loaded model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
)

from factpatch.model.architectures import architecture_of
from factpatch.model.checkpoint import CONFIG, check_complete, check_directory
from factpatch.model.embedded import EMBEDDED
from factpatch.model.gguf import why_absent
from factpatch.model.language_model import LanguageModel
from factpatch.model.memory import out_of_memory
from factpatch.model.quantized import is_quantized, quantization
from factpatch.model.source import model_source
from factpatch.model.tokens import tokenize
from factpatch.model.weights import check_finite
from factpatch.support.words import counted, suggestion

logger = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
_PATIENCE = 5.0
"""Seconds to wait for the Hugging Face Hub to answer at all."""
_NEEDS_CODE = (
    "it needs Python code of its own (auto_map in its config.json or tokenizer_config.json), which factpatch does not "
    "run. Choose a model that transformers itself knows."
)


def dtype_named(name: str | torch.dtype | None) -> torch.dtype | None:
    """Return a dtype by name; None and 'auto' mean the checkpoint's own.

    Raises:
        ValueError: No such dtype.
    """
    if name is None or name == "auto":
        return None
    if name in DTYPES.values():
        return name  # type: ignore[return-value]
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: no such dtype.{suggestion(str(name), ['auto', *DTYPES])}")
    dtype: torch.dtype = DTYPES[name]
    return dtype


def check_device(device: str | torch.device) -> torch.device:
    """Return a device that can be used.

    Raises:
        ValueError: Its name is not one of PyTorch's, or it is not on this machine.
    """
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        others = " or ".join(["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])])
        raise ValueError(f"device={str(device)!r} cannot be used: {reason}. Try {others}.") from None
    return chosen


def load_language_model(
    model: Any,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    chat: bool = False,
) -> LanguageModel:
    """Load what the user named, or wrap what the user loaded.

    Args:
        model: An embedded model's name, a directory, a GGUF file, the name of an Ollama model, an id of the Hugging
            Face Hub, or a loaded transformers model.
        tokenizer: The tokenizer of a loaded model; else it is loaded with the model.
        device: Where to put the model, as PyTorch writes it; 'auto' spreads it over the devices there are.
        dtype: float32, bfloat16, float16 or float64 (exact mode); the checkpoint's own by default.
        chat: Ask every prompt as a user's turn of a chat; a `LanguageModel` has that setting already.

    Raises:
        ValueError: Nothing of that name can be loaded, it lacks weights, or it cannot be edited; the message says why.
        FloatingPointError: A weight is NaN or infinite.
    """
    wanted, own_tokenizer = dtype_named(dtype), tokenizer is not None
    if isinstance(model, LanguageModel):
        for name, value in (("tokenizer", tokenizer), ("device", device), ("dtype", dtype)):
            if value is not None and value is not model.tokenizer:
                raise ValueError(f"{name}={value!r}: a LanguageModel is taken as it is; leave {name} out.")
        model.check_chat(chat)
        return model
    place = None if device is None or device == "auto" else check_device(device)
    if not isinstance(model, (str, Path)):
        if tokenizer is None:
            raise ValueError("tokenizer=None: give the tokenizer of the loaded model as well.")
        loaded = LanguageModel(model, tokenizer, chat).model  # what cannot be edited is refused before it is moved
    else:
        loaded, tokenizer = _load(str(model), tokenizer, wanted, "auto" if device == "auto" else place)
    if is_quantized(loaded):
        _check_fixed(loaded, wanted, place)
    else:
        if wanted is not None and loaded.dtype != wanted:
            loaded = loaded.to(wanted)
        if place is not None:
            loaded = loaded.to(place)
    lm = LanguageModel(loaded, tokenizer, chat)
    lm.loaded_from = str(model) if isinstance(model, (str, Path)) and not own_tokenizer else None
    check_finite(loaded)
    _check_range(lm)
    return lm


def _check_fixed(loaded: Any, dtype: torch.dtype | None, place: torch.device | None) -> None:
    """Raise ValueError if a quantized model, which stays as it was loaded, is wanted in another dtype or place."""
    for name, value, there in (("dtype", dtype, loaded.dtype), ("device", place, loaded.device)):
        other = isinstance(value, torch.device) and (value.type, value.index or 0) != (there.type, there.index or 0)
        if other or (isinstance(value, torch.dtype) and value != there):
            raise ValueError(
                f"{name}={str(value).removeprefix('torch.')}: the model is quantized ({quantization(loaded)}) and in "
                f"{str(there).removeprefix('torch.')}, and is not moved. Load it there: "
                "AutoModelForCausalLM.from_pretrained(..., dtype=..., device_map=...)."
            )


def _check_range(lm: LanguageModel) -> None:
    """Raise FloatingPointError if a model in float16, whose numbers end at 65504, leaves that range on a short text."""
    if lm.dtype != torch.float16 or any(weight.is_meta for weight in lm.model.parameters()):
        return
    (ids,) = tokenize(lm.tokenizer, ["The capital of France is the city of"])
    with torch.inference_mode(), lm.quiet():
        hidden = lm.body(input_ids=torch.tensor([ids], device=lm.device))[0]
        if not bool(torch.isfinite(lm.log_probabilities(hidden)).all()):
            raise FloatingPointError(
                f"{lm.name} leaves the range of float16 and gives no probabilities; load it with dtype bfloat16 or "
                "float32."
            )


def _load(
    name: str, tokenizer: Any, dtype: torch.dtype | None, place: torch.device | Literal["auto"] | None
) -> tuple[Any, Any]:
    try:
        found_at = model_source(name, dtype)
        source = found_at.location
        local = os.path.exists(source)
        files = check_directory(Path(source), tokenizer is None) if local else []
        # Code of the model's own is never run, nor is the user asked whether to.
        options = {"trust_remote_code": False, "local_files_only": local or not _on_hub(name)}
        with _in_short():
            said, _ = PretrainedConfig.get_config_dict(source, local_files_only=options["local_files_only"])
        quantized = _check_said(said, dtype)
        with _in_short():
            config = AutoConfig.from_pretrained(source, **options)
        row = architecture_of(config)  # before gigabytes are read
        places: dict[str, Any] = {"device_map": "auto"} if place == "auto" else {}
        if quantized is not None and isinstance(place, torch.device):
            places = {"device_map": {"": place}}  # it is not moved afterwards
        with _quantized_here(quantized), _in_short(*files):
            # Sizes that do not fit are refused below, with their names.
            kind = AutoModelForCausalLM if row.text_model is None else AutoModelForImageTextToText
            loaded, found = kind.from_pretrained(
                source,
                dtype=dtype or "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **places,
                **options,
            )
        with _quantized_here(quantized):
            unused = check_complete(loaded, found, row.blocks)
        with _in_short("its tokenizer"):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(source, **options)
    except ValueError as error:
        raise ValueError(f"model={name[:200]!r} cannot be loaded: {error}") from error
    if unused:
        logger.warning(
            "%s: %s of the checkpoint not used, such as %s; is this its %s?",
            name, counted(len(unused), "weight"), unused[0], CONFIG,
        )  # fmt: skip
    if found_at.shown is not None:
        loaded.config._name_or_path = found_at.shown  # a patch would otherwise name a folder of this machine
    return loaded, tokenizer


def _on_hub(name: str) -> bool:
    """Whether to look for a model on the Hugging Face Hub: False means in its cache only.

    Raises:
        ValueError: The name is no id of the Hub, or the Hub cannot be reached and its cache does not hold the model.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(why_absent(name) or "there is no such directory.") from None
    if not constants.HF_HUB_OFFLINE:
        # Asked briefly and once: the libraries would try for half a minute, for each file.
        with suppress(Exception):
            get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
            return True
    if not isinstance(try_to_load_from_cache(name, CONFIG), str):
        elsewhere = f" ({found.rstrip('.')})" if (found := why_absent(name)) else ""
        raise ValueError(
            "there is no such directory, and the Hugging Face Hub, which may have a model of that name, cannot be "
            f"reached. It is not embedded either{elsewhere}.{suggestion(name, EMBEDDED)}"
        )
    return False


def _check_said(config: Mapping[str, Any], dtype: torch.dtype | None) -> str | None:
    """Return the method of quantization that a config.json names, None for a model that is not quantized.

    Raises:
        ValueError: It says that the model cannot be loaded and edited.
    """
    for name, value in config.items():
        if "implementation" in name and "/" in str(value):  # transformers would download such code, and run it
            raise ValueError(
                f"its {CONFIG} asks for code of the Hub, which factpatch does not run: {name}={str(value)[:200]!r}. "
                "Take that line out."
            )
    if config.get("model_type") not in CONFIG_MAPPING:
        if "auto_map" in config:
            raise ValueError(_NEEDS_CODE)
        raise ValueError(
            f"its model_type={config.get('model_type')!r} is unknown to transformers {transformers.__version__}; "
            "another version may know it."
        )
    about = config.get("quantization_config")
    if about is None:
        return None
    if dtype == torch.float64:
        raise ValueError("it is quantized, and its layers do not compute in float64 (exact mode). Leave dtype out.")
    return str(about.get("quant_method", "unnamed")) if isinstance(about, Mapping) else "unnamed"


@contextmanager
def _quantized_here(method: str | None) -> Iterator[None]:
    """Let the error of loading a quantized model say what else can be done; `method` is None for other models."""
    try:
        yield
    except ValueError as error:
        if method is None:
            raise
        raise ValueError(
            f"it is quantized ({method[:100]}), and this quantization cannot be loaded here: {str(error).rstrip('.')}. "
            "Edit the model that it was made from, and serve the patch beside this one: factpatch export PATCH --to "
            "peft --out DIR."
        ) from error


@contextmanager
def _in_short(*read: Path | str) -> Iterator[None]:
    """Turn whatever transformers says about a model that it cannot load into a ValueError of one line.

    It begins with the first of what was being read.
    """
    try:
        yield
    except Exception as error:  # it and the libraries below it raise many kinds
        if isinstance(error, MemoryError) or out_of_memory(error):
            raise
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            raise ValueError(_NEEDS_CODE) from error
        what = f"{read[0]}: " if read else ""
        if isinstance(error, UnpicklingError):
            raise ValueError(
                f"{what}it is damaged, or holds other objects than weights, which could run code and are not read. Get "
                "the model as safetensors."
            ) from error
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"{what}{kind}{said[:300]}{'...' if len(said) > 300 else ''}") from error
