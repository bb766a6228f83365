"""What was found of a model once, kept in the user's cache by the content of the model and of what it was asked."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from factpatch.model.fingerprint import fingerprint
from factpatch.model.language_model import LanguageModel
from factpatch.support.cache import cache_directory
from factpatch.support.files import write_json

logger = logging.getLogger(__name__)
T = TypeVar("T")

_KEPT = 30 * 24 * 3600.0
"""Seconds for which the cache keeps what nobody asks for again."""
_LIBRARIES = ("factpatch", "transformers", "torch", "tokenizers")


class Findings:
    """What is known of a model as it is now; made anew after the model has changed.

    A finding is found again only by all that it depends on: weights, config and tokenizer, how the model is asked, what
    is asked, the versions of the libraries that compute, the device, the dtype and the number of threads, on which
    rounding depends. So what is read is, to the bit, what would be computed. A file that cannot be read or written only
    costs time.

    Args:
        lm: The model.
        folder: Where findings are kept; in the user's cache by default.
    """

    def __init__(self, lm: LanguageModel, folder: Path | None = None) -> None:
        self.lm = lm
        self.folder = cache_directory() / "findings" if folder is None else folder

    def anew(self) -> Findings:
        """What is known of the model as it is now, wherever that was kept."""
        return type(self)(self.lm, self.folder)

    @cached_property
    def _model(self) -> str | None:
        return fingerprint(self.lm)

    def get(self, what: str, about: Any, kind: TypeAdapter[T], find: Callable[[], T]) -> T:
        """Return a finding, from the cache or else by finding it.

        Args:
            what: A word for what is found, such as "readings".
            about: All else that it depends on, JSON-able.
            kind: Of what type it is, for writing and reading it as JSON.
            find: Finds it.
        """
        if self._model is None:
            return find()
        lm = self.lm
        place = [str(lm.device), str(lm.dtype), repr(lm.frame), torch.get_num_threads()]
        versions = [importlib.metadata.version(name) for name in _LIBRARIES]
        identity = json.dumps([what, self._model, place, versions, about], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()
        path = self.folder / f"{digest[:32]}.json"
        with suppress(OSError, ValueError, KeyError, TypeError, ValidationError):
            record = json.loads(path.read_text("utf-8"))
            if record["identity"] == digest:
                return kind.validate_python(record["found"], strict=False)
        found = find()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_old()
            write_json(path, {"what": what, "identity": digest, "found": kind.dump_python(found, mode="json")})
        except OSError as error:
            logger.debug("%s: not kept for the next time: %s", what, error)
        return found

    def _remove_old(self) -> None:
        for path in self.folder.glob("*.json"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _KEPT:
                    path.unlink()
