"""From what a user names to a language model: an embedded model, a directory, an id of the Hub, or a loaded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from factpatch.model.embedded import EMBEDDED, embedded_directory
from factpatch.model.language_model import LanguageModel
from factpatch.support.words import suggestion

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}


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
        raise ValueError(f"device={str(device)!r} cannot be used: {reason}. Try cpu, cuda or cuda:0.") from None
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
        model: An embedded model's name, a directory, an id of the Hugging Face Hub, or a loaded transformers model.
        tokenizer: The tokenizer of a loaded model; else it is loaded with the model.
        device: Where to put the model, as PyTorch writes it; 'auto' spreads it over the devices there are.
        dtype: float32, bfloat16, float16 or float64 (exact mode); the checkpoint's own by default.
        chat: Ask every prompt as a user's turn of a chat; a `LanguageModel` has that setting already.

    Raises:
        ValueError: Nothing of that name can be loaded, or it cannot be edited; the message says why.
    """
    wanted = dtype_named(dtype)
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
        loaded, tokenizer = _load(str(model), tokenizer, wanted, spread=device == "auto")
    if wanted is not None and loaded.dtype != wanted:
        loaded = loaded.to(wanted)
    if place is not None:
        loaded = loaded.to(place)
    return LanguageModel(loaded, tokenizer, chat)


def _load(name: str, tokenizer: Any, dtype: torch.dtype | None, spread: bool) -> tuple[Any, Any]:
    source = str(embedded_directory(name)) if name in EMBEDDED else name
    where = {"device_map": "auto"} if spread else {}
    try:
        # Before loading, which would first ask for the package of that quantization.
        if getattr(AutoConfig.from_pretrained(source), "quantization_config", None) is not None:
            raise ValueError(
                "it is quantized, and such weights cannot take a small shift. Edit the model that it was made from and "
                "quantize the result."
            )
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto", **where)
        if name in EMBEDDED:
            loaded.config._name_or_path = name  # a patch would otherwise name a folder of this machine
        return loaded, tokenizer or AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        kind = "directory of a model" if Path(name).is_dir() else "directory, and no model that the Hub gave"
        raise ValueError(
            f"model={name!r} cannot be loaded: it is no {kind}. It is not embedded either.{suggestion(name, EMBEDDED)} "
            f"The error was: {error}"
        ) from error
