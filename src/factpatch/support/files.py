"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some room or choose a place on another disk",
    errno.EDQUOT: "your disk quota is used up; free some room or choose another place",
    errno.EFBIG: "the file is larger than this process may write or the file system can hold; raise the limit "
    "(ulimit -f) or choose another place",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "you may not write there; change the permissions or choose another place",
    errno.EPERM: "you may not write there; change the permissions or choose another place",
}
_DRAFT = ".factpatch-{}.tmp"
# Drafts are named after the machine and the process that makes them, which says whether it still does.
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_MADE_HERE = re.compile(rf"\.factpatch-{_MACHINE}-(\d+)-\w+\.tmp")
_DAY = 24 * 3600.0
# Libraries written in Rust, safetensors among them, report the number in words only.
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def csv_text(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV; None is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(lines)
    return out.getvalue()


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a file, and put it at `path` once it is whole and on the disk.

    It is made under a temporary name in the same folder, which must exist. If anything fails, it is removed and
    whatever was at `path` before is still there. A symbolic link at `path` stays; what it points to is replaced.

    Args:
        path: Where the file goes.
        write: Given the temporary path, at which there is no file yet; it has to make one and close it.

    Raises:
        OSError: The file cannot be written; the message says why and what to do.
    """
    final = Path(os.path.realpath(path))
    # Replacing a device or a pipe such as /dev/null by a file would break the system.
    if final.exists() and not final.is_file():
        raise FileExistsError(errno.EEXIST, "not a regular file, so it is not replaced; choose another name", str(path))
    with _draft(path, final) as draft:
        write(draft)
        draft.chmod(_usual_mode(draft))
        _sync(draft)
        os.replace(draft, final)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory next to `path` that becomes `path` when the block ends without an error.

    If the block fails, or the directory cannot be put in place, it is removed with all it holds. `path` must not exist,
    or be an empty directory; its folder must exist.

    Raises:
        FileExistsError: `path` is a file or a directory that is not empty.
        OSError: The directory cannot be written; the message says why and what to do.
    """
    final = Path(os.path.realpath(path))
    _check_vacant(path, final)
    with _draft(path, final) as draft:
        draft.mkdir()
        yield draft
        mode = draft.stat().st_mode & 0o666
        for file in sorted(draft.rglob("*")):
            if file.is_file():
                file.chmod(mode)
                _sync(file)
            elif file.is_dir():
                _sync_folder(file)
        _sync_folder(draft)
        # Again, since writing a model takes long enough for another process to come first.
        _check_vacant(path, final)
        if final.exists():
            final.rmdir()
        draft.rename(final)


def append(path: Path, content: bytes) -> None:
    """Add bytes to the end of an existing file, all of them or none; when it returns, they are on the disk.

    An OSError says why they cannot be written and what to do.
    """
    # Unbuffered: what a failed write leaves in a buffer would reach the file after it was cut.
    with _explained(path, path), path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            os.fsync(file.fileno())
        except BaseException:
            os.ftruncate(file.fileno(), end)
            raise


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all. JSON has no infinity and no NaN: they are written as text."""
    content = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write(path, lambda draft: draft.write_bytes(content.encode("utf-8", "surrogatepass")))


def plain(value: Any) -> Any:
    """Return a value as JSON gives it back: lists for tuples, text for keys, infinity and NaN."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in blocks: a model's file may be larger than the memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty directory in a folder, which is removed with all it holds when the block ends."""
    made = _new_draft(folder / "scratch")  # so that others see whose it is, if it stays behind
    made.mkdir()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_drafts(folder: Path, older_than: float = 0.0) -> None:
    """Remove what a process that was killed had not put in place, if it was last written to so many seconds ago.

    Without `older_than`, nobody else may be writing files in the folder.
    """
    for draft in folder.glob(_DRAFT.format("*")):
        with suppress(FileNotFoundError):
            if not older_than or time.time() - draft.stat().st_mtime > older_than:
                _remove(draft)


def remove_abandoned(folder: Path) -> None:
    """Remove what processes of this machine that are gone, or any process a day ago, had not put in place.

    Others may be writing files in the folder.
    """
    for draft in folder.glob(_DRAFT.format("*")):
        made_here = _MADE_HERE.fullmatch(draft.name)
        with suppress(OSError):
            gone = made_here is not None and not psutil.pid_exists(int(made_here[1]))
            if gone or time.time() - draft.stat().st_mtime > _DAY:
                _remove(draft)


def is_draft(path: Path) -> bool:
    """Whether this is what `remove_drafts` removes."""
    return path.match(_DRAFT.format("*"))


def error_number(error: Exception) -> int | None:
    """Return the number of an error of the system, also of one that a library reports in words."""
    if isinstance(error, OSError):
        return error.errno
    reported = _RUST_ERROR.search(str(error))
    return int(reported[1]) if reported else None


@contextmanager
def _draft(path: str | Path, final: Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of `final`; if the block fails, what it made there is removed."""
    # Not derived from the name, which may already be as long as the file system allows.
    remove_abandoned(final.parent)
    draft = _new_draft(final)
    try:
        with _explained(path, draft):
            yield draft
    except BaseException:
        with suppress(FileNotFoundError):
            _remove(draft)
        raise
    _sync_folder(final.parent)


def _usual_mode(draft: Path) -> int:
    """The mode of a new file beside a draft; a draft that safetensors made is readable by its owner only."""
    # Asked of a file: the umask can only be read by setting it, which other threads would notice.
    probe = _new_draft(draft)
    with probe.open("xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    probe.unlink()
    return mode


def _new_draft(final: Path) -> Path:
    return final.with_name(_DRAFT.format(f"{_MACHINE}-{os.getpid()}-{secrets.token_hex(8)}"))


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink()


def _check_vacant(path: str | Path, final: Path) -> None:
    if final.is_dir():
        if any(final.iterdir()):
            raise FileExistsError(
                errno.EEXIST, "the directory is not empty; choose another name, or empty it first", str(path)
            )
    elif final.exists():
        raise FileExistsError(errno.EEXIST, "there is a file of this name; a directory needs another name", str(path))


@contextmanager
def _explained(path: str | Path, draft: Path) -> Iterator[None]:
    """Turn an error in writing `draft` into one that names `path` and says what to do."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number is None or not _concerns(error, number, draft):
            raise
        if number == errno.ENOENT and not draft.parent.is_dir():
            reason = f"the folder {draft.parent} does not exist; make it first"
        else:
            reason = _ADVICE.get(number, os.strerror(number))
        raise OSError(number, f"could not be written: {reason}. Nothing was left behind", str(path)) from error


def _concerns(error: Exception, number: int, draft: Path) -> bool:
    """Whether the error is about `draft`, and not about some other file that was read meanwhile."""
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    if not isinstance(error, OSError):
        return False
    return error.filename is None or str(error.filename).startswith(str(draft))


def _sync(file: Path) -> None:
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    # Makes the new name survive a power cut. Not every system can open or sync a folder, and by now all is written.
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
