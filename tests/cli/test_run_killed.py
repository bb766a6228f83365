"""Runs in processes of their own that are killed: nothing is lost, and nothing is left over."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.conftest import FACTS, numbers

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from factpatch.lab.runs.results import read_results

if not hasattr(os, "fork"):
    pytest.skip("needs processes that fork", allow_module_level=True)

KILLS = 10
# Imports everything, and runs each command that it is given in a child, so that no moment is spent on imports.
NURSERY = """
import json, os, sys
import pandas, pyarrow.parquet, sklearn.feature_extraction.text, sklearn.metrics
import transformers.models.llama.modeling_llama
import factpatch.cli.main, factpatch.lab.runs.execute, factpatch.lab.runs.outputs

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.argv = ["factpatch", *json.loads(line)]
        factpatch.cli.main.main()
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Starts commands one after another and returns how they ended."""

    def __init__(self, cache: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FACTPATCH_CACHE": str(cache)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._said() == "ready"

    def start(self, *arguments: object) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self.process.stdin.flush()
        return int(self._said())

    def ended(self) -> int:
        return int(self._said())

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("cache"))
    yield made
    made.process.stdin.close()  # type: ignore[union-attr]
    made.process.wait()


@pytest.fixture
def config_file(config: dict[str, Any], tmp_path: Path) -> Path:
    """A run of many small steps: three batches of one fact under two methods, and all kinds of files."""
    fact = FACTS[0]
    known = [
        {"prompt": f"The {subject} is in", "template": "The {} is in", "subject": subject, "attribute": "x"}
        for subject in ("Eiffel Tower", "city of Rome", "capital of France")
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(known), "utf-8")
    facts = [
        {**fact, "id": f"fact {place}", "subject": subject, "generation_prompts": [f"{subject} is"]}
        for place, subject in enumerate(("Danielle Darrieux", "Ada Lovelace", "Michael Jordan"))
    ]
    (tmp_path / "facts.json").write_text(json.dumps(facts), "utf-8")
    config.update(methods=config["methods"][1:], batch_size=1, datasets=[{"facts": str(tmp_path / "facts.json")}])
    config["evaluate"].update(text={"facts": 2, "tokens": 4}, drift={"prompts": str(tmp_path / "prompts.json")})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    return path


def files(directory: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(directory))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def outcome(directory: Path) -> dict[str, bytes]:
    """Everything that a run leaves, but for what tells the time."""
    timed = {"journal.jsonl", "log.txt", "session.json", "row.json", "run.json", "shared.json", "lock"}
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.name not in timed and file.parent.name != "targets"
    }


@pytest.mark.long
@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_moments_ends_as_one_that_is_not(
    nursery: Nursery, config_file: Path, tmp_path: Path
) -> None:
    """The moments are spread over the run by the files that are there, so that they do not depend on the machine."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begun = time.monotonic()
    nursery.start("run", config_file, "--out", whole)
    assert nursery.ended() == 0
    count = files(whole)
    pace = (time.monotonic() - begun) / count
    chance = random.Random(0)
    for number in range(KILLS):
        # Up to the last tenth, in which a run might end by itself before it is killed.
        mark = 0.9 * count * (number + chance.random()) / KILLS
        process = nursery.start("run", config_file, "--out", killed)
        wait_for(lambda mark=mark: files(killed) >= mark)  # type: ignore[misc]
        time.sleep(chance.random() * pace)
        os.kill(process, signal.SIGKILL)
        assert nursery.ended() == -signal.SIGKILL
    nursery.start("run", config_file, "--out", killed)
    assert nursery.ended() == 0
    assert read_results(whole).failed == {}
    assert numbers(killed) == numbers(whole)
    assert len(list(killed.rglob("patches/*.safetensors"))) == 6
    assert outcome(killed) == outcome(whole)
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.slow
def test_a_second_process_is_kept_out_until_the_first_is_gone_even_killed(
    nursery: Nursery, config_file: Path, run: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = nursery.start("run", config_file, "--out", out)
    try:
        wait_for((out / "log.txt").is_file)
        os.kill(process, signal.SIGSTOP)
        before = {**outcome(out), "log": (out / "log.txt").read_bytes()}
        result = run("run", config_file, "--out", out)
        assert result.exit_code == 1
        assert "another process is using this run" in result.output
        assert {**outcome(out), "log": (out / "log.txt").read_bytes()} == before
    finally:
        os.kill(process, signal.SIGKILL)
    assert nursery.ended() == -signal.SIGKILL
    result = run("run", config_file, "--out", out)
    assert result.exit_code == 0, result.output
