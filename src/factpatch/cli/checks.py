"""From what was typed to what the library takes. Every error names the argument and comes as early as it can."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factpatch.cli.render import messages
from factpatch.recipe import Recipe, RecipeError

if TYPE_CHECKING:
    from factpatch.editor import Editor
    from factpatch.model.language_model import LanguageModel


class BadArgumentError(ValueError):
    """What was given on the command line cannot be used; the message names it."""


@contextmanager
def argument(name: str) -> Iterator[None]:
    """Blame an argument for the errors of the block.

    Raises:
        BadArgumentError: the block raised a ValueError or an OSError.
    """
    try:
        yield
    except BadArgumentError:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise BadArgumentError(f"{name}: {reason}") from error
    except ValueError as error:
        # The library has named its own argument, which is mostly called like the option.
        alike = [f"{option.removeprefix('--')}: " for option in name.split(", ")]
        said = next((str(error).removeprefix(one) for one in alike if str(error).startswith(one)), str(error))
        raise BadArgumentError(f"{name}: {said}") from error


@contextmanager
def recipe_errors() -> Iterator[None]:
    """Let errors about a field of a recipe name its option.

    Raises:
        BadArgumentError: The block raised a RecipeError.
    """
    try:
        yield
    except RecipeError as error:
        option = Recipe.flag(error.field).name if error.field in Recipe.model_fields else error.field
        said = str(error).removeprefix(f"{error.field}: ")
        raise BadArgumentError(f"{option}: {said}") from error


def read_text(option: str, path: Path | None) -> str | None:
    """The text of a file that has one, or None if there is no file.

    Raises:
        BadArgumentError: it cannot be read, or is empty.
    """
    with argument(option):
        text = None if path is None else path.read_text("utf-8")
        if text is not None and not text.strip():
            raise ValueError(f"{path}: the file is empty.")
        return text


def check_output_file(option: str, path: Path | None) -> None:
    """Raise BadArgumentError unless a file can be written there, as far as can be told without writing."""
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise BadArgumentError(f"{option} {path}: is not a file; choose another name.")
    _check_folder(option, path)


def check_output_directory(option: str, path: Path | None) -> None:
    """Raise BadArgumentError unless a directory can be made there, as far as can be told without writing."""
    check_directory_to_go_on(option, path)
    if path is not None and path.is_dir() and any(path.iterdir()):
        raise BadArgumentError(f"{option} {path}: the directory is not empty; choose another name, or empty it first.")


def check_directory_to_go_on(option: str, path: Path | None) -> None:
    """Raise BadArgumentError unless there is a directory or one can be made, as far as can be told without writing."""
    if path is None:
        return
    if path.exists() and not path.is_dir():
        raise BadArgumentError(f"{option} {path}: is a file; choose another name.")
    _check_folder(option, path)


def default_directory(what: str, model: str) -> Path:
    """Where a command writes about a model unless it is told: WHAT-MODEL in this folder."""
    return Path(f"{what}-{Path(os.path.abspath(model)).name or 'model'}")


def check_distinct(**paths: Path | None) -> None:
    """Raise BadArgumentError if two options name the same place."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        option = f"--{name.replace('_', '-')}"
        if path is None:
            continue
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise BadArgumentError(f"{option} {path}: is the same place as {other}; choose another name.")


def check_outside(folder: Path | None, whose: str = "model's", **paths: Path | None) -> None:
    """Raise BadArgumentError if an output would land in the directory of a model, or of something else."""
    if folder is None:
        return
    inside = Path(os.path.realpath(folder))
    for name, path in paths.items():
        if path is not None and inside in Path(os.path.realpath(path)).parents:
            option = f"--{name.replace('_', '-')}"
            raise BadArgumentError(f"{option} {path}: lies in the {whose} directory {folder}; choose another place.")


def _check_folder(option: str, path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise BadArgumentError(f"{option} {path}: the folder {folder} does not exist; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadArgumentError(f"{option} {path}: the folder {folder} cannot be written to; choose another place.")


def parse_names(text: str | None) -> list[str]:
    """Names as the command line takes them, with commas between them."""
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]


@contextmanager
def extras() -> Iterator[None]:
    """Let the library's own words say which extra is not installed.

    Raises:
        RuntimeError: the block raised an ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise RuntimeError(str(error)) from error


def check_place(device: str | None, dtype: str | None) -> None:
    """Raise BadArgumentError unless there is such a device and such a dtype."""
    from factpatch.model.loading import check_device, dtype_named

    with argument("--dtype"):
        dtype_named(dtype)
    if device not in (None, "auto"):
        with argument("--device"):
            check_device(device)


def load_model(model: str, device: str | None, dtype: Any, chat: bool = False) -> LanguageModel:
    """Load a model, with a sign of life on a terminal and without the noise of other libraries.

    Raises:
        BadArgumentError: the model's tokenizer has no usable chat template, but a chat is wanted.
    """
    from factpatch.model.language_model import LanguageModel
    from factpatch.model.loading import load_language_model

    silence_transformers()
    with messages.status(f"loading {model}"):
        lm = load_language_model(model, device=device, dtype=dtype)
    with argument("--chat"):
        return LanguageModel(lm.model, lm.tokenizer, chat) if chat else lm


def silence_transformers() -> None:
    """No progress bars and no warnings from transformers and from what it downloads with."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def save_model(lm: LanguageModel, directory: Path, card: str | None = None) -> None:
    """Write a model, its tokenizer and its card, with a sign of life on a terminal."""
    with messages.status(f"writing {directory}"):
        lm.save_pretrained(directory, card)


def make_editor(model: str, recipe: Recipe, seconds: dict[str, float]) -> Editor:
    """Load a model and make the editor that a recipe describes.

    Raises:
        BadArgumentError: A field of the recipe does not fit the model.
    """
    from factpatch.editor import Editor
    from factpatch.support.progress import timed

    with timed(seconds, "load"):
        lm = load_model(model, recipe.device, recipe.dtype, recipe.chat)
    with recipe_errors():
        return Editor(lm, recipe=recipe)
