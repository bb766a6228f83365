"""Workers and drivers killed with kill -9 at random moments: the same bytes in the end, and no process left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tests.hostile.common import ROOT, Place, Tally, model_directory
from tests.models import save_corpus

from factpatch.model.weights import content_hash

MARK = "FACTPATCH_TRIAL"
COMMAND = """
import factpatch.statistics.second_moment as second_moment
from factpatch.cli.main import main
second_moment.CHECKPOINT_SECONDS = 0.0
main()
"""
KILLS = 10
SECONDS = 300.0
"""After which a command hangs."""
SUBJECTS = ("Danielle Darrieux", "Ada Lovelace", "Michael Jordan", "Steve Jobs", "Messi", "Tokyo", "Paris", "Finland")


@dataclass(frozen=True)
class Job:
    """A command that workers share, and what it leaves."""

    name: str
    arguments: tuple[object, ...]
    """With DIR for a folder of its own."""
    kept: str
    """The files, below that folder, whose tensors count: to the bit."""


@dataclass
class Bench:
    """What each command leaves when nobody is killed."""

    place: Place
    folder: Path
    jobs: list[Job] = field(default_factory=list)
    expected: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    resumed: Counter[str] = field(default_factory=Counter)
    """How often a pass over a text was continued where a checkpoint was."""

    def __post_init__(self) -> None:
        corpus = save_corpus(self.folder / "corpus.txt", documents=6000, words=60)
        facts = [
            {"prompt": "{} lives in the city of", "subject": subject, "target_new": "Rome"} for subject in SUBJECTS
        ]
        (self.folder / "facts.json").write_text(json.dumps(facts), "utf-8")
        settings = {"target.steps": 150, "target.stop_loss": 0.0, "solver.weight": 1500}
        run = {
            "model": str(model_directory(self.place)),
            "methods": [{"name": "memit-blue", "settings": settings}],
            "datasets": [str(self.folder / "facts.json")],
            "batch_size": 4,
            "seeds": [0, 1, 2, 3],
            "critical_layers": [1, 2],
            "corpus": str(corpus),
            "corpus_tokens": 2000,
            "evaluate": {"perplexity": False, "generation": False},
        }
        (self.folder / "run.yaml").write_text(json.dumps(run), "utf-8")
        model = ("--layers", "1,2", "--corpus", corpus)
        given = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        edit = ("edit", model_directory(self.place), "--facts", self.folder / "facts.json", *model, *given)
        self.jobs = [
            Job(
                "second moments",
                ("second-moment", model_directory(self.place), *model, "--tokens", 150_000),
                "cache/second_moment/*.safetensors",
            ),
            Job(
                "values",
                (*edit, "--corpus-tokens", 2000, "--batch-size", 4, "--no-verify", "--session", "DIR/session"),
                "session/patches/*.safetensors",
            ),
            Job("grid", ("run", self.folder / "run.yaml", "--out", "DIR/run"), "run/rows/**/*.safetensors"),
        ]

    def ready(self, job: Job, workers: str) -> float:
        """Run a command that nobody kills, once; return its seconds."""
        if (job.name, workers) not in self.seconds:
            directory = self.place.folder(f"workers/{job.name} {workers}".replace(":", " "), new=True)
            begun = time.monotonic()
            trial = Trial(job, directory, workers)
            code, said = trial.ended()
            self.seconds[job.name, workers] = time.monotonic() - begun
            found = trial.left()
            if code or not found or found != self.expected.setdefault(job.name, found):
                raise RuntimeError(f"{job.name} with --workers {workers}: exit {code}, {len(found)} files: {said}")
        return self.seconds[job.name, workers]


class Trial:
    """A command in processes of its own, which an environment variable marks."""

    def __init__(self, job: Job, directory: Path, workers: str) -> None:
        self.job, self.directory, self.mark = job, directory, uuid.uuid4().hex
        arguments = [str(one).replace("DIR", str(directory)) for one in (*job.arguments, "--workers", workers)]
        if (directory / "session" / "session.json").is_file():
            arguments = ["edit", "--resume", str(directory / "session"), "--workers", workers]
        environment = {
            **os.environ,
            MARK: self.mark,
            "FACTPATCH_CACHE": str(directory / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        }
        self.log = (directory / "said.txt").open("a+b")
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments], stdout=self.log, stderr=self.log, env=environment
        )

    def ended(self) -> tuple[int, str]:
        """Wait; return the exit code and the end of what was said."""
        try:
            code = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = 124
        said = (self.directory / "said.txt").read_text("utf-8", errors="replace")
        self.log.close()
        return code, said[-400:]

    def others(self) -> list[int]:
        """The command's processes, but for the first."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.process.pid:
                with suppress(OSError):
                    status = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if status not in "ZX" and f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                        found.append(int(folder.name))
        return found

    def workers(self) -> list[int]:
        """Those of its processes that are workers."""
        found = []
        for process in self.others():
            with suppress(OSError):
                command = Path(f"/proc/{process}/cmdline").read_bytes()
                if b"faulthandler" in command or command.startswith(b"ray::"):
                    found.append(process)
        return found

    def orphans(self, within: float = 60) -> list[int]:
        """The processes that are still there some seconds after the command has ended."""
        end = time.monotonic() + within
        while (left := self.others()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def left(self) -> dict[str, str]:
        """What the tensors are that the command left, by file."""
        return {
            str(file.relative_to(self.directory)): " ".join(
                content_hash(tensor) for _, tensor in sorted(load_file(file).items())
            )
            for file in sorted(self.directory.glob(self.job.kept))
            if file.is_file()
        }


@contextmanager
def bench(place: Place) -> Iterator[Bench]:
    yield Bench(place, place.folder("workers", new=True))


def killed_workers(bench: Bench, tally: Tally) -> None:
    """A worker of each command is killed at random moments; the command goes on."""
    _tried(bench, tally, "worker", partial(_one_worker, bench))


def killed_drivers(bench: Bench, tally: Tally) -> None:
    """The command itself is killed at random moments; the same command continues it."""
    _tried(bench, tally, "driver", partial(_one_driver, bench))
    name = "second moments"
    tally.found(f"{name}: resumed", None if bench.resumed[name] else "no pass was resumed", valid=True)


def _tried(bench: Bench, tally: Tally, who: str, attempt: Any) -> None:
    chance = random.Random(bench.place.seed)
    for workers in ("2", *(["ray:2"] if find_spec("ray") is not None else [])):
        for job in bench.jobs:
            seconds, directory = bench.ready(job, workers), bench.folder / "killed"
            for _ in range(bench.place.many(KILLS)):
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                moment = seconds * chance.uniform(0.3, 0.95)
                wrong = attempt(job, directory, workers, moment, chance)
                group = f"{job.name}, {workers}: {who} killed"
                if wrong == "":
                    tally.add(f"{job.name}, {workers}: ended before", "valid")
                else:
                    tally.found(group, wrong, f"after {moment:.2f} s of {seconds:.2f}", valid=True)


def _one_worker(
    bench: Bench, job: Job, directory: Path, workers: str, moment: float, chance: random.Random
) -> str | None:
    """What was wrong, if anything; empty if there was no worker to kill any more."""
    trial = Trial(job, directory, workers)
    time.sleep(moment)
    while not (found := trial.workers()) and trial.process.poll() is None:
        time.sleep(0.01)
    if found:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(found), signal.SIGKILL)
    return _wrong(bench, job, trial) if found else _wrong(bench, job, trial) or ""


def _one_driver(
    bench: Bench, job: Job, directory: Path, workers: str, moment: float, chance: random.Random
) -> str | None:
    trial = Trial(job, directory, workers)
    time.sleep(moment)
    early = trial.process.poll() is not None
    trial.process.kill()
    trial.ended()
    orphans = trial.orphans()
    if orphans:
        return f"{len(orphans)} processes are left"
    if next(directory.glob("cache/**/*.unfinished.safetensors"), None) is not None:
        bench.resumed[job.name] += 1
    return _wrong(bench, job, Trial(job, directory, chance.choice(["2", workers]))) or ("" if early else None)


def _wrong(bench: Bench, job: Job, trial: Trial) -> str | None:
    code, said = trial.ended()
    if code:
        return f"exit {code}: {said}"
    if trial.left() != bench.expected[job.name]:
        return "other bits"
    return "processes are left" if trial.orphans() else None
