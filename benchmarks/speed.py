"""factpatch beside the published procedure, plainly written (benchmarks/plain.py): the same work, in turns.

Prints for each row the median seconds of both sides and their ratio, floating-point operations and what share of the
machine's matrix-product rate they ran at, and the largest difference between the two results; last the peak memory.

    python benchmarks/speed.py smollm2-135m --facts counterfact.json --limit 8 --repeat 3
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plain
import torch
from solves import PROBLEMS, RandomBatch, stream
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from factpatch import Editor, Ridge, SecondMoment, load_facts
from factpatch.evaluation.verify import read_facts, verify
from factpatch.model.loading import load_language_model
from factpatch.model.precision import PRECISIONS, precision_for
from factpatch.model.tokens import tokenize
from factpatch.statistics.corpus import corpus_from
from factpatch.values.optimize import optimize_values

ROWS = ("values", "batch", "evaluation", "statistics", "solve", "stream", "precisions")
WITHOUT_MODEL = {"solve", "stream"}


@dataclass(frozen=True)
class Outcome:
    """What both sides took, and how far apart their results are."""

    row: str
    plainly: list[float]
    ours: list[float]
    operations: tuple[int, int] | None = None
    difference: str = ""


class Side:
    """One side of a row: run once to count operations, then in turns with the other."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.seconds: list[float] = []
        self.operations = 0

    def count(self) -> None:
        counter = FlopCounterMode(display=False)
        with counter:
            self.result = self.work()
        self.operations = counter.get_total_flops()

    def time(self) -> None:
        gc.collect()
        start = now()
        self.result = self.work()
        self.seconds.append(now() - start)


def now() -> float:
    """The time when all that a device was asked for is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def in_turns(
    row: str,
    ours: Side,
    plainly: Side,
    repeat: int,
    difference: Callable[[Any, Any], str],
    operations: tuple[int, int] | None = None,
    count: bool = True,
) -> Outcome:
    """Time both sides alternately, ours first.

    Args:
        operations: of the plain side and ours, where they are known; counted otherwise, in one more run of each.
        count: whether to count them at all.
    """
    for _ in range(repeat):
        ours.time()
        plainly.time()
    far = difference(ours.result, plainly.result)
    if count and operations is None:
        # Counted apart from the timing, which counting slows.
        ours.count()
        plainly.count()
        operations = plainly.operations, ours.operations
    return Outcome(row, plainly.seconds, ours.seconds, operations, far)


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of the best of ten products of ordinary size."""
    rows, width = (1024, 1536) if device.type == "cpu" else (8192, 4096)
    left = torch.randn(rows, width, dtype=dtype, device=device)
    right = torch.randn(width, width, dtype=dtype, device=device)
    best = 0.0
    for _ in range(10):
        start = now()
        for _ in range(4):
            left @ right
        best = max(best, 4 * 2 * rows * width * width / (now() - start))
    return best


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


class Bench:
    """The rows, on one model and one set of facts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.facts = load_facts(options.facts, options.limit)
        self.repeat, self.precision, self.effort = options.repeat, options.precision, options.effort
        self.lm = load_language_model(options.model, dtype=options.dtype, device=options.device)
        self.model, self.tokenizer = self.lm.model.eval().requires_grad_(False), self.lm.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.editor = Editor(
            self.lm, method="memit-blue", effort="published", settings={"target.steps": options.steps}, progress=False
        )
        method = self.editor.method
        assert isinstance(method.solver, Ridge)
        self.settings = plain.Settings(
            self.editor.critical_layers, self.editor.contexts, method.solver.weight, method.target.steps,
            method.target.learning_rate, method.target.clamp,
        )  # fmt: skip
        ends = (self.settings.critical_layers[0], self.settings.critical_layers[-1])
        self.moments = {
            layer: moment.matrix for layer, moment in SecondMoment.read(self.lm, ends, corpus_from(None)).items()
        }

    def values(self) -> Outcome:
        """Target values at the first critical layer."""
        layer, target = self.settings.critical_layers[0], self.editor.method.target

        def plainly() -> tuple[Tensor, list[int]]:
            found = [
                plain.optimize_value(self.model, self.tokenizer, fact, layer, self.settings) for fact in self.facts
            ]
            return torch.stack([value for value, _ in found]).cpu(), [evaluations for _, evaluations in found]

        def ours() -> tuple[Tensor, list[int]]:
            precision = precision_for(self.lm, self.precision)
            found = optimize_values(self.lm, self.facts, layer, target, self.settings.contexts, precision=precision)
            return found.values.cpu(), found.evaluations.tolist()

        return in_turns("values", Side(ours), Side(plainly), self.repeat, self._compare_values)

    def batch(self) -> Outcome:
        """MEMIT with BLUE end to end, without statistics; both sides begin with the unedited weights."""
        layers = (self.settings.critical_layers[0], self.settings.critical_layers[-1])
        originals = {layer: self.lm.weight(layer).clone() for layer in layers}

        def restored() -> None:
            for layer, weight in originals.items():
                self.lm.weight(layer).copy_(weight)

        def plainly() -> Any:
            found = plain.edit_blue(self.model, self.tokenizer, self.facts, self.moments, self.settings)
            restored()
            return found

        def ours() -> Any:
            targets = self._edit(self.precision, self.effort).edits[0].targets
            restored()
            return {layer: (at.values.cpu(), at.evaluations.tolist()) for layer, at in targets.items()}

        def compare(found: Any, expected: Any) -> str:
            values, evaluations = expected[layers[0]]
            return self._compare_values(found[layers[0]], (values.cpu(), evaluations))

        # Nearly all of its operations are those of the values row, and the plain side would run for as long again.
        return in_turns("batch", Side(ours), Side(plainly), self.repeat, compare, count=False)

    def _edit(self, precision: str | None, effort: str = "published") -> Editor:
        """Edit the facts, and leave them in the model."""
        published = {"method": self.editor.method, "contexts": self.settings.contexts}
        chosen = published if effort == "published" else {"method": "memit-blue", "effort": effort}
        editor = Editor(
            self.lm, **chosen, second_moments=self.moments, critical_layers=self.settings.critical_layers,
            precision=precision, progress=False,
        )  # fmt: skip
        editor.edit(self.facts)
        return editor

    def precisions(self) -> Outcome:
        """factpatch against itself: one batch in the default precision (in place of the plain side) and in fast."""

        def edited(precision: str | None) -> list[tuple[str, float]]:
            editor = self._edit(precision)
            summary = verify(self.lm, None, self.facts, answers=False).summary()
            editor.undo()
            return [(name, summary[name]["after"]) for name in ("efficacy", "generalization", "specificity")]

        def compare(fast: Any, default: Any) -> str:
            return "; ".join(f"{name} {a:.1f} -> {b:.1f}" for (name, a), (_, b) in zip(default, fast, strict=True))

        sides = Side(lambda: edited("fast")), Side(lambda: edited(self.precision))
        return in_turns("precisions", *sides, self.repeat, compare, count=False)

    @staticmethod
    def _compare_values(found: tuple[Tensor, list[int]], expected: tuple[Tensor, list[int]]) -> str:
        """The largest relative difference of facts with equally many evaluations, and how many have not."""
        same = [index for index, (a, b) in enumerate(zip(found[1], expected[1], strict=True)) if a == b]
        worst = max((relative(found[0][index], expected[0][index]) for index in same), default=float("nan"))
        return f"{worst:.1e} relative; {len(found[1]) - len(same)} of {len(found[1])} stopped elsewhere"

    def evaluation(self) -> Outcome:
        """NLL of both objects behind prompt, paraphrases and neighbors."""

        def plainly() -> list[float]:
            return [nll for fact in self.facts for nll in plain.evaluate(self.model, self.tokenizer, fact)]

        def ours() -> list[float]:
            readings = read_facts(self.lm, self.facts, answers=False)
            probes = [probe for one in readings for probe in (one.rewrite, *one.paraphrases, *one.neighbors)]
            return [nll for probe in probes for nll in (probe.nll_new, probe.nll_true) if nll is not None]

        def compare(found: list[float], expected: list[float]) -> str:
            assert len(found) == len(expected)
            return f"{max(abs(a - b) for a, b in zip(found, expected, strict=True)):.1e} nats"

        return in_turns("evaluation", Side(ours), Side(plainly), self.repeat, compare)

    def statistics(self) -> Outcome:
        """The second moment of all critical layers, from 4,096 tokens."""
        texts = "\n".join(corpus_from(None).documents())
        ids = tokenize(self.tokenizer, [texts])[0][:4096]
        windows = [ids[at : at + 512] for at in range(0, len(ids), 512)]
        documents = [self.tokenizer.decode(window) for window in windows]
        layers = self.settings.critical_layers

        def plainly() -> dict[int, Tensor]:
            return {layer: plain.second_moment(self.model, windows, layer).cpu() for layer in layers}

        def ours() -> dict[int, Tensor]:
            found = SecondMoment.read(self.lm, layers, corpus_from(documents), 4096, cache=False)
            return {layer: moment.matrix for layer, moment in found.items()}

        def compare(found: dict[int, Tensor], expected: dict[int, Tensor]) -> str:
            return f"{max(relative(found[layer], expected[layer]) for layer in layers):.1e} relative"

        return in_turns("statistics", Side(ours), Side(plainly), self.repeat, compare)


def solves(d_key: int, d_value: int, facts: int, earlier: int, repeat: int) -> Iterator[Outcome]:
    """Ridge and null space on random data, one at a time in memory."""
    for problem in PROBLEMS:
        yield solve(RandomBatch(problem(d_key), d_value, facts, earlier), repeat)


def solve(batch: RandomBatch, repeat: int) -> Outcome:
    def compare(found: Tensor, expected: Tensor) -> str:
        return f"{relative(found, expected):.1e} relative"

    sides = Side(batch.ours), Side(batch.plainly)
    return in_turns(f"solve, {batch.problem.name}", *sides, repeat, compare, batch.operations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="and --facts: for all rows but solve and stream")
    parser.add_argument("--facts", type=Path)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--effort", default="published", help="of our side of the batch; the other is always published")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--precision", choices=PRECISIONS, help="of our side; the model's by default")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS[:-1]))
    parser.add_argument("--solve", nargs=4, type=int, default=(4096, 1024, 100, 2000),
                        metavar=("D_KEY", "D_VALUE", "FACTS", "EARLIER"))  # fmt: skip
    parser.add_argument("--stream", nargs=3, type=int, default=(2048, 100, 10000),
                        metavar=("D_KEY", "FACTS", "TOTAL"))  # fmt: skip
    options = parser.parse_args()
    bench = None
    if set(options.rows) - WITHOUT_MODEL:
        if options.model is None or options.facts is None:
            parser.error("all rows but solve and stream need a model and --facts")
        bench = Bench(options)
    cpu = torch.device("cpu")
    device, dtype = (cpu, torch.float32) if bench is None else (bench.lm.device, bench.lm.dtype)
    # Solves run in float64 on the CPU, wherever the model is.
    rates = {"model": matrix_rate(dtype, device), "solve": matrix_rate(torch.float64, cpu)}
    print(f"{torch.get_num_threads()} threads; matrix products in GFLOP/s: "
          f"{dtype} on {device} {rates['model'] / 1e9:.0f}, float64 on the CPU {rates['solve'] / 1e9:.0f}")  # fmt: skip
    print("row                  plain s   ours s   ratio   plain GFLOP (share)   ours GFLOP (share)   difference")
    for row in options.rows:
        if row == "stream":
            d_key, *session = options.stream
            for problem in PROBLEMS:
                for text in stream(problem(d_key), *session):
                    print(text, flush=True)
            continue
        solving = row == "solve"
        outcomes: Iterable[Outcome] = solves(*options.solve, options.repeat) if solving else [getattr(bench, row)()]
        for outcome in outcomes:
            print(line(outcome, rates["solve" if solving else "model"]), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of the process: {peak:.2f} GB")
    if device.type == "cuda":
        print(f"peak memory of the device: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")


def line(outcome: Outcome, rate: float) -> str:
    plainly, ours = statistics.median(outcome.plainly), statistics.median(outcome.ours)
    counts = ""
    if outcome.operations is not None:
        parts = zip(outcome.operations, (plainly, ours), strict=True)
        counts = "   ".join(f"{work / 1e9:10.0f} ({100 * work / seconds / rate:3.0f} %)" for work, seconds in parts)
    return f"{outcome.row:<18} {plainly:9.2f} {ours:8.2f} {plainly / ours:7.1f}   {counts}   {outcome.difference}"


if __name__ == "__main__":
    main()
