"""What others may call the model that a patch was made on: never by a path of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from factpatch.model.embedded import EMBEDDED
from factpatch.model.gguf import find_gguf

# An id of the Hugging Face Hub, with or without an owner.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def origin_of(model_config: Mapping[str, Any]) -> str:
    """Where the model of a config was loaded from, on the machine where it was; an empty text if that is unknown."""
    return str(model_config.get("_name_or_path") or "")


def hub_id(origin: str) -> str:
    """The name if it may be an id of the Hub, which refuses a card that names a directory; else an empty text."""
    return origin if _HUB_ID.fullmatch(origin) and not _is_local(origin) else ""


def _is_local(origin: str) -> bool:
    """Whether a name is that of a model on this machine."""
    return origin in EMBEDDED or Path(origin).exists() or names_gguf(origin)


def names_gguf(origin: str) -> bool:
    """Whether a name is that of a GGUF file, here or elsewhere, or of an Ollama model on this machine."""
    try:
        return origin.lower().endswith(".gguf") or find_gguf(origin) is not None
    except ValueError:  # Ollama knows it, and does not have its weights
        return True
    except OSError:  # too long for a name, or not to be read
        return False


def known_base(model_config: Mapping[str, Any]) -> str | None:
    """What others may call the model of a config: its ID on the Hub, or None for a model that only this machine has."""
    return hub_id(origin_of(model_config)) or None


def base_name(model_config: Mapping[str, Any]) -> str:
    """What a text for others calls the model of a config: its ID, the last part of its path, or its family."""
    origin = origin_of(model_config)
    return (hub_id(origin) or PurePath(origin).name or str(model_config.get("model_type"))).strip()
