"""From what the user typed to what the library takes. Errors name the argument, and are raised as early as possible."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import typer

from factpatch.cli.render import messages
from factpatch.recipe import Recipe, RecipeError
from factpatch.support.progress import timed
from factpatch.support.text import read_text_file

if TYPE_CHECKING:
    from factpatch.editor import Editor
    from factpatch.model.language_model import LanguageModel
    from factpatch.patch.patch import Patch
    from factpatch.pool import Pool
    from factpatch.session import Session

T = TypeVar("T")
Kind = Literal["file", "new directory", "directory"]


class BadArgumentError(ValueError):
    """An argument of the command line cannot be used; the message names it."""


def option_name(parameter: str) -> str:
    """A parameter of a command, or a field of a recipe, as the user types it."""
    if parameter == "model":
        return "MODEL"
    return Recipe.flag(parameter).name if parameter in Recipe.model_fields else f"--{parameter.replace('_', '-')}"


@contextmanager
def argument(name: str | None = None) -> Iterator[None]:
    """Blame an argument for the errors of the block; without a name, the option of the recipe's field.

    Raises:
        BadArgumentError: The block raised a ValueError or an OSError, or without a name a RecipeError.
    """
    try:
        yield
    except BadArgumentError:
        raise
    except (OSError, ValueError) as error:
        prefixes = [f"{option.removeprefix('--')}: " for option in (name or "").split(", ")]
        if name is None:
            if not isinstance(error, RecipeError):
                raise
            name, prefixes = option_name(error.field), [f"{error.field}: ", f"{error.field}="]
        # The library names its own argument, which usually has the name of the option.
        said = explained(error)
        said = next((said.removeprefix(prefix) for prefix in prefixes if said.startswith(prefix)), said)
        raise BadArgumentError(f"{name}: {said}") from error


def explained(error: Exception) -> str:
    """An error's message, with the file that an OSError is about."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextmanager
def extras() -> Iterator[None]:
    """Turn the ImportError of a missing extra into a RuntimeError with the library's message."""
    try:
        yield
    except ImportError as error:
        raise RuntimeError(str(error)) from error


def read_text(option: str, path: Path | None) -> str | None:
    """The text of a file, None if no file was given; raises BadArgumentError if it is empty or cannot be read."""
    with argument(option):
        return None if path is None else read_text_file(path)


def parse_names(text: str | None) -> list[str]:
    """Names separated by commas."""
    return [] if text is None else [part.strip() for part in text.split(",") if part.strip()]


def check_output(option: str, path: Path | None, kind: Kind = "file") -> None:
    """Raise BadArgumentError unless an output can be written there, as far as one can know without writing."""
    if path is None:
        return
    if path.exists() and not (path.is_file() if kind == "file" else path.is_dir()):
        raise BadArgumentError(f"{option} {path}: is {'not ' if kind == 'file' else ''}a file; choose another name.")
    if kind == "new directory" and path.suffix in (".gguf", ".safetensors"):
        raise BadArgumentError(
            f"{option} {path}: a directory is written, which this name would hide; choose another. A GGUF file is "
            "written by factpatch export --to gguf."
        )
    folder = path.absolute().parent
    if not folder.is_dir():
        raise BadArgumentError(f"{option} {path}: the folder {folder} does not exist; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadArgumentError(f"{option} {path}: the folder {folder} cannot be written to; choose another place.")
    if kind == "new directory" and path.is_dir() and any(path.iterdir()):
        raise BadArgumentError(f"{option} {path}: the directory is not empty; choose another name, or empty it first.")


def check_patch_output(option: str, path: Path | None) -> None:
    """As `check_output` for a file; a file that is there is replaced only if it is a patch, or empty."""
    from factpatch.patch.file import describe

    check_output(option, path)
    if path is None or not path.is_file() or not path.stat().st_size:
        return
    try:
        describe(path)
    except ValueError as error:
        raise BadArgumentError(
            f"{option} {path}: there is a file that is not a factpatch patch, which would be replaced; choose another "
            "name, or remove the file."
        ) from error


def new_patch(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """A callback that checks where an option wants a patch written."""
    check_patch_output(param.opts[0], value)
    return value


def output(kind: Kind) -> Callable[[typer.CallbackParam, Path | None], Path | None]:
    """A callback that checks the output that an option names, with `check_output`."""

    def check(param: typer.CallbackParam, value: Path | None) -> Path | None:
        check_output(param.opts[0], value, kind)
        return value

    return check


new_file, new_directory, directory = output("file"), output("new directory"), output("directory")


def default_directory(what: str, model: str) -> Path:
    """Where a command writes about a model by default: WHAT-MODEL in this folder."""
    return Path(f"{what}-{Path(os.path.abspath(model)).name or 'model'}")


def check_distinct(**paths: Path | None) -> None:
    """Raise BadArgumentError if two options name the same place."""
    seen: dict[str, str] = {}
    for name, path in paths.items():
        if path is not None:
            other = seen.setdefault(os.path.realpath(path), option_name(name))
            if other != option_name(name):
                raise BadArgumentError(
                    f"{option_name(name)} {path}: is the same place as {other}; choose another name."
                )


def check_no_input(out: Path, patches: Iterable[Path]) -> None:
    """Raise BadArgumentError if a patch would be written over one that it is made of."""
    if os.path.realpath(out) in map(os.path.realpath, patches):
        raise BadArgumentError(f"--out {out}: is one of the patches; choose another name.")


def check_outside(folder: Path | None, whose: str = "model's", **paths: Path | None) -> None:
    """Raise BadArgumentError if an output is inside the directory of a model, or of something else."""
    for name, path in paths.items():
        if folder is None or path is None or Path(os.path.realpath(folder)) not in Path(os.path.realpath(path)).parents:
            continue
        raise BadArgumentError(
            f"{option_name(name)} {path}: lies in the {whose} directory {folder}; choose another place."
        )


def load_patch(name: str, path: Path) -> Patch:
    """Load the patch that an argument names, from its file or from a session's directory."""
    from factpatch.session import load_patch as load

    with argument(name):
        return load(path)


def open_session(directory: Path) -> Session:
    """A session that the command line can continue; ValueError if it was begun in Python, or is none."""
    from factpatch.session import Session

    session = Session(directory)
    if session.source is None:
        raise ValueError(f"{directory}: was begun in Python; continue it there with Session.attach.")
    return session


def load_model(
    model: str, device: str | None, dtype: str | None, chat: bool = False, patch: Patch | None = None
) -> LanguageModel:
    """Load a model, with a sign of life on a terminal and without the messages of other libraries.

    Args:
        patch: Gives the dtype, if none was asked for.

    Raises:
        BadArgumentError: There is no such device or dtype, or a chat was asked for and the model has no chat template.
    """
    from factpatch.model.language_model import LanguageModel
    from factpatch.model.loading import check_device, dtype_named, load_language_model

    with argument("--dtype"):
        dtype_named(dtype)
    if device not in (None, "auto"):
        with argument("--device"):
            check_device(str(device))
    silence_transformers()
    loaded_as: Any = dtype or (None if patch is None else patch.load_dtype)
    with messages.status(f"loading {model}"):
        lm = load_language_model(model, device=device, dtype=loaded_as)
    with argument("--chat"):
        return LanguageModel(lm.model, lm.tokenizer, chat) if chat else lm


def before_and_after(lm: LanguageModel, patch: Patch | None, ask: Callable[[str, T | None], T]) -> tuple[T | None, T]:
    """Ask a model, and if there is a patch, again with the patch.

    Args:
        ask: Takes what to call the progress, and the answers without the patch if there are any.
    """
    if patch is None:
        return None, ask("asking", None)
    before = ask("asking without the patch", None)
    with patch.applied(lm):
        return before, ask("asking with the patch", before)


def silence_transformers() -> None:
    """Turn off the progress bars and warnings of transformers and of the library that it downloads with."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def save_model(lm: LanguageModel, directory: Path, card: str | None = None) -> None:
    """Write a model, its tokenizer and its card, with a sign of life on a terminal."""
    with messages.status(f"writing {directory}"):
        lm.save_pretrained(directory, card)


@contextmanager
def pooled(workers: str | None) -> Iterator[Pool | None]:
    """The pool that `--workers` names, while the block runs, with its number of threads; None for none.

    Raises:
        BadArgumentError: It names none, or a cluster that does not answer.
    """
    if workers is None:
        yield None
        return
    from factpatch.model.replicas import threads
    from factpatch.pool import pool_from

    with extras(), argument("--workers"):
        try:
            pool = pool_from(workers)
        except (ConnectionError, RuntimeError) as error:
            raise BadArgumentError(f"--workers {workers}: {error}") from error
    with pool, threads(pool.threads):
        yield pool


def make_editor(model: str, recipe: Recipe, seconds: dict[str, float], pool: Pool | None = None) -> Editor:
    """Load a model and make the editor that a recipe describes.

    Raises:
        BadArgumentError: A field of the recipe does not fit the model.
    """
    from factpatch.editor import Editor

    with timed(seconds, "load"):
        lm = load_model(model, recipe.device, recipe.dtype, recipe.chat)
    with argument():
        return Editor(lm, recipe=recipe, pool=pool)
