"""Models made once from another file and kept in the user's cache, each with a record of what it was made of."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from factpatch.support.cache import cache_directory
from factpatch.support.files import error_number, file_digest, remove_abandoned, scratch, write_json

MANIFEST = "factpatch.json"
# To raise by one when the same source is to be converted differently: directories of an older format are remade.
FORMAT = 1
_LIBRARIES = ("transformers", "torch", "gguf", "safetensors")
Make = Callable[[Path, Path], None]
"""Makes a model in its second argument, an empty directory; what it needs meanwhile goes into its first, another."""


def models_directory(root: Path | None = None) -> Path:
    """Return where models are kept, below the root of a cache: by default that of the user."""
    return (cache_directory() if root is None else Path(root).absolute()) / "models"


def kept_model(final: Path, source: Mapping[str, Any], make: Make, needs: str) -> Path:
    """Return the directory of a model in the format of transformers, making it on first use.

    Beside the model it holds `factpatch.json`, which records where it came from. Later uses read a few small files. A
    damaged directory is made again. Interrupting the first use leaves no unfinished model, and several processes may
    call this at once.

    Args:
        final: The directory.
        source: What the model is made of; a directory that was made of something else is made again.
        make: Makes it.
        needs: How much room that takes, for people whose disk is full.

    Raises:
        OSError: The cache cannot be written, for instance because the disk is full.
    """
    if _is_complete(final, source):
        return final
    with _explain_full_disk(final.parent, needs):
        final.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(final.parent)
        # Next to the final directory, so that moving the files there is a rename within one file system.
        with scratch(final.parent) as folder:
            made = folder / "model"
            made.mkdir()
            make(folder, made)
            _write_manifest(made, source)
            _install(made, final, source)
    return final


def _write_manifest(directory: Path, source: Mapping[str, Any]) -> None:
    """Record in `directory` what it was made from and with, and what it consists of."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    for path in files:
        # safetensors makes its files readable by their owner only, whatever the umask says.
        path.chmod(directory.stat().st_mode & 0o666)
    record = {
        "format": FORMAT,
        **source,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in files},
    }
    (directory / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_complete(directory: Path, source: Mapping[str, Any]) -> bool:
    """Whether `directory` holds a model made of `source`, in the present format, with every file at its full length.

    Hashing gigabytes at every start would be slow, so a change that keeps the length goes unnoticed.
    """
    try:
        record = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if record["format"] != FORMAT or any(record[key] != value for key, value in source.items()):
            return False
        files: dict[str, Any] = record["files"]
        if any((directory / file).stat().st_size != stated["bytes"] for file, stated in files.items()):
            return False
        weights = [name for name in files if name.endswith(".safetensors")]
        for name in weights:
            with safe_open(directory / name, framework="numpy") as held:
                if not held.keys():
                    return False
        return bool(weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        # Whatever cannot be read or is not in this form is not ours, or no longer whole.
        return False


def _install(made: Path, final: Path, source: Mapping[str, Any]) -> None:
    """Move the files of the finished directory `made` to `final`, unless another process has done so first."""
    if _is_complete(final, source):
        return
    # File by file: another process may be at it too, or be reading a damaged directory, and each file is whole at every
    # moment. Without its manifest the directory counts as incomplete until the last file is in place.
    final.mkdir(exist_ok=True)
    (final / MANIFEST).unlink(missing_ok=True)
    for path in sorted(made.iterdir(), key=lambda path: path.name == MANIFEST):
        path.replace(final / path.name)


@contextlib.contextmanager
def _explain_full_disk(directory: Path, needs: str) -> Iterator[None]:
    """Turn the errors of a full disk into one that says which disk and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if error_number(error) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            errno.ENOSPC,
            f"no room to convert {needs}; free some, or set the environment variable FACTPATCH_CACHE to a directory "
            "on a larger disk",
            str(directory),
        ) from error


def file_stamp(path: Path) -> list[int]:
    """Return numbers that change when a file is written to or replaced, even by one of the same size and time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def kept_digest(path: Path, root: Path | None = None) -> str:
    """Return the SHA-256 of a file, computed once as long as the file is not written to or replaced.

    Hashing a model of several gigabytes takes as long as loading it.
    """
    key, stamp = str(path.resolve()), file_stamp(path)
    index = models_directory(root) / "digests.json"
    try:
        known = dict(json.loads(index.read_text(encoding="utf-8")))
        if (found := known.get(key, {})).get("stamp") == stamp:
            return str(found["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = {}
    digest = file_digest(path)
    with contextlib.suppress(OSError):  # it is only slower then
        index.parent.mkdir(parents=True, exist_ok=True)
        write_json(index, {**known, key: {"stamp": stamp, "sha256": digest}})
    return digest
