"""Presets as files: one that a search or a user has written, beside those that the package ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import yaml

from factpatch.files import atomic_write
from factpatch.model.language_model import LanguageModel
from factpatch.presets import Preset, read_preset


def load_preset(path: str | Path) -> Preset:
    """Read a preset from a YAML file.

    Raises:
        ValueError: it is no preset: an unknown field, method or setting, or a layer that does not exist.
        OSError: it cannot be read.
    """
    try:
        return read_preset(Path(path).read_text("utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None


def save_preset(path: str | Path, preset: Preset, remarks: Sequence[str] = ()) -> None:
    """Write a preset as YAML, with remarks as comments above it; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    text = "".join(f"# {line}".rstrip() + "\n" for line in remarks) + to_yaml(preset)
    read_preset(text)  # what could not be read again should not be written
    atomic_write(path, lambda draft: draft.write_text(text, "utf-8"))


def to_yaml(preset: Preset) -> str:
    """The YAML of a preset, without what it leaves at the default."""
    record = asdict(preset)
    for field in fields(Preset):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if record[field.name] == default:
            del record[field.name]
    record["match"] = {name: value for name, value in record["match"].items() if value is not None}
    return yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120)


def check_fits(preset: Preset, lm: LanguageModel) -> Preset:
    """Return the preset.

    Raises:
        ValueError: it is for another model; the message shows the fields of the config that differ.
    """
    if not preset.match.fits(lm.config):
        differing = {
            name: (value, getattr(lm.config, name, None))
            for name, value in asdict(preset.match).items()
            if value is not None and value != getattr(lm.config, name, None)
        }
        parts = [f"{name} is {there!r} there and {here!r} in the model" for name, (there, here) in differing.items()]
        shown = "; ".join(parts)
        raise ValueError(f"preset {preset.model!r} is for another model than {lm.name}: {shown}.")
    return preset
