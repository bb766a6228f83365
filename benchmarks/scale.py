"""What workers gain, in one run on one machine, and a simulation of more of them on a larger model.

    python benchmarks/scale.py --quick                      # four minutes
    python benchmarks/scale.py --facts counterfact.json     # 40 facts, three rounds: three quarters of an hour
    python benchmarks/scale.py --quick --plot scale.svg     # and the simulation, from what was measured

Second moments, values and verification of the embedded model, and a run of four lines, in this process and with
workers of one thread each, in turns: the median seconds of each, the ratio of one worker to two, and whether all gave
the same bytes. Then the parts of which the simulation consists. With as many busy cores as workers the ratios mean
nothing; look at the load first.
"""

from __future__ import annotations

import argparse
import hashlib
import operator
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from factpatch import Editor, Fact, load_facts, verify
from factpatch.data import demo_facts, save_facts
from factpatch.lab.drawing.charts import check_plot_file, figure, save_plot
from factpatch.lab.runs.config import config_from
from factpatch.lab.runs.directory import RunDirectory
from factpatch.lab.runs.execute import execute
from factpatch.lab.scale.costs import Costs
from factpatch.lab.scale.figures import speedups
from factpatch.lab.scale.machines import KINDS, Machines
from factpatch.lab.scale.shape import shape_like, shape_named
from factpatch.lab.scale.simulate import COUNTS, last_that_pays
from factpatch.lab.scale.work import Tokens, batch_of, pass_of
from factpatch.model.loading import load_language_model
from factpatch.model.replicas import Replicas
from factpatch.model.weights import content_hash
from factpatch.pool import Local, OnRay, Pool, Processes
from factpatch.statistics.corpus import corpus_from
from factpatch.statistics.second_moment import SecondMoment
from factpatch.strategies.least_squares import EarlierKeys, System
from factpatch.values.shards import InShards

MODEL = "smollm2-135m"
SHAPE = "llama-3-8b"
EMPTY = 64
"""How many shards without work are timed."""


# A shard's work when only the way there and back counts: workers can import it, as they cannot what a script defines.
nothing = operator.is_
ROWS = ("statistics", "values", "verification", "grid")
ASKED, LINE = 16, 12
"""How many facts are verified, and how many a line of a run edits, at most."""


@dataclass(frozen=True)
class Side:
    """The model and its copies in a pool."""

    name: str
    replicas: Replicas


class Bench:
    """The same work on every side."""

    def __init__(self, facts: Sequence[Fact], tokens: int, steps: int) -> None:
        self.facts, self.tokens, self.steps = facts, tokens, steps
        self.lm = load_language_model(MODEL)
        self.editor = Editor(self.lm, method="memit-blue", settings={"target.steps": steps}, progress=False)
        # Lines of a run find these in the cache.
        SecondMoment.read(self.lm, self.editor.critical_layers, corpus_from(None), tokens)

    def statistics(self, replicas: Replicas) -> str:
        """Second moments of all critical layers."""
        found = SecondMoment.read(
            self.lm, self.editor.critical_layers, corpus_from(None), self.tokens, cache=False, replicas=replicas
        )
        return digest([moment.matrix for moment in found.values()])

    def values(self, replicas: Replicas) -> str:
        """Values at the first target layer."""
        editor = self.editor
        layer = editor.target_layers[0]
        found = InShards(replicas)(self.lm, self.facts, layer, editor.method.optimized, editor.contexts)
        return digest([found.values])

    def verification(self, replicas: Replicas) -> str:
        """What the unedited model says to every fact."""
        found = verify(self.lm, None, self.facts[:ASKED], replicas=replicas)
        return hashlib.sha256("".join(map(repr, found.after)).encode()).hexdigest()[:12]

    def grid(self, replicas: Replicas) -> str:
        """A run of four lines of different facts, which share nothing; workers load models of their own for it."""
        with tempfile.TemporaryDirectory() as folder:
            save_facts(self.facts, Path(folder) / "facts.json")
            drawn = {"sample": True, "limit": min(LINE, len(self.facts))}
            config = {
                "model": MODEL,
                "methods": [{"name": "memit-blue", "settings": {"target.steps": self.steps}}],
                "datasets": [{"facts": str(Path(folder) / "facts.json"), **drawn}],
                "seeds": [0, 1, 2, 3],
                "corpus_tokens": self.tokens,
                "evaluate": {"perplexity": False, "written": False},
            }
            directory = RunDirectory.create(Path(folder) / "run", config_from(config))
            execute(directory, pool=replicas.pool)
            patches = sorted((directory.path / "rows").rglob("patches/*.safetensors"))
            if len(patches) != 4:
                raise RuntimeError(f"{len(patches)} of four lines were edited; {directory.path / 'log.txt'} says why")
            return hashlib.sha256(b"".join(patch.read_bytes() for patch in patches)).hexdigest()[:12]


def digest(tensors: Sequence[Tensor]) -> str:
    return hashlib.sha256("".join(map(content_hash, tensors)).encode()).hexdigest()[:12]


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def compare(bench: Bench, sides: Sequence[Side], rows: Sequence[str], rounds: int) -> dict[str, float]:
    """Time rows on all sides in turns; return the median seconds of each in this process."""
    print(f"| row | {' | '.join(f'{side.name}, s' for side in sides)} | one / two | bytes |")
    print(f"|---|{'---|' * len(sides)}---|---|")
    medians: dict[str, float] = {}
    for row in rows:
        if row != "grid":
            warm(sides)
        took: dict[str, list[float]] = {side.name: [] for side in sides}
        hashes = set()
        for turn in range(rounds):
            # Each round begins with another side, so that none always follows the same one.
            for side in (*sides[turn % len(sides) :], *sides[: turn % len(sides)]):
                seconds, found = seconds_of(partial(getattr(bench, row), side.replicas))
                took[side.name].append(seconds)
                hashes.add(found)
        middle = {name: statistics.median(times) for name, times in took.items()}
        ratio = middle["1 process"] / middle["2 processes"]
        same = f"same, {hashes.pop()}" if len(hashes) == 1 else f"DIFFER: {', '.join(sorted(hashes))}"
        print(f"| {row} | {' | '.join(f'{each:.2f}' for each in middle.values())} | {ratio:.2f} | {same} |", flush=True)
        medians[row] = middle["here"]
    return medians


def warm(sides: Sequence[Side]) -> None:
    """Have workers load their copies, which those of a run displace."""
    for side in sides:
        list(side.replicas.map(nothing, range(4)))


def latency(side: Side) -> float:
    """Seconds of a shard without work."""
    took, _ = seconds_of(lambda: list(side.replicas.map(nothing, range(EMPTY))))
    return took / EMPTY


def carried(bench: Bench, side: Side) -> tuple[int, float]:
    """Bytes of edited weights that a map sends to a worker, and the seconds that a map of one empty shard takes."""
    lm, layers = bench.lm, bench.editor.critical_layers
    before = {layer: lm.weight(layer).clone() for layer in layers}
    list(side.replicas.map(nothing, [0]))
    try:
        for layer in layers:
            lm.weight(layer).mul_(2)
        took, _ = seconds_of(lambda: list(side.replicas.map(nothing, [0])))
    finally:
        for layer, weight in before.items():
            lm.weight(layer).copy_(weight)
    return sum(weight.numel() * weight.element_size() for weight in before.values()), took


def copying_rate() -> float:
    """Bytes a second at which weights are hashed."""
    weight = torch.zeros(2**24)  # 64 MiB
    return weight.numel() * 4 / min(seconds_of(lambda: content_hash(weight))[0] for _ in range(3))


def solve_rate(d_key: int, facts: int = 100) -> float:
    """Operations a second of a solve that is remembered, with random keys."""
    torch.manual_seed(0)
    memory = EarlierKeys(System(torch.eye(d_key, dtype=torch.float64)))
    keys, residual = torch.randn(facts, d_key), torch.randn(facts, 64)
    memory.remember(memory.trace(keys, residual))  # makes its own factor

    def batch() -> None:
        memory.solve(keys, residual)
        memory.remember(memory.trace(keys, residual))

    took, _ = seconds_of(batch)
    return (4 * facts + 48) * d_key**2 / took


def parts(bench: Bench, sides: Sequence[Side], values: float, d_key: int) -> Machines:
    """Measure what the simulation consists of."""
    tokens = Tokens.counted(bench.lm, bench.facts, bench.editor.contexts)
    batch = replace(
        batch_of(shape_named(MODEL), "memit-blue", len(bench.facts), device="cpu", tokens=tokens),
        evaluations=bench.steps,
    )
    rate = len(bench.facts) * batch.value_operations(bench.editor.target_layers[0]) / values
    there = replace(KINDS["cpu"], rate=rate, copying=copying_rate(), solve_rate=solve_rate(d_key))
    print(f"\nvalues: {there.rate / 1e9:.1f} GFLOP/s on one thread, by operations counted without attention")
    print(f"solves at d_key {d_key}, 100 facts: {there.solve_rate / 1e9:.1f} GFLOP/s in float64")
    print(f"hashing weights: {there.copying / 1e9:.2f} GB/s")
    for side in sides[1:]:
        waited = latency(side)
        size, took = carried(bench, side)
        print(f"{side.name}: {1e3 * waited:.2f} ms a shard without work; {size / 1e6:.1f} MB a map in {took:.2f} s")
        there = replace(there, latency=waited) if side.name == "2 processes" else there
    return there


def simulate(there: Machines, plot: Path | None) -> None:
    """Print, and draw, what more workers would gain for a model of 8B."""
    shape = shape_like(SHAPE)
    kinds = {
        "CPU, one thread as here, 10 Gbit/s": ("cpu", there),
        "CPU, one thread as here, 1 Gbit/s": ("cpu", replace(there, network=1e9 / 8)),
        "GPU of 400 TFLOP/s (not measured)": ("cuda", replace(there, rate=KINDS["cuda"].rate)),
    }
    panels = []
    for facts in (100, 1000):
        print(f"\n{facts} facts on {shape.name}, memit-blue, simulated: times as fast as one process")
        print(f"| workers | {' | '.join(map(str, COUNTS))} | pays up to |\n|---|{'---|' * len(COUNTS)}---|")
        curves = {}
        for label, (device, machines) in kinds.items():
            batch = batch_of(shape, "memit-blue", facts, device=device)
            curves[label] = points = Costs(batch, pass_of(batch), machines).by_workers()
            gains = " | ".join(f"{point.speedup:.2f}" for point in points)
            print(f"| {label} | {gains} | {last_that_pays(points).workers} |")
        panels.append(speedups(f"{facts} facts, {shape.name}", curves))
    if plot is not None:
        save_plot(figure(panels, title="Simulated: a batch with workers", size=(4.4, 3.6)), plot)
        print(f"\n{plot}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="12 facts, 2,048 tokens, 3 evaluations, one round")
    parser.add_argument("--facts", type=Path, help="by default those of the demo, which are 24")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--rounds", type=int, help="3, or 1 with --quick")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="all by default")
    parser.add_argument("--no-ray", action="store_true", help="leave out workers on Ray, as where it is not installed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the simulation")
    options = parser.parse_args()
    if options.plot is not None:
        check_plot_file(options.plot)
        if "values" not in options.rows:
            parser.error("--plot: the simulation needs what the row `values` takes")
    torch.set_num_threads(1)
    facts = demo_facts() if options.facts is None else load_facts(options.facts)
    bench = Bench(facts[:12], 2048, 3) if options.quick else Bench(facts[: options.limit], 15360, 4)
    print(f"{len(bench.facts)} facts, {bench.tokens} tokens, {bench.steps} evaluations; load {os.getloadavg()[0]:.1f} ")
    makers: dict[str, Callable[[], Pool]] = {
        "here": Local,
        "1 process": lambda: Processes(1, 1),
        "2 processes": lambda: Processes(2, 1),
    }
    if find_spec("ray") is not None and not options.no_ray:
        import ray

        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
        makers |= {f"ray:{workers}": partial(OnRay, workers, threads=1) for workers in (1, 2)}
    with ExitStack() as held:
        sides = [Side(name, Replicas(bench.lm, held.enter_context(make()))) for name, make in makers.items()]
        _ = bench.editor.contexts
        medians = compare(bench, sides, options.rows, options.rounds or (1 if options.quick else 3))
        if "values" not in medians:
            return
        warm(sides)
        there = parts(bench, sides, medians["values"], 2048 if options.quick else 14336)
    simulate(there, options.plot)


if __name__ == "__main__":
    main()
