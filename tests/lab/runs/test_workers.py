"""Lines of a table among workers: the same files whoever edits, whoever dies; and clear errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from tests.cli.conftest import FACTS, QUICK, interrupt, invoke
from tests.models import SENTENCES, save_tiny
from tests.pool.test_driver import ENVIRONMENT, ROOT, assert_all_end

pytest.importorskip("pyarrow", reason="needs the extra `runs`")
pytest.importorskip("sklearn", reason="needs the extra `runs`")

from factpatch.lab.runs.config import RunConfig, config_from
from factpatch.lab.runs.directory import RunDirectory, RunError
from factpatch.lab.runs.execute import execute
from factpatch.lab.runs.workers import Lines
from factpatch.model.loading import load_language_model
from factpatch.model.replicas import rounding, threads
from factpatch.pool import Processes, WorkerDied
from factpatch.pool.processes import _Process
from factpatch.support.files import plain

DRIVER = """
import sys
from factpatch.lab.runs.directory import RunDirectory
from factpatch.lab.runs.execute import execute
from factpatch.pool import Processes
with Processes(2, 1) as pool:
    execute(RunDirectory(sys.argv[1]), pool=pool)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two methods that share targets and one that collapses, on three facts in two batches, within a budget."""
    folder = tmp_path_factory.mktemp("workers")
    save_tiny(folder / "tiny", "llama")
    (folder / "facts.json").write_text(json.dumps(FACTS), "utf-8")
    (folder / "corpus.txt").write_text("\n\n".join(SENTENCES * 30), "utf-8")
    collapses = {
        "name": "memit",
        "label": "collapses",
        "settings": {"target.steps": 3, "target.stride": 0.0, "target.learning_rate": 1e300},
    }
    return config_from(
        {
            "model": str(folder / "tiny"),
            "methods": [{"name": "memit", "settings": QUICK}, {"name": "rect", "settings": QUICK}, collapses],
            "datasets": [{"facts": str(folder / "facts.json"), "name": "three"}],
            "batch_size": 2,
            "critical_layers": [1, 2],
            "corpus": str(folder / "corpus.txt"),
            "corpus_tokens": 1500,
            "max_perplexity": 1e9,
            "evaluate": {"perplexity": str(folder / "corpus.txt"), "generation": False},
        }
    )


@pytest.fixture(scope="module")
def expected(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that one process carries out."""
    directory = RunDirectory.create(tmp_path_factory.mktemp("expected") / "run", config)
    execute(directory)
    return outcome(directory.path)


def outcome(directory: Path) -> dict[str, Any]:
    """Everything that a run leaves, but for what tells the time, and for locks."""
    timed = {"journal.jsonl", "log.txt", "session.json", "row.json", "run.json", "shared.json", "lock"}
    kept: dict[str, Any] = {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
        and file.name not in timed
        and file.relative_to(directory).parts[0] not in ("targets", "at-work")
    }
    for file in directory.rglob("row.json"):
        record = json.loads(file.read_text("utf-8"))
        kept[str(file)[len(str(directory)) :]] = {
            name: value for name, value in record.items() if "seconds" not in name
        }
    return kept


@pytest.mark.long
def test_lines_have_the_same_files_with_two_processes_and_one_that_dies(
    config: RunConfig, expected: dict[str, Any], tmp_path: Path
) -> None:
    directory, said = RunDirectory.create(tmp_path / "run", config), []
    killed: list[int] = []

    def kill_one(line: str) -> None:
        said.append(line)
        if "among 2 workers" in line:
            killer.start()

    with Processes(2, 1) as pool:
        killer = Thread(target=kill_the_first, args=(directory.path / "rows" / "three" / "0" / "memit", pool, killed))
        execute(directory, kill_one, pool=pool)
    killer.join()
    assert killed
    assert outcome(directory.path) == expected
    assert [line for line in said if line.startswith("collapses on three, seed 0: failed: ")]
    assert sum("is done; " in line for line in said) == 2
    assert any("3 of 3 lines" in line for line in said)
    log = (directory.path / "log.txt").read_text("utf-8").splitlines()
    # With a time, whole; the other line's worker may have died before it could write that.
    assert sum("rect on three, seed 0: batch 1 of 2 edited; about " in line for line in log) == 1
    assert all(line[:2] == "20" and line[19:21] == "  " for line in log)
    # The values of both batches were found once for both methods, and nobody waits any more.
    assert not list((directory.path / "targets").glob("*.lock"))


@pytest.mark.long
def test_a_driver_that_is_killed_leaves_no_worker_and_the_run_ends_as_another(
    config: RunConfig, expected: dict[str, Any], tmp_path: Path
) -> None:
    directory = RunDirectory.create(tmp_path / "run", config)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(directory.path)], cwd=ROOT, env=ENVIRONMENT)
    wait_for(lambda: any(directory.path.glob("rows/three/0/*/patches/*")), driver)
    workers = children(driver.pid)
    driver.kill()
    driver.wait()
    assert workers
    with Processes(2, 1) as pool:  # at once, while the workers may still be there
        execute(directory, pool=pool)
    assert_all_end(workers)
    assert outcome(directory.path) == expected


@pytest.mark.parametrize(
    ("unedited", "shard", "named"),
    [(False, 1, "rect on three, seed 0"), (True, 0, "the unedited model on three, seed 0")],
)
def test_what_ends_its_workers_is_named(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unedited: bool, shard: int, named: str
) -> None:
    directory = RunDirectory.create(tmp_path / "run", config)
    lines = Lines(str(directory.path), str(tmp_path), config, "", "cpu", None)

    def died(work: Lines, *given: Any) -> list[None]:
        if work.unedited == unedited:
            raise WorkerDied(f"shard {shard} ended 3 workers", shard, -9)
        return []

    monkeypatch.setattr("factpatch.lab.runs.execute._prepared", lambda *given: lines)
    with Processes(2, 1) as pool:
        monkeypatch.setattr(pool, "map", died)
        with pytest.raises(RunError, match=f"^{named}: shard {shard} ended 3 workers"):
            execute(directory, pool=pool)


def test_what_a_worker_finds_otherwise_is_an_error(config: RunConfig, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", config)
    lines = Lines(str(directory.path), str(tmp_path), config, "of another processor", "cpu", None)
    with pytest.raises(RunError, match="rounds otherwise"):
        lines.open()
    elsewhere = replace(lines, directory=str(tmp_path / "nowhere"))
    with pytest.raises(RunError, match=r"nowhere: a worker on .* does not find this directory.*same absolute paths"):
        elsewhere.open()
    moved = replace(lines, config=config.model_copy(update={"model": "./no-such-model"}))
    with pytest.raises(RunError, match=r"cannot load what it needs: .*no-such-model.*same absolute paths"):
        moved.open()


def test_relative_paths_start_where_the_command_does(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(config.model).parent
    directory = RunDirectory.create(tmp_path / "run", config)
    relative = config.model_copy(update={"model": "./tiny"})
    with threads(directory.record["threads"]):
        expected = rounding(load_language_model(config.model))
    monkeypatch.chdir(tmp_path)  # as a worker on Ray, which begins elsewhere
    opened = Lines(str(directory.path), str(folder), relative, expected, "cpu", None).open()
    assert [plan.method.label for plan in opened.plans] == ["memit", "rect", "collapses"]
    assert Path.cwd() == folder


@pytest.mark.long
def test_a_run_that_begins_with_workers_keeps_to_their_threads_and_others_to_their_own(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(config.model).parent)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    record = plain(config.model_dump(mode="json"))
    quick = {"perplexity": False, "generation": False, "written": False}
    record.update(model="./tiny", methods=record["methods"][:1], evaluate=quick, max_perplexity=None)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record), "utf-8")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with monkeypatch.context() as patched:
            interrupt(patched, "factpatch.lab.runs.runner.Runner.attempt")
            assert invoke(tmp_path, "run", tmp_path / "config.yaml", "--out", tmp_path / "two").exit_code == 130
        for name, number in (("one", 1), ("two", 2)):
            done = invoke(tmp_path, "run", tmp_path / "config.yaml", "--out", tmp_path / name, "--workers", "2")
            assert done.exit_code == 0, done.output
            assert "memit on three, seed 0: is done; 1 of 1 lines" in done.output
            assert ("began with 2 threads, so each worker takes as many" in done.output) == (number == 2)
            assert json.loads((tmp_path / name / "run.json").read_text("utf-8"))["threads"] == number
    finally:
        torch.set_num_threads(before)


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        assert driver is None or driver.poll() is None, "the driver has ended"
        time.sleep(0.005)


def kill_the_first(line: Path, pool: Processes, killed: list[int]) -> None:
    """Kill the worker that carries out the first line, once it has written its first patch."""
    wait_for((line / "patches" / "0001.safetensors").exists)
    for worker in pool._crew:
        if isinstance(worker, _Process) and worker.task is not None and worker.task.index == 0:
            os.kill(worker._process.pid, signal.SIGKILL)
            killed.append(worker._process.pid)


def children(process: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()}
