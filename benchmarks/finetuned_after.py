"""What is left of edits when the model is fine-tuned on other text afterwards, or was fine-tuned before.

Edits the same facts with each method, and fine-tunes low-rank adapters of all linear layers (peft) on windows of a text
that has nothing to do with them, merged at the end. Prints a Markdown table with a row for each of

- edited: the edited model;
- edited, fine-tuned: the edited model after fine-tuning;
- fine-tuned, rebased: the unedited model after the same fine-tuning, with the patch moved to its weights.

"said" counts the facts that the model's own continuation holds, "exact" those of which every token is the likeliest.
Perplexity is that over the unedited model's, on the text that the package ships. Both fine-tunings see the same windows
in the same order.

    python benchmarks/finetuned_after.py smollm2-135m --facts counterfact.json --skip 1000 --limit 20 \
        --text wikitext.txt --steps 30
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from factpatch import METHODS, Editor, Fact, load_facts, verify
from factpatch.evaluation.perplexity import perplexity, windows
from factpatch.methods import EFFORTS
from factpatch.model.language_model import LanguageModel
from factpatch.model.loading import load_language_model

COLUMNS = {
    "said": "prompt_contained",
    "exact": "strict_efficacy",
    "efficacy": "efficacy",
    "generalization": "generalization",
    "specificity": "specificity",
}


def row(lm: LanguageModel, facts: list[Fact], start: str, unedited: float | None = None) -> float:
    """Print a line of the table about a model, and return its perplexity on the text that the package ships."""
    summary, found = verify(lm, None, facts).summary(), perplexity(lm)
    values = [summary[name]["after"] for name in COLUMNS.values()]
    numbers = " | ".join("–" if value is None else f"{value:.1f}" for value in values)
    print(f"| {start} | {numbers} | × {found / (unedited or found):.4f} |", flush=True)
    return found


def shuffled(rows: list[list[int]], seed: int) -> Iterator[list[int]]:
    """The rows in a new order each time all were seen."""
    order = random.Random(seed)
    while True:
        yield from order.sample(rows, len(rows))


def fine_tuned(
    lm: LanguageModel, rows: list[list[int]], options: argparse.Namespace
) -> tuple[LanguageModel, list[float]]:
    """A copy of the model, fine-tuned with adapters that are merged at the end, and the loss of each step in nats."""
    torch.manual_seed(options.seed)
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(deepcopy(lm.model), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam, losses = torch.optim.AdamW(trained, lr=options.rate), []
    source = shuffled(rows, options.seed)
    model.train()
    for _ in range(options.steps):
        ids = torch.tensor([*itertools.islice(source, options.rows)], device=lm.device)
        loss = model(input_ids=ids, labels=ids).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    merged = model.merge_and_unload().eval()
    return load_language_model(merged, lm.tokenizer), losses


def measure(
    lm: LanguageModel,
    method: str,
    facts: list[Fact],
    tuned: LanguageModel,
    rows: list[list[int]],
    unedited: float,
    options: argparse.Namespace,
) -> None:
    """Print the three lines of a method."""
    editor = Editor(lm, method=method, effort=options.effort, seed=options.seed, progress=False)
    for start in range(0, len(facts), options.batch_size or len(facts)):
        editor.edit(facts[start : start + (options.batch_size or len(facts))])
    patch = editor.patch
    row(lm, facts, f"{method} | edited", unedited)
    after, _ = fine_tuned(lm, rows, options)
    row(after, facts, f"{method} | edited, fine-tuned", unedited)
    del after
    editor.reset()
    with patch.rebase(tuned).applied(tuned):
        row(tuned, facts, f"{method} | fine-tuned, rebased", unedited)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="facts to leave out at the beginning of the file")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--batch-size", type=int, help="facts of an edit; all at once by default")
    parser.add_argument("--effort", choices=list(EFFORTS), default="standard")
    parser.add_argument("--text", type=Path, required=True, help="what to fine-tune on")
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=["memit", "memit-blue", "alphaedit-blue"]
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rows", type=int, default=4, help="windows of a step")
    parser.add_argument("--window", type=int, default=128, help="tokens of a window")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0, help="of the edit, the adapters and the order of the windows")
    options = parser.parse_args()

    facts = load_facts(options.facts, options.skip + options.limit)[options.skip :]
    lm = load_language_model(options.model)
    text = options.text.read_text("utf-8")
    rows = [ids for ids in windows(lm.tokenizer, text, options.window) if len(ids) == options.window]
    if not rows:
        parser.error(f"--text {options.text}: no document has {options.window} tokens; give --window less.")

    print(f"| method | model | {' | '.join(COLUMNS)} | perplexity |")
    print(f"|---|---|{'---|' * (len(COLUMNS) + 1)}")
    unedited = row(lm, facts, "– | unedited")
    tuned, losses = fine_tuned(lm, rows, options)
    row(tuned, facts, "– | fine-tuned", unedited)
    for method in options.methods:
        measure(lm, method, facts, tuned, rows, unedited, options)
    print(f"\nLoss of the fine-tuning, first and last step: {losses[0]:.3f} and {losses[-1]:.3f} nats a token.")


if __name__ == "__main__":
    main()
