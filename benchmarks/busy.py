"""What another busy process costs an edit: with threads that sleep while they wait, as the command has them, and not.

    python benchmarks/busy.py [MODEL] --facts FILE [--limit 1] [--rounds 3] [--busy 1] [-- FURTHER]

What stands after -- are further options of factpatch edit. Every edit is `factpatch edit --effort quick` in a process
of its own, with caches that an edit before has warmed. The two ways to wait take turns, first with nothing else
running, then beside `busy` processes of other sessions that only count. Medians of the rounds, in seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from latency import parsed, timed

POLICIES = ("active", "passive")


@contextmanager
def counting(processes: int) -> Iterator[None]:
    """Keep so many cores busy."""
    started = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--limit", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=1, help="how many other processes are busy")
    options = parsed(parser)
    print(f"{options.model}, {options.limit} facts, threads: {os.environ.get('OMP_NUM_THREADS', os.cpu_count())}")
    seconds: dict[tuple[int, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:

        def edit(policy: str) -> float:
            return timed(options, options.limit, "quick", Path(folder), {"OMP_WAIT_POLICY": policy})

        edit(POLICIES[-1])
        for _ in range(options.rounds):
            for busy in (0, options.busy):
                for policy in POLICIES:
                    with counting(busy):
                        seconds[busy, policy].append(edit(policy))
    print(f"{'busy':>5}", *(f"{policy:>10}" for policy in POLICIES), f"{'ratio':>8}")
    for busy in dict.fromkeys((0, options.busy)):
        active, passive = (median(seconds[busy, policy]) for policy in POLICIES)
        print(f"{busy:5} {active:10.1f} {passive:10.1f} {active / passive:8.2f}")


if __name__ == "__main__":
    main()
