"""Whether a long session costs more with every batch: seconds of each stage and memory, without optimizing values.

    python benchmarks/session.py [MODEL] --facts FILE [--total 2000] [--batch-size 50] [--method memit-blue]

What the optimization of a batch takes does not depend on what was edited before, and would hide what does. So random
values of ordinary length take its place, and everything else is as in any edit: keys are read, layers solved and
written, and earlier batches preserved by methods that do so. The medians of the first and the last eighth are compared.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from factpatch import Editor, Fact, load_facts
from factpatch.facts import without_repeats
from factpatch.model.language_model import LanguageModel
from factpatch.strategies.target import Target
from factpatch.values.optimize import TargetValues
from factpatch.values.reading import SubjectRows, read_values

LENGTH = 0.5
"""Of a random δ, in units of the activation that it is added to."""


def random_values(
    lm: LanguageModel,
    facts: Sequence[Fact],
    layer: int,
    target: Target,
    contexts: Sequence[str],
    **options: object,
) -> TargetValues:
    """In place of `optimize_values`, whose progress and precision mean nothing here."""
    present = read_values(lm, SubjectRows.of(lm, facts, contexts[:1]), layer, target.site)
    dice = torch.Generator().manual_seed(layer)
    away = torch.randn(present.shape, generator=dice).to(present)
    delta = LENGTH * present.norm(dim=-1, keepdim=True) * away / away.norm(dim=-1, keepdim=True)
    none = torch.zeros(len(facts), dtype=torch.long)
    return TargetValues(present + delta, delta, none, none, none.to(present))


random_values.identity = "random"  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--total", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--method", default="memit-blue")
    options = parser.parse_args()

    facts = without_repeats(load_facts(options.facts), "first")[: options.total]
    editor = Editor(options.model, method=options.method, optimize=random_values, progress=False)
    seconds, memory = [], []
    for start in range(0, len(facts), options.batch_size):
        began = time.perf_counter()
        editor.edit(facts[start : start + options.batch_size])
        seconds.append(time.perf_counter() - began)
        memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
        stages = ", ".join(f"{name} {value:.2f}" for name, value in editor.edits[-1].seconds.items() if value >= 0.01)
        print(f"batch {len(seconds)}: {seconds[-1]:.2f} s ({stages}), {memory[-1]:.2f} GB", flush=True)
    # The first batch measures second moments and factors them.
    some = max(1, len(seconds) // 8)
    first, last = median(seconds[1 : some + 1]), median(seconds[-some:])
    print(f"a batch at first {first:.2f} s, at last {last:.2f} s: {last / first:.2f} times")
    print(f"peak memory at first {memory[0]:.2f} GB, at last {memory[-1]:.2f} GB")


if __name__ == "__main__":
    main()
