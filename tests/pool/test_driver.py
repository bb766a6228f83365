"""Drivers of all kinds, and how workers end with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import factpatch

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(factpatch.__file__).parents[1]), str(ROOT)])}

SCRIPT = """
import sys
from factpatch.pool import pool_from
from tests.pool.works import Calls
print("the script runs", file=sys.stderr)
with pool_from(2) as pool:
    print(sum(pool.map(Calls(), [("echo", number) for number in range(5)])))
"""

LEAVES_OPEN = """
from factpatch.pool import pool_from
from tests.pool.works import Calls
pool = pool_from(2)
print(*pool.map(Calls(), [("pid",)] * 5))
"""

COMPUTES = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs are started without
from factpatch.pool import pool_from
from tests.pool.works import Calls
pool = pool_from(sys.argv[1])
try:
    work = Calls(directory=Path(os.environ["DIRECTORY"]))
    results = pool.map(work, [("pid",), *[("compute",)] * 2])
    print(next(results), flush=True)
    if sys.argv[2:] == ["fork"] and not os.fork():
        time.sleep(600)
    next(results)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(*pool.map(work, [("echo", "and on")]), flush=True)
"""

DEFINES = """
from dataclasses import dataclass
from factpatch.pool import Processes

@dataclass(frozen=True)
class Mine:
    key: str = "mine"
    def open(self):
        return lambda work, shard: shard

print(list(Processes(2).map(Mine(), [1, 2, 3])))
"""


def run(*arguments: str, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        input=stdin, capture_output=True, text=True, check=False, timeout=300, cwd=cwd, env=ENVIRONMENT,
    )  # fmt: skip


@pytest.mark.parametrize("how", ["stdin", "command", "file", "module"])
def test_a_script_needs_no_guard_and_runs_once(how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = {"stdin": ["-"], "command": ["-c", SCRIPT], "file": ["script.py"], "module": ["-m", "script"]}[how]
    done = run(*arguments, stdin=SCRIPT if how == "stdin" else "", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
    assert done.stderr == "the script runs\n"


def test_a_work_of_the_script_itself_is_refused(tmp_path: Path) -> None:
    done = run("-c", DEFINES)
    assert done.returncode == 1
    assert "ValueError: a worker cannot read the work: " in done.stderr
    assert "Define its class, and whatever else it holds, in a module that can be imported" in done.stderr


def test_a_pool_that_nobody_closes_ends_with_the_driver() -> None:
    done = run("-c", LEAVES_OPEN)
    assert done.returncode == 0, done.stderr
    assert_all_end({int(process) for process in done.stdout.split()}, within=0)


@pytest.mark.parametrize("forks", [False, True])
def test_workers_end_with_a_driver_that_is_killed(forks: bool, tmp_path: Path) -> None:
    driver, first = started("2", *(["fork"] if forks else []), directory=tmp_path)
    workers = computing(tmp_path) | {first}
    assert len(workers) == 2
    driver.kill()
    driver.wait()
    assert_all_end(workers)
    if forks:
        os.killpg(driver.pid, signal.SIGKILL)  # what the driver forked, which held the pipes open


def test_ray_ends_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra: pip install 'factpatch[ray]'")
    driver, first = started("ray:2", directory=tmp_path)
    workers = computing(tmp_path) | {first}
    driver.kill()
    driver.wait()
    assert_all_end(workers)


def test_an_interrupt_ends_the_workers_and_leaves_the_driver_its_pool(tmp_path: Path) -> None:
    driver, first = started("2", directory=tmp_path)
    workers = computing(tmp_path) | {first}
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    assert driver.stdout is not None
    assert driver.stdout.readline() == "interrupted\n"
    assert_all_end(workers, within=0)
    assert driver.stdout.readline() == "and on\n"
    assert driver.wait(300) == 0


def started(*arguments: str, directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Start a driver, in a group of its own, whose workers compute; return it and one worker's id."""
    environment = {**ENVIRONMENT, "DIRECTORY": str(directory)}
    driver = subprocess.Popen(
        [sys.executable, "-c", COMPUTES, *arguments],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, start_new_session=True,
    )  # fmt: skip
    assert driver.stdout is not None
    return driver, int(driver.stdout.readline())


def computing(directory: Path) -> set[int]:
    """Wait until two workers compute, and return them."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = {int(path.name) for path in directory.iterdir()}
        if len(found) == 2:
            return found
        time.sleep(0.05)
    raise AssertionError("the workers do not compute")


def assert_all_end(processes: set[int], within: float = 60) -> None:
    """Processes end within so many seconds; a zombie has ended."""
    assert processes
    end = time.monotonic() + within
    while left := {process for process in processes if running(process)}:
        assert time.monotonic() < end, f"{left} of {processes} run on"
        time.sleep(0.05)


def running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
