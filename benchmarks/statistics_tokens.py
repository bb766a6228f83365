"""How many tokens the second moment needs: the same edits with statistics of ever more text.

Edits the same facts for each number of tokens per key dimension and prints a Markdown table. The paragraphs of the
corpus, one a line, are shuffled once, since neighbors share a subject; each row reads the text of the row before and
more. Value targets of the first layer do not depend on statistics and are optimized once. Perplexity is that of the
edited model over the unedited one, on the text that the package ships for it.

    python benchmarks/statistics_tokens.py smollm2-135m --facts counterfact.json --skip 100 --limit 30 \
        --corpus wikitext.txt
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from factpatch import METHODS, Editor, Fact, load_facts, verify
from factpatch.evaluation.perplexity import perplexity
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model
from factpatch.values.shared import SharedTargets

COLUMNS = ("efficacy", "generalization", "specificity", "score")


def row(lm: LanguageModel, facts: list[Fact], start: str, unedited: float | None = None) -> tuple[str, float]:
    """A line of the table about the model as it is, and its perplexity on the text that the package ships."""
    summary, found = verify(lm, None, facts, answers=False).summary(), perplexity(lm)
    numbers = " | ".join(f"{summary[name]['after']:.1f}" for name in COLUMNS)
    return f"| {start} | {numbers} | × {found / (unedited or found):.4f} |", found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="facts to leave out at the beginning of the file")
    parser.add_argument("--limit", type=int, default=30)
    parser.add_argument("--corpus", type=Path, required=True, help="text with a paragraph on each line")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the paragraphs")
    parser.add_argument("--variant", help="of the preset")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["memit-blue", "alphaedit-blue"])
    parser.add_argument("--times", nargs="+", type=int, default=[1, 2, 5, 10, 50], help="tokens per key dimension")
    options = parser.parse_args()

    facts = load_facts(options.facts, options.skip + options.limit)[options.skip :]
    corpus = [line for line in options.corpus.read_text("utf-8").splitlines() if line.strip()]
    random.Random(options.seed).shuffle(corpus)
    lm = load_language_model(options.model)
    folder = tempfile.TemporaryDirectory()
    targets = SharedTargets(folder.name, options.model)

    print("| method | tokens per dimension | efficacy | generalization | specificity | S | perplexity |")
    print("|---|---|---|---|---|---|---|")
    line, unedited = row(lm, facts, "unedited | –")
    print(line, flush=True)
    for method in options.methods:
        for times in options.times:
            tokens = times * lm.d_key
            editor = Editor(
                lm, method=method, variant=options.variant, corpus=corpus, corpus_tokens=tokens, optimize=targets,
                progress=False,
            )  # fmt: skip
            try:
                editor.edit(facts)
            except ValueError as error:  # a singular matrix
                print(f"| {method} | {times} | refused: {error} |", flush=True)
                continue
            print(row(lm, facts, f"{method} | {times}", unedited)[0], flush=True)
            editor.undo()


if __name__ == "__main__":
    main()
