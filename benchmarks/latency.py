"""How long a person waits: an edit from the start of the process to its verified patch, by stage.

    python benchmarks/latency.py [MODEL] --facts FILE [--counts 1 4 40] [--rounds 3] [--effort quick] [-- FURTHER]

What stands after -- are further options of factpatch edit, such as --batch-size 10.

Every edit is `factpatch edit` in a process of its own, with the threads of this one's environment. With cold caches
nothing is kept but the converted model: no second moment, no contexts, nothing that the unedited model was asked. With
warm ones the same edit was made before. Medians of the rounds; cold and warm take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from factpatch.model.kept import models_directory

STAGES: dict[str, tuple[str, ...]] = {
    "load": ("load",),
    "moment": ("second_moment", "measure"),
    "contexts": ("contexts",),
    "values": ("values",),
    "write": ("keys", "solve", "write", "regularize"),
    "before": ("verify_before",),
    "after": ("verify_after",),
    "perplexity": ("perplexity",),
}
"""Columns, with the report's stages that each adds up."""


def timed(
    options: argparse.Namespace, count: int, effort: str, folder: Path, environment: dict[str, str], *more: str
) -> float:
    """The seconds of `factpatch edit` in a process of its own, from its start to its end."""
    command = [
        sys.executable, "-m", "factpatch", "edit", options.model, "--facts", options.facts, "--limit", str(count),
        "--effort", effort, "--out", str(folder / "p.safetensors"), *more, *options.further,
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, **environment})
    return time.perf_counter() - start


def edit(cache: Path, options: argparse.Namespace, count: int, folder: Path) -> dict[str, float]:
    """One edit in a process of its own: seconds by column."""
    report = folder / "report.json"
    whole = timed(options, count, options.effort, folder, {"FACTPATCH_CACHE": str(cache)}, "--report", str(report))
    seconds = json.loads(report.read_text("utf-8"))["seconds"]
    found = {name: sum(seconds.get(stage, 0.0) for stage in stages) for name, stages in STAGES.items()}
    # Imports, checks of the arguments and the files: all that the report does not count.
    return {"start": whole - seconds["total"], **found, "rest": seconds["total"] - sum(found.values()), "all": whole}


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments before --, and as `further` those after it."""
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    options = parser.parse_args(own)
    options.further = sys.argv[2 + len(own) :]
    options.facts = os.path.abspath(options.facts)
    return options


def fresh_cache(folder: Path) -> Path:
    """A cache with the converted models of the user's, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    known = models_directory()
    if known.is_dir():
        (folder / "models").symlink_to(known, target_is_directory=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 40, 400])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--warm-only", action="store_true", help="do not measure cold caches")
    options = parsed(parser)
    print(f"{options.model}, {options.effort} effort, threads: {os.environ.get('OMP_NUM_THREADS', os.cpu_count())}")
    print(f"{'facts':>5} {'caches':6}", *(f"{name:>10}" for name in ("start", *STAGES, "rest", "all")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in options.counts:
            rounds: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
            for _ in range(options.rounds):
                cache = folder / "cache"
                if not options.warm_only:
                    rounds["cold"].append(edit(fresh_cache(cache), options, count, folder))
                elif not rounds["warm"]:
                    edit(fresh_cache(cache), options, count, folder)
                rounds["warm"].append(edit(cache, options, count, folder))
            for kind, found in rounds.items():
                if found:
                    columns = (f"{median(one[name] for one in found):10.2f}" for name in found[0])
                    print(f"{count:5} {kind:6}", *columns, flush=True)
    print(f"largest process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
