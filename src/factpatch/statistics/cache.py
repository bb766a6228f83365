"""Matrices in the cache: found again only by what they were computed from, and only if they are whole."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from factpatch.model.weights import content_hash
from factpatch.support.files import atomic_write, remove_drafts

logger = logging.getLogger(__name__)

_UNFINISHED = ".unfinished"
_DAY = 24 * 3600.0
_KEPT = 30 * _DAY
"""How long the cache keeps a pass that nobody resumes: it may take gigabytes."""


@dataclass(frozen=True)
class Entry:
    """A file of the cache, which need not exist.

    Reading and writing warn instead of failing: what is absent, or not to be trusted, is computed again.
    """

    folder: Path
    what: str
    """What it holds, for messages."""
    identity: Mapping[str, str]
    """All that the matrices depend on. An entry with another identity is another file, and never taken for this one."""
    unfinished: bool = False
    """Whether it serves only to resume a pass, and is removed after a month."""

    @property
    def path(self) -> Path:
        name = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / f"{name}{_UNFINISHED if self.unfinished else ''}.safetensors"

    def read(self, numbers: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, int]] | None:
        """Return the matrices, mapped from the file, and the named numbers; None if they cannot be trusted."""
        if not self.path.is_file():
            return None
        try:
            return self._checked(numbers)
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s in the cache is not used (%s: %s); it is computed again", self.what, self.path, error)
            return None

    def _checked(self, numbers: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, int]]:
        with safe_open(self.path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if any(metadata.get(name) != value for name, value in self.identity.items()):
            raise ValueError("it belongs to something else")
        whole = metadata.get("sha256") == _digest(tensors)
        if not whole or not all(metadata.get(name, "").isdigit() for name in numbers):
            raise ValueError("it is damaged")
        return tensors, {name: int(metadata[name]) for name in numbers}

    def write(self, tensors: Mapping[str, Tensor], **numbers: int) -> bool:
        """Put matrices and numbers into the file, all or nothing; False if it cannot be written."""
        metadata = {
            **self.identity,
            **{name: str(number) for name, number in numbers.items()},
            "sha256": _digest(tensors),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.folder)
            atomic_write(self.path, lambda draft: save_file(dict(tensors), draft, metadata))
        except OSError as error:
            logger.warning("%s is not kept for the next time: %s", self.what, error)
            return False
        return True

    def remove(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return " ".join(content_hash(tensors[name]) for name in sorted(tensors))


def _remove_abandoned(folder: Path) -> None:
    remove_drafts(folder, older_than=_DAY)  # younger ones may still be written by another process
    for path in folder.glob(f"*{_UNFINISHED}.safetensors"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _KEPT:
                path.unlink()
