"""What the parts share: outcomes that are counted, limits of time and memory, tiny models, commands in processes."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.models import save_corpus, save_tiny

ROOT = Path(__file__).resolve().parents[2]
SLOW = 5.0  # seconds
LARGE = 1 << 30  # bytes more than before
LONG = 20_000  # characters of a message
OUTCOMES = ("clear", "valid", "defect")


@dataclass
class Place:
    """Where to work, and how much."""

    work: Path
    seed: int = 0
    scale: float = 1.0

    def folder(self, name: str, new: bool = False) -> Path:
        """A folder of this name; with `new`, an empty one."""
        made = self.work / name
        if new:
            shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True, exist_ok=True)
        return made

    def many(self, count: int) -> int:
        return max(1, int(count * self.scale))

    def some(self, items: Iterable[Any]) -> list[Any]:
        """The share of the items that is tried, spread over all of them."""
        listed = list(items)
        return listed if self.scale >= 1 else random.Random(self.seed).sample(listed, self.many(len(listed)))


@dataclass
class Tally:
    """Outcomes by group, and the smallest input of each kind of defect.

    An outcome is *clear*, an error that says what is wrong; *valid*, a result that is right; or a *defect*.
    """

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    defects: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, group: str, outcome: str, kind: str = "", what: str = "") -> None:
        self.counts[group].update(("tried", outcome))
        if outcome == "defect":
            seen = self.defects.setdefault(kind, {"count": 0, "what": what})
            seen["count"] += 1
            seen["what"] = min(seen["what"], what, key=len)

    def found(self, group: str, wrong: str | None, what: str = "", valid: bool = False) -> None:
        """Count a defect if something is wrong."""
        self.add(group, "defect" if wrong else "valid" if valid else "clear", wrong or "", f"{group}: {what}")

    def total(self) -> Counter[str]:
        return sum(self.counts.values(), Counter())

    def to_dict(self) -> dict[str, Any]:
        groups = {name: dict(counts) for name, counts in self.counts.items()}
        return {"total": dict(self.total()), "groups": groups, "defects": self.defects}


class TooLongError(BaseException):
    """A case ran past its time; no error that a case may catch."""


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def watched(limit: int) -> Iterator[dict[str, float]]:
    """Measure the seconds of the block and how much its memory grows; TooLongError after `limit` seconds."""
    seen: dict[str, float] = {}

    def ring(*_: object) -> None:
        raise TooLongError(f"ran past {limit} s")

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # begins the peak anew
    resident, start = _status("VmRSS"), time.perf_counter()
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(limit)
    try:
        yield seen
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        seen.update(seconds=time.perf_counter() - start, growth=_status("VmHWM") - resident)


def where(error: BaseException) -> str:
    """The last place in the package that an error passed."""
    trace, found, package = error.__traceback__, "?", f"{os.sep}factpatch{os.sep}"
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if package in name:
            found = f"{name.rpartition(package)[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def one(
    tally: Tally,
    group: str,
    what: str,
    call: Callable[[], Any],
    clear: tuple[type[Exception], ...],
    names: tuple[str, ...] = (),
    wrong: Callable[[Any], str | None] = lambda _: None,
    limit: int = 30,
) -> Any:
    """Try one case, and return its result; None if it raised.

    Args:
        clear: Errors that may be raised.
        names: What their messages must contain.
        wrong: Says what is wrong with a result, or None.
    """
    result, outcome, kind = None, "defect", ""
    with watched(limit) as seen:
        try:
            result = call()
            problem = wrong(result)
            outcome, kind = ("valid", "") if problem is None else ("defect", f"accepted: {problem}")
        except clear as error:
            outcome, kind = _message(error, names)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            kind = f"{type(error).__name__} at {where(error)}: {str(error)[:100]}"
    if outcome != "defect" and seen["seconds"] > SLOW:
        outcome, kind = "defect", f"over {SLOW:.0f} s"
    if outcome != "defect" and seen["growth"] > LARGE:
        outcome, kind = "defect", "over 1 GB"
        gc.collect()
    tally.add(group, outcome, kind, f"{group}: {what}")
    return result


def _message(error: Exception, names: tuple[str, ...]) -> tuple[str, str]:
    message = str(error)
    missing = [name for name in names if name not in message]
    if missing:
        return "defect", f"message without {missing[0][-40:]!r}: {type(error).__name__} at {where(error)}"
    if len(message) > LONG:
        return "defect", f"message of over {LONG} characters at {where(error)}"
    return "clear", ""


def prepare(place: Place) -> None:
    """One thread, a cache of its own, and no warnings, some of which would be long."""
    os.environ.update(OMP_NUM_THREADS="1", FACTPATCH_CACHE=str(place.folder("cache")), COLUMNS="120")
    torch.set_num_threads(1)
    logging.getLogger("factpatch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def model_directory(place: Place, name: str = "tiny", chat: bool = False) -> Path:
    """A tiny model and its tokenizer."""
    directory = place.work / name
    if not directory.is_dir():
        save_tiny(directory, "llama", chat=chat)
    return directory


def corpus(place: Place) -> Path:
    return save_corpus(place.work / "corpus.txt")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in lists and objects, the whole first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield from places(item, (*path, name))


NURSERY = """
import json, os, resource, signal, sys
import encodings.idna, encodings.utf_8_sig  # a child of another user may not be able to read them
import transformers.models.llama.modeling_llama
import factpatch.cli.main, factpatch.edit_report, factpatch.session, factpatch.cli.edit, factpatch.data
import torch
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(said, 1), os.dup2(said, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "umask" in asked:
            os.umask(asked["umask"])
        if "file_size" in asked:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["file_size"],) * 2)
        if "memory" in asked:
            pages = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (pages + asked["memory"],) * 2)
        if "user" in asked:
            os.setgid(asked["user"]), os.setuid(asked["user"])
        sys.argv = ["factpatch", *asked["arguments"]]
        factpatch.cli.main.main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Runs commands in children of a process that has imported everything; it starts with the first command."""

    def __init__(self, place: Place) -> None:
        self.log = place.work / f"said-{id(self)}.txt"
        self.process: subprocess.Popen[str] | None = None

    def _begun(self) -> subprocess.Popen[str]:
        if self.process is not None:
            return self.process
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if self._heard() != "ready":
            raise RuntimeError("the process that runs the commands has not started")
        return self.process

    def start(self, *arguments: object, **options: Any) -> int:
        """Start a command, with limits as `NURSERY` reads them, and return its process."""
        process = self._begun()
        assert process.stdin is not None
        asked = {"arguments": [str(argument) for argument in arguments], "log": str(self.log), **options}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        return int(self._heard())

    def ended(self) -> tuple[int, str]:
        """Wait for the command; return its exit code and what it said."""
        code = int(self._heard())
        return code, self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    def run(self, *arguments: object, **options: Any) -> tuple[int, str]:
        self.start(*arguments, **options)
        return self.ended()

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()

    def _heard(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@dataclass
class Commands:
    """A tiny model, a corpus, one fact, and commands to run on them."""

    place: Place
    nursery: Nursery

    @property
    def model(self) -> Path:
        return model_directory(self.place)

    @property
    def facts(self) -> Path:
        path = self.place.work / "facts.json"
        fact = {"prompt": "{} lives in", "subject": "Messi", "target_new": "Rome"}
        path.write_text(json.dumps([fact]), "utf-8")
        return path

    @property
    def quick(self) -> list[object]:
        """Options of an edit that takes a moment."""
        return ["--layers", "1,2", "--corpus", corpus(self.place), "--set", "target.steps=2"]

    def run(self, *arguments: object, **options: Any) -> tuple[int, str]:
        return self.nursery.run(*arguments, **options)


@contextmanager
def commands(place: Place) -> Iterator[Commands]:
    nursery = Nursery(place)
    try:
        yield Commands(place, nursery)
    finally:
        nursery.close()


def unclear(code: int, said: str) -> str | None:
    """What is wrong with how a command ended, or None."""
    if "Traceback" in said:
        return "traceback"
    if "--debug shows where" in said:
        return "no word of what to do: " + said.strip().splitlines()[-1][:160]
    if code < 0:
        return f"ended by signal {-code}"
    return None if code in (0, 1, 2, 130, 143) else f"exit code {code}"


def steering(text: str) -> list[str]:
    """The characters of a text that would steer a terminal or turn the direction of the text."""
    bidi = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}
    codes = {ord(character) for character in text if character not in "\n\t\r"}
    return sorted(hex(code) for code in codes if code < 32 or 0x7F <= code < 0xA0 or code in bidi)
