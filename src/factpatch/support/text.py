"""Text files that people give: what they are, if they are not the text that was meant."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BEGINNING = 65536
# What the first bytes of a file say if it only stands for the one that was meant.
_STAND_INS = (
    (b"version https://git-lfs", "is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its folder"),
    (b"/annex/objects/", "is a pointer of git-annex, not the file itself. Run `git annex get` in its folder"),
    (b"<!doctype html", "is a web page, not the file itself. Use the link for downloads"),
    (b"<html", "is a web page, not the file itself. Use the link for downloads"),
)


def stand_in(beginning: bytes) -> str | None:
    """Return what a file is that only stands for the one that was meant, and what to do; None if it does not."""
    start = beginning.lstrip().lower()
    return next((f"{said}, or get it again." for known, said in _STAND_INS if start.startswith(known)), None)


def check_text_file(path: Path) -> None:
    """Raise ValueError unless a path is a text file in UTF-8, as far as its beginning says."""
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder' if path.is_dir() else 'no such text file'}; give a text file.")
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if not beginning.strip() and len(beginning) < _BEGINNING:
        raise ValueError(f"{path}: the file is empty.")
    if said := stand_in(beginning):
        raise ValueError(f"{path} {said}")
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in beginning:
        raise ValueError(f"{path}: is no text in UTF-8, but in UTF-16 or no text at all; save it as UTF-8.")
    with naming(path):
        codecs.getincrementaldecoder("utf-8")().decode(beginning)  # which may end within a character


def read_text_file(path: Path) -> str:
    """Return the text of a file in UTF-8; ValueError, with its name, if it is something else or blank."""
    check_text_file(path)
    with naming(path):
        text = path.read_text("utf-8-sig")
    if not text.strip():
        raise ValueError(f"{path}: the file is empty.")
    return text


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in the error about text that is not in UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is no text in UTF-8 ({error.reason}: byte 0x{error.object[error.start]:02x}); save it as UTF-8."
        ) from None
