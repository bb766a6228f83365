"""Try settings of a method on a file of facts: the numbers behind a preset.

One line per setting: efficacy, generalization and specificity in percent, the share of facts whose new object is the
most probable continuation, and perplexity on ordinary text, edited over unedited. Value targets that two settings share
are optimized once.

    python benchmarks/sweep.py smollm2-135m --facts counterfact.json --limit 40 --method memit-blue \
        --try solver.weight=100 --try solver.weight=300 --try "solver.weight=300 target.steps=20"
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from factpatch import Editor, load_facts, verify
from factpatch.evaluation.perplexity import held_out_text, perplexity
from factpatch.methods import parse_assignments
from factpatch.model.loading import load_language_model
from factpatch.values.shared import SharedTargets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="facts to leave out at the beginning of the file")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--method", default="memit-blue")
    parser.add_argument("--variant", help="of the preset")
    parser.add_argument("--text", type=Path, help="text for perplexity; the package's held-out text by default")
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="'NAME=VALUE ...'")
    options = parser.parse_args()

    facts = load_facts(options.facts, options.skip + options.limit)[options.skip :]
    text = options.text.read_text("utf-8") if options.text else held_out_text()
    lm = load_language_model(options.model)
    folder = tempfile.TemporaryDirectory()
    targets = SharedTargets(folder.name, options.model)

    def measure() -> tuple[dict[str, Any], float]:
        return verify(lm, None, facts, answers=False).summary(), perplexity(lm, text)

    def line(label: str, summary: dict[str, Any], ratio: float, seconds: float) -> str:
        numbers = [summary[name]["after"] for name in ("efficacy", "generalization", "specificity")]
        numbers.append(summary["strict_efficacy"]["after"])
        return " ".join(f"{number:7.1f}" for number in numbers) + f"  {ratio:8.4f} {seconds:7.1f} s  {label}"

    print("    eff     gen     spe  argmax  ppl ratio", flush=True)
    summary, unedited = measure()
    print(line("unedited", summary, 1.0, 0.0), flush=True)
    for settings in options.tries or [""]:
        given = {"variant": options.variant, "settings": parse_assignments(settings.split())}
        editor = Editor(lm, method=options.method, optimize=targets, **given)
        start = time.perf_counter()
        editor.edit(facts)
        seconds = time.perf_counter() - start
        summary, edited = measure()
        print(line(f"{options.method} {settings}", summary, edited / unedited, seconds), flush=True)
        editor.undo()


if __name__ == "__main__":
    main()
