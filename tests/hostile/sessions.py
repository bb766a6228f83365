"""Sessions: killed, interrupted, altered, somebody else's, on a full or read-only disk, and held by another process."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.common import Nursery, Place, Tally, corpus, model_directory, one, unclear

from factpatch.session import Session, SessionError

SUBJECTS = ("Danielle Darrieux", "Ada Lovelace", "Michael Jordan", "Steve Jobs", "Messi", "Tokyo")
ODD: tuple[Any, ...] = (
    None, True, -1, 10**30, 1.5, float("inf"), float("nan"), "", "x", "\x00", "../..", "/etc/hostname", [], {}, ["x"],
    [[]], [10**30], [float("inf")], {"x": "y"},
)  # fmt: skip


@dataclass
class Bench:
    """Facts in batches of one, and what a session gives that nothing interrupts."""

    place: Place
    nursery: Nursery
    folder: Path
    seconds: float = 0.0
    patches: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.write(self.facts, 0)
        begun = time.monotonic()
        code, said = self.begin(self.whole, self.facts, self.out)
        if code:
            raise RuntimeError(said)
        self.seconds, self.patches = time.monotonic() - begun, patches(self.whole)

    @property
    def facts(self) -> Path:
        return self.folder / "facts.json"

    @property
    def whole(self) -> Path:
        """The directory of the session that nothing interrupted."""
        return self.folder / "whole"

    @property
    def out(self) -> Path:
        """The patch that it wrote."""
        return self.folder / "whole.safetensors"

    @property
    def lines(self) -> list[bytes]:
        """The lines of its journal: a plan, six batches, the outputs settled."""
        return (self.whole / "journal.jsonl").read_bytes().splitlines(keepends=True)

    def write(self, path: Path, start: int) -> None:
        prompt = "{} lives in the city of"
        facts = [{"prompt": prompt, "subject": subject, "target_new": "Rome"} for subject in SUBJECTS[start:]]
        path.write_text(json.dumps(facts), "utf-8")

    def arguments(self, session: Path, facts: Path, out: Path | None) -> list[object]:
        asked: list[object] = [
            "edit", model_directory(self.place), "--facts", facts, "--layers", "1,2", "--set", "target.steps=5",
            "--set", "solver.weight=1500", "--corpus", corpus(self.place), "--batch-size", "1", "--session", session,
            "--no-verify",
        ]  # fmt: skip
        return asked if out is None else [*asked, "--out", out]

    def begin(self, session: Path, facts: Path, out: Path | None, **options: Any) -> tuple[int, str]:
        return self.nursery.run(*self.arguments(session, facts, out), **options)

    def resumed(self, session: Path, out: Path) -> tuple[int, str]:
        """Resume a session, or begin it if it was not begun."""
        begun = (session / "session.json").is_file()
        return self.nursery.run("edit", "--resume", session) if begun else self.begin(session, self.facts, out)

    def same(self, session: Path, out: Path) -> bool:
        """Whether a session gave what the uninterrupted one gave."""
        if not (session / "session.json").is_file() or not out.is_file():
            return False
        return patches(session) == self.patches and out.read_bytes() == self.out.read_bytes()

    def fresh(self, work: Path, done: int, journal: bytes | None = None) -> Path:
        """A copy of the whole session at `work`, as it was after some batches."""
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.whole, work)
        for number in range(done + 1, len(SUBJECTS) + 1):
            (work / f"patches/{number:04d}.safetensors").unlink()
        (work / "journal.jsonl").write_bytes(b"".join(self.lines[: done + 1]) if journal is None else journal)
        return work


@contextmanager
def bench(place: Place) -> Iterator[Bench]:
    nursery = Nursery(place)
    try:
        yield Bench(place, nursery, place.folder("sessions", new=True))
    finally:
        nursery.close()


def patches(directory: Path) -> list[bytes]:
    return [(directory / batch.patch).read_bytes() for batch in Session(directory).finished]


def drafts(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".factpatch-*.tmp"))


def relinked(events: list[dict[str, Any]]) -> bytes:
    """Lines of a journal whose checksums and links fit."""
    content, after = b"", 0
    for event in events:
        record = {**{name: value for name, value in event.items() if name != "crc32"}, "after": after}
        after = zlib.crc32(json.dumps(record).encode())
        content += json.dumps({**record, "crc32": after}).encode() + b"\n"
    return content


# --- killed


def kills(bench: Bench, tally: Tally) -> None:
    """kill -9 at random moments and while drafts are written, again and again, until each session is finished."""
    chance = random.Random(bench.place.seed)
    folder = bench.place.folder("sessions/killed", new=True)
    left, number = bench.place.many(72), 0
    while left > 0:
        number += 1
        session, out = folder / f"s{number}", folder / f"s{number}.safetensors"
        for _ in range(40):
            if not _kill_once(bench, tally, session, out, chance):
                break
            left -= 1
        code, said = bench.resumed(session, out)
        opened = Session(session)
        if code == 0 and len(opened.finished) < len(SUBJECTS):  # undone since
            bench.write(folder / "rest.json", len(opened.finished))
            code, said = bench.begin(session, folder / "rest.json", out)
        if code == 0 and not out.is_file():
            code, said = bench.nursery.run("edit", "--resume", session, "--out", out)
        wrong = None if code == 0 and bench.same(session, out) else "not what the uninterrupted session gave"
        tally.found("killed, then resumed", wrong, f"exit {code}: {said[-200:]}")
        tally.found("drafts after resuming", "drafts are left" if drafts(folder) else None, str(drafts(folder)[:3]))


def _kill_once(bench: Bench, tally: Tally, session: Path, out: Path, chance: random.Random) -> bool:
    """Kill a command that begins, continues or undoes a session; False if nothing is left to do."""
    opened = Session(session) if (session / "session.json").is_file() else None
    if opened is not None and len(opened.finished) == len(SUBJECTS) and not opened.waiting and not opened.outputs:
        return False
    kept = 0 if opened is None else len(opened.finished)
    undoing = kept >= 2 and chance.random() < 0.3
    rest = session.parent / "rest.json"
    if undoing:
        kept = chance.randrange(kept)
        asked: list[object] = ["undo", session, "--to", kept]
    elif opened is None:
        asked = bench.arguments(session, bench.facts, out)
    elif opened.waiting or opened.outputs:
        asked = ["edit", "--resume", session]
    else:
        bench.write(rest, kept)
        asked = bench.arguments(session, rest, out)
    process = bench.nursery.start(*asked)
    if undoing:
        time.sleep(chance.random() * 0.06)
    elif chance.random() < 0.5:
        time.sleep(chance.random() * bench.seconds * 0.8)
    else:
        _wait_for_drafts(bench, session, chance.randrange(4))
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    code, said = bench.nursery.ended()
    if code != -signal.SIGKILL:
        tally.found(
            "ended before it was killed", unclear(code, said) or (f"exit {code}" if code else None), said[-200:]
        )
        return code == 0
    tally.found("kill -9", _lost(bench, session, out, kept), " ".join(map(str, asked[:3])))
    return True


def _wait_for_drafts(bench: Bench, session: Path, skipped: int) -> None:
    seen: set[Path] = set()
    until = time.monotonic() + bench.seconds
    while time.monotonic() < until and len(seen) <= skipped:
        for folder in (session.parent, session / "patches", session / "facts"):
            if folder.is_dir():
                seen.update(folder.glob(".factpatch-*"))


def _lost(bench: Bench, session: Path, out: Path, kept: int) -> str | None:
    """What a kill has cost, or None."""
    if out.is_file() and out.read_bytes() != bench.out.read_bytes():
        return "the patch that was asked for is half written"
    if not (session / "session.json").is_file():
        return "a directory without a record" if session.exists() and any(session.iterdir()) else None
    try:
        finished = len(Session(session).finished)
        if finished < kept:
            return "a finished batch is lost"
        return None if patches(session) == bench.patches[:finished] else "a patch in force differs"
    except (OSError, ValueError) as error:
        return f"cannot be opened: {type(error).__name__}: {error}"


def signals(bench: Bench, tally: Tally) -> None:
    """SIGTERM, Ctrl-C and Ctrl-C twice at random moments; then resumed."""
    chance = random.Random(bench.place.seed + 1)
    folder = bench.place.folder("sessions/signals", new=True)
    for number in range(max(3, bench.place.many(18))):
        what, sent = (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT), ("SIGINT twice", signal.SIGINT))[
            number % 3
        ]
        session, out = folder / f"s{number}", folder / f"s{number}.safetensors"
        process = bench.nursery.start(*bench.arguments(session, bench.facts, out))
        time.sleep(chance.random() * bench.seconds * 0.8)
        for _ in range(2 if what.endswith("twice") else 1):
            with suppress(ProcessLookupError):
                os.kill(process, sent)
            time.sleep(chance.random() * 0.01)
        code, said = bench.nursery.ended()
        begun, over = (session / "session.json").is_file(), "Session: " in said
        wrong = None if over else unclear(code, said)
        if wrong is None and begun and code and not over and "--resume" not in said and what != "SIGINT twice":
            wrong = "no word on how to resume"
        tally.found(what, wrong, said[-200:])
        tally.found("drafts after a signal", "drafts are left" if drafts(folder) else None, str(drafts(folder)[:3]))
        if not over or code:
            code, said = bench.resumed(session, out)
        wrong = None if code == 0 and bench.same(session, out) else "not what the uninterrupted session gave"
        tally.found(f"{what}, then resumed", wrong, f"exit {code}: {said[-200:]}")


def second_process(bench: Bench, tally: Tally) -> None:
    """Commands on a session that another process holds, which goes on as if nothing had happened."""
    folder = bench.place.folder("sessions/second", new=True)
    session = folder / "s"
    process = bench.nursery.start(*bench.arguments(session, bench.facts, None))
    until = time.monotonic() + 60
    while not (session / "patches" / "0002.safetensors").is_file() and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(process, signal.SIGSTOP)
    before, other = _files(session), Nursery(bench.place)
    for asked in (
        ["edit", "--resume", session], ["undo", session, "--to", "0"], bench.arguments(session, bench.facts, None),
        ["log", session], ["apply", model_directory(bench.place), session, "--out", folder / "applied"],
    ):  # fmt: skip
        code, said = other.run(*asked)
        wrong = unclear(code, said) or (None if _files(session) == before else "the session changed")
        if asked[0] in ("edit", "undo") and code == 0:
            wrong = "not kept out"
        tally.found("second process", wrong, f"{asked[0]}: {said[-200:]}")
    os.kill(process, signal.SIGCONT)
    code, said = bench.nursery.ended()
    same = code == 0 and patches(session) == bench.patches
    tally.found("second process", None if same else "the first process was disturbed", said[-200:])
    other.close()


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- altered


def journals(bench: Bench, tally: Tally) -> None:
    """The journal altered at every line; some with checksums and links that fit."""
    folder = bench.place.folder("sessions/journals", new=True)
    work, chance = folder / "case", random.Random(bench.place.seed + 2)
    shutil.copytree(bench.whole, work)
    with Session(work).locked():
        opened = Session(work)
        opened.undo(4)
    bench.write(folder / "rest.json", 4)
    code, said = bench.begin(work, folder / "rest.json", None)
    if code:
        raise RuntimeError(said)
    journal = work / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)

    def state() -> list[str]:
        return [batch.sha256 for batch in Session(work).finished]

    def used() -> list[str]:
        opened = Session(work)
        _ = opened.pending, opened.batches
        return state() if opened.patch() else []

    states: list[list[str]] = []
    for end in range(len(lines) + 1):
        journal.write_bytes(b"".join(lines[:end]))
        states.append(state())

    def never(found: list[str]) -> str | None:
        return None if found in states else "a state that never was"

    cases = [*_altered_journals(lines, chance, bench.place), *bench.place.some(_made_journals(lines))]
    for group, what, content in cases:
        journal.write_bytes(content)
        wrong: Callable[[Any], str | None] = never if group == "journal" else lambda _: None
        one(tally, f"{group}: opened", what, state, (SessionError,), ("journal",), wrong)
        one(tally, f"{group}: used", what, used, (SessionError,), (), wrong)


def _altered_journals(lines: list[bytes], chance: random.Random, place: Place) -> Iterator[tuple[str, str, bytes]]:
    for index, line in enumerate(lines):
        before, after = b"".join(lines[:index]), b"".join(lines[index + 1 :])
        for what, content in place.some(
            {
                "left out": before + after, "twice": before + line * 2 + after, "last": before + after + line,
                "first": line + before + after, "empty": before + b"\n" + after, "joined": before + line[:-1] + after,
                "CRLF": before + line[:-1] + b"\r\n" + after, "null": before + b"null\n" + after,
                "NUL bytes": before + b"\x00" * len(line) + after, "and NUL bytes": before + line + b"\x00" * 4096,
                "100,000 deep": before + b"[" * 100_000 + b"\n" + after, "digits": before + b"9" * 5000 + b"\n" + after,
                "no UTF-8": before + b"\xff\xfe\n" + after,
            }.items()
        ):  # fmt: skip
            yield "journal", f"line {index + 1}: {what}", content
        for _ in range(place.many(12)):
            altered = bytearray(line)
            altered[chance.randrange(len(line))] ^= 1 << chance.randrange(8)
            yield "journal", f"line {index + 1}: a bit", before + bytes(altered) + after
        for _ in range(place.many(8)):
            yield "journal", f"line {index + 1}: cut", before + line[: chance.randrange(len(line))]


def _made_journals(lines: list[bytes]) -> Iterator[tuple[str, str, bytes]]:
    events = [json.loads(line) for line in lines]
    for index, event in enumerate(events):
        for name in event:
            for value in (..., *ODD):
                made = copy.deepcopy(events)
                if value is ...:
                    del made[index][name]
                else:
                    made[index][name] = value
                yield "made journal", f"line {index + 1}: {name} = {str(value)[:20]!r}", relinked(made)


def records(bench: Bench, tally: Tally) -> None:
    """session.json altered: used, and resumed by the command."""
    work = bench.fresh(bench.place.folder("sessions/records", new=True) / "case", len(SUBJECTS))
    file = work / "session.json"

    def used() -> None:
        opened = Session(work)
        _ = opened.pending, opened.batches, opened.patch(), opened.recipe

    cases = list(_altered_records(file.read_bytes(), random.Random(bench.place.seed + 3), bench.place))
    for what, content in cases:
        file.write_bytes(content)
        one(tally, "session.json: used", what, used, (SessionError,))
    made = [case for case in cases if case[0].startswith(("recipe", "settings", "weights", "source"))]
    for what, content in made if bench.place.scale >= 1 else made[: bench.place.many(70)]:
        file.write_bytes(content)
        (work / "journal.jsonl").write_bytes(b"".join(bench.lines[:4]))
        code, said = bench.nursery.run("edit", "--resume", work, "--no-verify", "--out", work.parent / "p.safetensors")
        tally.found("session.json: resumed", unclear(code, said), f"{what} -> {said.strip()[-160:]}", valid=code == 0)


def _altered_records(intact: bytes, chance: random.Random, place: Place) -> Iterator[tuple[str, bytes]]:
    record = json.loads(intact)
    for _ in range(place.many(150)):
        content = bytearray(intact)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield "a bit", bytes(content)
    for end in place.some(range(0, len(intact), max(1, len(intact) // 40))):
        yield f"first {end} bytes", intact[:end]
    fields = [(name,) for name in record] + [(outer, name) for outer in ("recipe", "weights") for name in record[outer]]
    for path in fields:
        for value in place.some([..., None, True, -1, 1.5, "", "x", [], {}, ["x"], {"x": 1}, "../..", "/nowhere"]):
            made = copy.deepcopy(record)
            holder = made if len(path) == 1 else made[path[0]]
            if value is ...:
                del holder[path[-1]]
            else:
                holder[path[-1]] = value
            yield f"{'.'.join(path)} = {value!r}", json.dumps(made).encode()
    yield from (
        ("100,000 deep", b"[" * 100_000),
        ("pairs", b'[["format", 1]]'),
        ("null", b"null"),
        ("no UTF-8", b"\xff"),
    )


def files(bench: Bench, tally: Tally) -> None:
    """Files of a session that are missing, renamed, exchanged, altered, or something else than files."""
    folder = bench.place.folder("sessions/files", new=True)
    precious = folder / "precious"
    first, second, third, fourth = (f"patches/000{number}.safetensors" for number in (1, 2, 3, 4))

    def swap(work: Path) -> None:
        for source, target in ((first, "t"), (second, first), ("t", second)):
            (work / source).rename(work / target)

    def flip(work: Path) -> None:
        content = bytearray((work / second).read_bytes())
        content[-20] ^= 1
        (work / second).write_bytes(content)

    def link(name: str, target: Path) -> Callable[[Path], object]:
        def change(work: Path) -> None:
            (work / name).unlink(missing_ok=True)
            (work / name).symlink_to(target)

        return change

    changes: dict[str, Callable[[Path], object]] = {
        "nothing": lambda work: None, "two exchanged": swap, "a bit of a tensor": flip,
        "a patch removed": lambda work: (work / second).unlink(),
        "one is another's copy": lambda work: shutil.copy(work / first, work / second),
        "cut short": lambda work: os.truncate(work / third, 100), "empty": lambda work: os.truncate(work / third, 0),
        "a directory": lambda work: ((work / third).unlink(), (work / third).mkdir()),
        "a broken link": link(third, folder / "nowhere"), "a link to itself": link(third, folder / "case" / third),
        "a patch too many": lambda work: shutil.copy(work / third, work / fourth),
        "the next is a directory": lambda work: (work / fourth).mkdir(),
        "no patches": lambda work: shutil.rmtree(work / "patches"),
        "facts removed": lambda work: (work / "facts/0001.json").unlink(),
        "facts altered": lambda work: (work / "facts/0001.json").write_text("[]", "utf-8"),
        "journal removed": lambda work: (work / "journal.jsonl").unlink(),
        "journal a directory": lambda work: ((work / "journal.jsonl").unlink(), (work / "journal.jsonl").mkdir()),
        "record removed": lambda work: (work / "session.json").unlink(),
        "lock a directory": lambda work: ((work / "lock").unlink(missing_ok=True), (work / "lock").mkdir()),
        "lock a link": link("lock", precious),
    }  # fmt: skip
    for what, change in bench.place.some(changes.items()):
        for command in ("log", "resume", "undo", "apply"):
            work = bench.fresh(folder / "case", 3)
            precious.write_text("precious", "utf-8")
            change(work)
            shutil.rmtree(folder / "applied", ignore_errors=True)
            asked: list[object] = {
                "log": ["log", work, "--facts"], "resume": ["edit", "--resume", work],
                "undo": ["undo", work, "--to", "1"],
                "apply": ["apply", model_directory(bench.place), work, "--out", folder / "applied"],
            }[command]  # fmt: skip
            code, said = bench.nursery.run(*asked)
            wrong = unclear(code, said)
            if code == 0 and command == "resume" and patches(work) != bench.patches:
                wrong = "resumed to other patches"
            if code != 0 and str(folder) not in said.replace("\n", ""):
                wrong = "message names no file"
            if precious.read_text("utf-8") != "precious":
                wrong = "a link was followed"
            tally.found(f"files: {command}", wrong, f"{what} -> {said.strip()[-200:]}", valid=code == 0)


def paths(bench: Bench, tally: Tally) -> None:
    """A session from somebody else neither reads nor writes outside of its directory."""
    folder = bench.place.folder("sessions/paths", new=True)
    work, precious = folder / "case", folder / "precious.txt"
    events = [json.loads(line) for line in bench.lines[:4]]
    for name in ("out", "report"):
        precious.write_text("precious", "utf-8")
        plan = {**events[0], "outputs": {**events[0]["outputs"], name: str(precious)}}
        bench.fresh(work, 3, relinked([plan, *events[1:]]))
        code, said = bench.nursery.run("edit", "--resume", work)
        kept = precious.read_text("utf-8") == "precious"
        tally.found(
            "paths", unclear(code, said) or (None if kept else f"replaced the file that {name} names"), said[-200:]
        )
    for name, done in (("patches/0004.safetensors", 3), ("facts/0002.json", 6), ("journal.jsonl", 3)):
        bench.fresh(work, done, b"".join(bench.lines) if done == 6 else None)
        precious.write_bytes((work / name).read_bytes() if (work / name).exists() else b"precious")
        before = precious.read_bytes()
        (work / name).unlink(missing_ok=True)
        (work / name).symlink_to(precious)
        code, said = bench.begin(work, bench.facts, None) if done == 6 else bench.nursery.run("edit", "--resume", work)
        wrong = unclear(code, said) or (None if precious.read_bytes() == before else "a link was followed for writing")
        tally.found("paths", wrong, f"{name} -> {said[-200:]}")
    outside = {"patch": folder / "outside.safetensors", "facts": folder / "outside.json"}
    shutil.copy(bench.whole / "patches/0003.safetensors", outside["patch"])
    shutil.copy(bench.whole / "facts/0001.json", outside["facts"])
    for field_, line in (("patch", 3), ("facts", 0)):
        for value in (str(outside[field_]), f"../{outside[field_].name}", f"{field_}/../../{outside[field_].name}"):
            made = [{**event, field_: value} if index == line else event for index, event in enumerate(events)]
            code, said = bench.nursery.run("log", bench.fresh(work, 3, relinked(made)))
            wrong = unclear(code, said) or ("read outside of the session" if code == 0 else None)
            tally.found("paths", wrong, f"{field_} = {value} -> {said[-200:]}")


# --- disks


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A file system in memory, if the user may mount one."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=False)


def full_disk(bench: Bench, tally: Tally) -> None:
    """A small file system that fills up, and a limit of the size of files; then resumed with room."""
    folder = bench.place.folder("sessions/full", new=True)
    mount = bench.place.folder("sessions/full/mount")
    needed = sum(path.stat().st_size for path in bench.whole.rglob("*") if path.is_file()) // 4096 + 12
    for size in range(3, needed, max(1, (needed - 3) // max(3, bench.place.many(14)))):
        with mounted(mount, f"size={4096 * size}") as possible:
            if possible:
                session, out = mount / "s", mount / "out.safetensors"
                code, said = bench.begin(session, bench.facts, out)
                wrong = unclear(code, said)
                if code and "disk is full" not in said:
                    wrong = "no word of the full disk"
                if code and drafts(mount):
                    wrong = "drafts left on the full disk"
                tally.found("full disk", wrong, f"{4096 * size} bytes -> {said.strip()[-200:]}", valid=code == 0)
                subprocess.run(["mount", "-o", "remount,size=8m", mount], check=True)
                code, said = bench.resumed(session, out)
                same = code == 0 and bench.same(session, out)
                tally.found(
                    "full disk, then room", None if same else "differs, or fails", f"exit {code}: {said[-200:]}"
                )
    largest = max(path.stat().st_size for path in bench.whole.rglob("*") if path.is_file())
    limits = (100, 500, 1000, largest // 2, largest - 1, largest, bench.out.stat().st_size - 1)
    for number, limit in enumerate(bench.place.some(limits)):
        session, out = folder / f"limit{number}", folder / f"limit{number}.safetensors"
        code, said = bench.begin(session, bench.facts, out, file_size=limit)
        told = any(words in said for words in ("ulimit", "could not be written", "too large", "disk is full"))
        wrong = unclear(code, said) or (None if code == 0 or told else "no word of the limit")
        tally.found("limit of files", wrong, f"{limit} bytes -> {said.strip()[-200:]}", valid=code == 0)
        code, said = bench.resumed(session, out)
        same = code == 0 and bench.same(session, out)
        tally.found("limit of files, then none", None if same else "differs, or fails", f"exit {code}: {said[-200:]}")


def read_only(bench: Bench, tally: Tally) -> None:
    """A session on a read-only file system, and one of another user: read, and never written."""
    mount, model = bench.place.folder("sessions/mount"), model_directory(bench.place)
    kinds: dict[str, dict[str, Any]] = {"read-only": {}, "another user's": {"user": 65534}}
    for kind, options in kinds.items():
        with mounted(mount, "size=8m,mode=755") as possible:
            if not possible:
                return
            session = bench.fresh(mount / "s", 3)
            (session / "lock").unlink(missing_ok=True)
            if options:
                bench.place.work.chmod(0o755)
                subprocess.run(["chmod", "-R", "a+rX", model, corpus(bench.place)], check=True)
                subprocess.run(["chmod", "-R", "a+rwX", bench.place.folder("cache")], check=False)
                bench.nursery.log.touch()
                bench.nursery.log.chmod(0o666)
            else:
                subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
            before = _files(mount)
            for name, asked in {
                "log": ["log", session, "--facts"], "show": ["show", session / "patches" / "0001.safetensors"],
                "resume": ["edit", "--resume", session], "undo": ["undo", session, "--to", "1"],
                "a new one": bench.arguments(mount / "t", bench.facts, None),
                "compose": ["compose", session, "--out", mount / "p.safetensors"],
            }.items():  # fmt: skip
                code, said = bench.nursery.run(*asked, **options)
                reads = name in ("log", "show")
                wrong = unclear(code, said) or (None if reads == (code == 0) else f"{name} ends with {code}")
                if _files(mount) != before:
                    wrong = "something was written"
                tally.found(kind, wrong, f"{name} -> {said.strip()[-200:]}", valid=reads)
