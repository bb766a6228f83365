"""Journal: the state of a session's directory, which only grows. It needs no model and no PyTorch.

    session.json     what the session edits: the model, the recipe, the settings, the hashes of the unedited weights
    facts/0001.json  the facts of one call
    patches/0001.safetensors, ...  one patch per batch, in the order in which they were edited
    targets/0001.safetensors, ...  the target values of a batch, with which it is solved again when a fact is taken back
    traces/0001.safetensors, ...   what the solver remembers of a batch, if the patch does not suffice to restore it
    journal.jsonl    one line per event: facts planned, a batch finished, an undo, facts taken back, outputs written
    lock             held by the process that writes

A line is written after the files it mentions, so the journal never mentions a missing file. A batch without a line
counts as not edited: it is edited again, which gives the same patch. Every line has a checksum and names that of the
line before, so that none can be altered or left out. The files it mentions are in the directory: whoever made a
session, reading or continuing it reads and writes nothing elsewhere that its user has not been told of.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from factpatch.data import save_facts, saved_facts
from factpatch.facts import LATER_FIELDS, Fact, check_batch
from factpatch.model.places import place_named
from factpatch.patch.batch import first_states
from factpatch.patch.file import PatchFileError, describe
from factpatch.support.directory import DirectoryError, KeptDirectory, Record, cut_unfinished
from factpatch.support.files import append, file_digest, remove_abandoned
from factpatch.support.validation import explained, parsed
from factpatch.support.words import counted

if TYPE_CHECKING:
    from factpatch.recipe import Recipe

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class SessionError(DirectoryError):
    """A session's directory cannot be used as requested; the message names the file and says what to do."""


class SessionRecord(Record):
    """The fields of `session.json`."""

    created: str
    model: str
    method: str
    joins: bool
    settings: dict[str, Any]
    weights: dict[str, str]
    began_format: int | None = None  # where an event that came later raised the format
    source: str | None = None
    recipe: dict[str, Any] | None = None


def _within(folder: str, suffix: str) -> StringConstraints:
    return StringConstraints(pattern=rf"^{folder}/[0-9]{{4,9}}\.{suffix}$")


class _Event(BaseModel):
    """A line of the journal. A kind of event has further fields; so may lines that other versions wrote."""

    model_config = ConfigDict(strict=True)
    time: str = ""


class _Plan(_Event):
    event: Literal["plan"]
    facts: Annotated[str, _within("facts", "json")]
    sha256: str
    batches: list[Annotated[int, Field(gt=0, lt=10**9)]] = Field(min_length=1)
    outputs: dict[str, Any]


class _Made(BaseModel):
    """What a batch left in the directory."""

    model_config = ConfigDict(strict=True)
    patch: Annotated[str, _within("patches", "safetensors")]
    sha256: str
    facts: PositiveInt
    exact: list[bool] = []  # before format 3, "learned" was recorded in its place, which meant other things
    seconds: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    traces: Annotated[str, _within("traces", "safetensors")] | None = None
    traces_sha256: str | None = None
    targets: Annotated[str, _within("targets", "safetensors")] | None = None  # earlier versions did not keep them
    targets_sha256: str | None = None
    spent: dict[str, float | None] = {}

    @model_validator(mode="after")
    def _agrees(self) -> _Made:
        if len(self.exact) not in (0, self.facts):
            raise ValueError(f"exact is about {len(self.exact)} of {self.facts} facts")
        return self


class _Batch(_Event, _Made):
    event: Literal["batch"]


class _Without(_Event):
    """Facts taken back: the batches after `to` were solved again without them."""

    event: Literal["without"]
    gone: list[Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]] = Field(min_length=1)
    facts: PositiveInt | None = None  # how many were named; earlier versions took every edit for a fact
    to: NonNegativeInt
    batches: list[_Made]


class _Stop(_Event):
    """A batch that exceeded the budget, was taken back and is pending again."""

    event: Literal["stop"]
    facts: PositiveInt
    spent: dict[str, float | None]
    reason: str


class _Undo(_Event):
    event: Literal["undo"]
    to: NonNegativeInt


class _Settle(_Event):
    event: Literal["settle"]


_Events = _Plan | _Batch | _Without | _Stop | _Undo | _Settle
_EVENT: TypeAdapter[_Events] = TypeAdapter(Annotated[_Events, Field(discriminator="event")])
_LATER = frozenset({"without", "stop"})
"""Events that earlier formats did not have."""


@dataclass(frozen=True)
class FinishedBatch:
    """A batch that was edited; files are relative to the directory."""

    patch: str
    """Its patch file."""
    sha256: str
    """The checksum that the patch file states."""
    facts: int
    """The number of its facts."""
    exact: tuple[bool, ...]
    """Whether every token of each new answer was the likeliest right after the batch; empty if it was not asked."""
    seconds: dict[str, float]
    """Wall time by stage."""
    time: str
    """When it was finished, in UTC."""
    traces: str | None = None
    """The file of what the solver remembers of it, if any."""
    traces_sha256: str | None = None
    targets: str | None = None
    """The file of its target values; None where the method has none, or an earlier version edited it."""
    targets_sha256: str | None = None
    spent: dict[str, float | None] = field(default_factory=dict)
    """What the edits in force then had cost, if there was a budget; see `factpatch.evaluation.budget.Spent`."""

    @classmethod
    def of(cls, made: _Made, time: str) -> FinishedBatch:
        """What the journal says of a batch that was finished at a time."""
        given = {one.name: getattr(made, one.name) for one in fields(cls) if one.name != "time"}
        return cls(**{**given, "exact": tuple(made.exact), "time": time})


class Journal(KeptDirectory):
    """The content of a session's directory, and its changes.

    Raises:
        SessionError: `path` is not a directory that `factpatch.session.Session.create` made, or its files disagree.
    """

    holds = "a session"
    record_name = "session.json"
    # 4 had no facts with `LATER_FIELDS`, 3 took back no single facts and had no budget, 2 had no links between lines, 1
    # had no recipe but "about", the options.
    format = 5
    begins = 4
    """The format of a new session; what comes later raises it."""
    needs = ("model", "method", "joins", "settings", "weights")
    fields = SessionRecord
    error = SessionError

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.finished: list[FinishedBatch] = []
        """The batches in force."""
        self.undone = 0
        """How many batches were ever undone."""
        self.gone = 0
        """How many facts were ever taken back one by one."""
        self.stopped = ""
        """Which limit the next batch exceeded, if the session stopped there."""
        self.waiting: list[int] = []
        """The number of facts of each pending batch: planned and not edited yet."""
        self.outputs: dict[str, Any] = {}
        """The outputs that the last plan requested besides the patches, until they are written; as "mend" the number of
        rounds that are left."""
        self._files = {"facts": 0, "patches": 0}
        self._plan: tuple[Path, str] | None = None  # the file of pending facts, and its digest
        self._planned: list[Fact] = []  # its content, once read
        self._length = 0  # of the part of the journal that was read or written here
        self._last = 0  # the checksum of its last line
        for number, event in enumerate(self._events(), start=1):
            try:
                self._follow(event)
            except ValueError as error:
                raise SessionError(
                    f"{self.path / JOURNAL}, line {number}: does not follow from the lines before it ({error}). "
                    "Restore the file from a copy."
                ) from error

    @property
    def source(self) -> str | None:
        """The model as named on the command line; None for a session begun in Python."""
        source: str | None = self.record.get("source") or self.record.get("about", {}).get("model")
        return source

    @property
    def recipe(self) -> Recipe:
        """The recipe of the session's editor.

        Raises:
            SessionError: It was begun in Python, and the directory does not hold a recipe; or a field of the recipe
                cannot be used, for example since it names something that no longer exists.
        """
        from factpatch.recipe import Recipe, RecipeError

        if self.source is None:
            raise SessionError(f"{self.path}: was begun in Python; continue it there with Session.attach.")
        options = self.record.get("about", {})
        older = {name: value for name, value in options.items() if name != "model"}
        try:
            return Recipe.from_dict(self.record.get("recipe") or older)
        except (RecipeError, TypeError) as error:
            raise SessionError(f"{self.path / self.record_name}: recipe: {error}") from error

    @property
    def settled(self) -> Recipe:
        """The recipe with every setting as the session began with it: a preset may have other numbers since.

        Raises:
            SessionError: As `recipe`; or a setting cannot be used.
        """
        from factpatch.methods import EFFORTS, settings_in

        recipe, began = self.recipe, self.record["settings"]
        try:
            known = {"settings": settings_in(began, recipe.row), "critical_layers": began["critical_layers"]}
            short = EFFORTS[recipe.effort].short_products  # then the default depends on the machine
            if short and recipe.precision in (None, "auto"):
                known["precision"] = began["precision"].split()[0]
            if recipe.corpus_tokens is None:  # the default may have been another one
                known["corpus_tokens"] = dict(began.get("second_moment") or {}).get("corpus_tokens")
            return type(recipe)(**{**dict(recipe), **known})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SessionError(f"{self.path / self.record_name}: settings: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out; SessionError if one is working here, or has since this session was read."""
        with super().locked():
            remove_abandoned(self.path.parent)  # what a process left that was killed while it made a session
            cut_unfinished(self.path / JOURNAL)
            self.check_current()
            yield

    @property
    def pending(self) -> list[tuple[Fact, ...]]:
        """The batches planned and not edited yet; SessionError if the file of their facts is missing or altered."""
        if not self.waiting or self._plan is None:
            return []
        path, digest = self._plan
        if not self._planned:
            self.check_links(path)
            if not path.is_file() or file_digest(path) != digest:
                raise SessionError(
                    f"{path}: is missing or was altered after it was planned. Put the original back, or drop the "
                    f"pending batches: factpatch undo {self.path} --to {len(self.finished)}"
                )
            self._planned = saved_facts(path)
        rest = iter(self._planned[len(self._planned) - sum(self.waiting) :])
        return [tuple(islice(rest, size)) for size in self.waiting]

    @property
    def batches(self) -> list[tuple[Fact, ...]]:
        """The facts of every batch, finished and pending."""
        self.check_patches()
        finished = [describe(self.path / batch.patch).batches for batch in self.finished]
        done = [tuple(fact for part in parts for fact in part.facts) for parts in finished]
        return [*done, *self.pending]

    def plan(self, batches: Sequence[Sequence[Fact]], outputs: Mapping[str, Any] | None = None) -> None:
        """Record which batches to edit next. Call it inside `locked`.

        Args:
            outputs: JSON-able data for the process that resumes.

        Raises:
            ValueError: There is no batch, or one that is empty or contradicts itself.
            SessionError: Batches are pending.
            OSError: The directory cannot be written; nothing is planned.
        """
        if not batches:
            raise ValueError("batches=[]: give at least one batch of facts.")
        for batch in batches:
            check_batch(batch)
        self.check_idle()
        self.check_current()  # otherwise another process may have used the name of the file below
        name = f"facts/{self._files['facts'] + 1:04d}.json"
        self.check_links(self.path / name)
        facts = [fact for batch in batches for fact in batch]
        if any(not LATER_FIELDS.isdisjoint(fact.to_dict()) for fact in facts):
            self._raise_format(5)
        save_facts(facts, self.path / name)
        sizes, digest = [len(batch) for batch in batches], file_digest(self.path / name)
        outputs = dict(outputs or {})
        self._append({"event": "plan", "facts": name, "sha256": digest, "batches": sizes, "outputs": outputs})

    def check_idle(self) -> None:
        """Raise SessionError if batches are pending."""
        if self.waiting:
            raise SessionError(
                f"{self.path}: {counted(len(self.waiting), 'batch')} pending. To finish: factpatch edit --resume "
                f"{self.path}; to drop: factpatch undo {self.path} --to {len(self.finished)}"
            )

    def undo(self, to: int) -> None:
        """Return to the state after batch `to`, 0 for the beginning; drop pending ones. Call it inside `locked`.

        The patches of the undone batches stay in the directory, no longer in force.
        """
        if not 0 <= to <= len(self.finished):
            raise SessionError(f"to={to}: the session has {len(self.finished)} batches; give a number from 0 to that.")
        self._append({"event": "undo", "to": to})

    def settle(self) -> None:
        """Record that the outputs of the last plan are written. Call it inside `locked`."""
        self.check_idle()
        if self.outputs:
            self._append({"event": "settle"})

    def check_current(self) -> None:
        """Raise SessionError if another process has appended to the journal since this session read it."""
        if (self.path / JOURNAL).stat().st_size != self._length:
            raise SessionError(f"{self.path}: has been changed since it was opened; open it again.")

    def owns(self, path: Path) -> bool:
        """Whether a file is a patch that this session wrote: of facts planned here, on the weights it began with."""
        try:
            batches = describe(path).batches
            planned = {fact for file in sorted((self.path / "facts").glob("*.json")) for fact in saved_facts(file)}
        except ValueError:
            return False
        began = {place_named(name): digest for name, digest in self.record["weights"].items()}
        found = first_states(batches)
        return found.items() <= began.items() and {fact for batch in batches for fact in batch.facts} <= planned

    def check_patches(self) -> None:
        for number, batch in enumerate(self.finished, start=1):
            path = self.path / batch.patch
            self.check_links(path)
            with self.advised(number):
                if not path.is_file():
                    raise PatchFileError(f"{path}: the patch of batch {number} is missing.")
                if describe(path).sha256 != batch.sha256:
                    raise PatchFileError(f"{path}: is not the patch that batch {number} left.")

    def check_links(self, file: Path) -> None:
        """Raise SessionError if a file of the session is elsewhere, by a symbolic link."""
        for place in (file, *file.parents):
            if place == self.path:  # which may itself be a link that its user made
                return
            self._check_links(place.parent, [place.name])

    @contextmanager
    def advised(self, number: int) -> Iterator[None]:
        """Make an error about a batch's patch say how to continue without it."""
        try:
            yield
        except PatchFileError as error:
            raise SessionError(
                f"{error} Put it back, or go back before it: factpatch undo {self.path} --to {number - 1}"
            ) from error

    def _follow(self, event: _Events) -> None:
        """Update the state by one event; ValueError if it cannot come here."""
        self.stopped = ""
        if isinstance(event, _Plan):
            if self.waiting:
                raise ValueError("batches were still to be edited")
            self.waiting, self.outputs = list(event.batches), dict(event.outputs)
            self._plan, self._planned = (self.path / event.facts, event.sha256), []
            self._files["facts"] += 1
        elif isinstance(event, _Batch):
            if self.waiting[:1] != [event.facts]:
                raise ValueError(f"{self.waiting[:1] or 'no'} facts were planned and {event.facts} edited")
            self.finished.append(FinishedBatch.of(event, event.time))
            self.waiting.pop(0)
            self._files["patches"] += 1
        elif isinstance(event, _Without):
            replaced = self.finished[event.to :]
            left = sum(batch.facts for batch in replaced) - len(event.gone)
            if not replaced or left != sum(batch.facts for batch in event.batches):
                raise ValueError(f"{left} facts were left to solve again after batch {event.to}")
            self.finished[event.to :] = [FinishedBatch.of(batch, event.time) for batch in event.batches]
            self.gone += event.facts or len(event.gone)
            self._files["patches"] += len(event.batches)
        elif isinstance(event, _Stop):
            if self.waiting[:1] != [event.facts]:
                raise ValueError(f"{self.waiting[:1] or 'no'} facts were planned and {event.facts} stopped at")
            self.stopped = event.reason
        elif isinstance(event, _Undo):
            if event.to > len(self.finished):
                raise ValueError(f"there is no batch {event.to}")
            self.undone += len(self.finished) - event.to
            del self.finished[event.to :]
            self.waiting, self.outputs = [], {}
        else:
            self.outputs = {}

    def _events(self) -> Iterator[_Events]:
        path = self.path / JOURNAL
        unlinked = (self.record.get("began_format") or self.record["format"]) < 3
        self.check_links(path)
        try:
            *lines, cut = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            raise SessionError(f"{path}: is missing. Restore it from a copy.") from None
        except OSError as error:
            raise SessionError(f"{path}: cannot be read: {error.strerror}. Restore it from a copy.") from error
        for number, line in enumerate(lines, start=1):
            try:
                event = parsed(line)
            except ValueError as error:
                raise SessionError(
                    f"{path}, line {number}: cannot be read ({error}). Restore the file from a copy; the patches it "
                    "mentions are in patches/."
                ) from error
            if not isinstance(event, dict) or _line(event) != line + b"\n":
                raise SessionError(f"{path}, line {number}: was altered. Restore the file from a copy.")
            # Up to format 2 lines had no link; those that were added to such a session since then have one.
            if event.get("after", self._last if unlinked else None) != self._last:
                raise SessionError(
                    f"{path}, line {number}: does not follow from the lines before it (one was left out or altered). "
                    "Restore the file from a copy."
                )
            self._length, self._last = self._length + len(line) + 1, event["crc32"]
            try:
                yield _EVENT.validate_python(event)
            except ValidationError as error:
                raise SessionError(
                    f"{path}, line {number}: was altered ({explained(error)}) Restore the file from a copy."
                ) from None
        if cut:
            logger.warning("%s, line %d: was cut short, so its event counts as not done.", path, len(lines) + 1)

    def _append(self, event: dict[str, Any]) -> None:
        """Append an event to the journal, whole or not at all, and update the state.

        An interruption after the line was written leaves a session that is not current, and so writes nothing more.
        """
        self.check_current()
        if event["event"] in _LATER:
            self._raise_format(4)
        event = {**event, "time": now(), "after": self._last}
        line, found = _line(event), _EVENT.validate_python(event)
        append(self.path / JOURNAL, line)
        self._follow(found)
        self._last = parsed(line)["crc32"]
        self._length += len(line)  # last: until then, `check_current` refuses what was followed in part

    def _raise_format(self, least: int) -> None:
        """Raise the format of the record, so that older versions say what is wrong."""
        if self.record["format"] < least:
            self.update(format=least, began_format=self.record.get("began_format", self.record["format"]))


def _line(event: Mapping[str, Any]) -> bytes:
    """A line of the journal, with a checksum of all that it holds, the link to the line before included."""
    record = {name: value for name, value in event.items() if name != "crc32"}
    return json.dumps({**record, "crc32": zlib.crc32(json.dumps(record).encode())}).encode() + b"\n"


def now() -> str:
    """The time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
