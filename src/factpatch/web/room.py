"""The room: a desk for everybody who comes, models that all of them share, and what is tidied up when they leave."""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.recipe import Recipe
from factpatch.support.files import remove_abandoned
from factpatch.support.progress import bar
from factpatch.web.desk import EXPORTS, Desk
from factpatch.web.limits import Limits
from factpatch.web.shared import Shared
from factpatch.web.work import Job, Worker

logger = logging.getLogger(__name__)
_EVERY = 1.0
"""Seconds between two looks at who has left."""


class RoomFullError(ValueError):
    """As many people as are allowed are here already."""


class Room:
    """Desks by their owners' keys. A key is a secret of a browser; of it, only a digest is kept, as a folder's name.

    Args:
        folder: The server's own directory.
        uploads: Where files lie until they are read, inside of it.
        models: The names of the models that there are.
        recipe: What edits them, unless somebody chooses otherwise.
        limits: What one person may ask for.
        session: A session's directory for the first who comes.
        capability_data: A folder with the items of capability tasks.
    """

    def __init__(
        self,
        folder: Path,
        uploads: Path,
        models: Sequence[str],
        recipe: Recipe | None = None,
        limits: Limits | None = None,
        session: Path | None = None,
        capability_data: Path | None = None,
    ) -> None:
        self.folder, self.uploads, self.limits = folder.absolute(), uploads.absolute(), limits or Limits()
        self._desks: dict[str, Desk] = {}
        self._there: dict[str, int] = {}  # how many pages of a desk's owner are open
        self._left: dict[str, float] = {}  # when the last of them was closed
        self._lock = threading.RLock()
        self._loaded: dict[str, LanguageModel] = {}
        self._session = session
        self.shared = Shared(
            self._original, self._loaded.get, tuple(models), recipe or Recipe(), self.limits, Worker(), capability_data
        )
        self._remove_old()
        threading.Thread(target=self._sweep, name="factpatch-page-sweep", daemon=True).start()

    def warm_up(self) -> Job[None]:
        """Load the first model, so that nobody waits for it."""
        name = self.shared.models[0]

        def load() -> None:
            self._original(name)

        return self.shared.worker.submit(Job(f"loading {name}", lambda job: load(), float("inf")))

    def desk(self, key: str) -> Desk:
        """The desk of a key's owner, made when it is first asked for.

        Raises:
            RoomFullError: There are as many desks as are allowed, all in use.
        """
        name = digest(key)
        with self._lock:
            if name not in self._desks:
                if len(self._desks) >= self.limits.people:
                    self.tidy(grace=0.0)
                if len(self._desks) >= self.limits.people:
                    raise RoomFullError(
                        f"{len(self._desks)} people are using this page, as many as it allows; try again later."
                    )
                folder = self.folder / "desks" / name
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.touch()  # says when its owner was here last
                desk = self._desks[name] = Desk(folder, self.shared, self._free_session())
                if name not in self._there:  # whose browser may never say that it is there
                    self._left.setdefault(name, time.monotonic())
                if desk.session_path.is_dir():
                    desk.start("opening the session", desk.open)
            return self._desks[name]

    def _free_session(self) -> Path | None:
        """The session that was given to the server, unless somebody works on it."""
        taken = any(desk.given is not None for desk in self._desks.values())
        return None if taken else self._session

    def arrive(self, key: str) -> None:
        """Note that a page of a key's owner is open."""
        with self._lock:
            name = digest(key)
            self._there[name] = self._there.get(name, 0) + 1
            self._left.pop(name, None)

    def leave(self, key: str) -> None:
        """Note that one of them was closed."""
        with self._lock:
            name = digest(key)
            self._there[name] = self._there.get(name, 1) - 1
            if self._there[name] <= 0:
                del self._there[name]
                self._left[name] = time.monotonic()

    def tidy(self, grace: float | None = None) -> None:
        """Free the memory of those who have left, after what is at work for them has ended."""
        grace, now = self.limits.grace if grace is None else grace, time.monotonic()
        with self._lock:
            for name, left in list(self._left.items()):
                if now - left < grace:
                    continue
                desk = self._desks.get(name)
                if desk is not None and desk.busy:
                    continue
                if desk is not None:
                    desk.clear()
                    del self._desks[name]
                    if not any(desk.folder.iterdir()):
                        desk.folder.rmdir()
                del self._left[name]

    def exported(self, key: str, name: str) -> Path | None:
        """A file that a key's owner has exported, by its name alone; None if there is none."""
        folder = self.folder / "desks" / digest(key) / EXPORTS
        file = folder / name
        return file if file.parent == folder and not file.is_symlink() and file.is_file() else None

    @property
    def people(self) -> int:
        """How many desks are in memory."""
        return len(self._desks)

    def _original(self, name: str) -> LanguageModel:
        """A model that nobody edits; called in the worker's thread alone."""
        if name not in self._loaded:
            with bar(f"loading {name}", None):
                recipe = self.shared.recipe
                self._loaded[name] = load_language_model(name, device=recipe.device, dtype=recipe.dtype)
        return self._loaded[name]

    def _sweep(self) -> None:
        while True:
            time.sleep(min(_EVERY, self.limits.grace))
            try:
                self.tidy()
            except Exception:  # the next look may succeed
                logger.exception("tidying up failed")

    def _remove_old(self) -> None:
        """Remove the files of people who have not come back, and what servers that were killed have left."""
        remove_abandoned(self.folder)
        desks = self.folder / "desks"
        for folder in desks.iterdir() if desks.is_dir() else ():
            if time.time() - folder.stat().st_mtime > self.limits.days * 24 * 3600:
                shutil.rmtree(folder, ignore_errors=True)


def digest(key: str) -> str:
    """What a folder is called by a secret, without giving it away."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
