"""Settings for models, as data: one YAML file per model, each number with its source."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml
from pydantic import TypeAdapter

from factpatch.model.language_model import LanguageModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preset:
    """What has been found, or published, for one model."""

    model: str
    """The model's name, for people."""
    match: dict[str, Any]
    """Fields of the model's config that identify it."""
    critical_layers: list[int]
    """The layers a method may write, ascending."""
    source: str
    """Where the numbers come from."""
    corpus_tokens: int | None = None
    """How many tokens to read for the second moment; ten per key dimension if absent."""
    shipped_corpus: bool = False
    """Whether the text that the package ships is good enough for this model's second moment."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings by method, as dotted names."""


def load_presets() -> list[Preset]:
    """All presets that the package ships, by file name."""
    files = sorted(resources.files(__package__).iterdir(), key=lambda entry: entry.name)
    reader = TypeAdapter(Preset)
    return [
        reader.validate_python(yaml.safe_load(entry.read_text("utf-8")), extra="forbid")
        for entry in files
        if entry.name.endswith(".yaml")
    ]


def preset_for(lm: LanguageModel) -> Preset | None:
    """The preset whose `match` agrees with the model's config, if there is one."""
    for preset in load_presets():
        if all(getattr(lm.config, name, None) == value for name, value in preset.match.items()):
            return preset
    return None
