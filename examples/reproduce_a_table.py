"""Reproduce table 2 of the paper, scaled down, and read its numbers.

    pip install 'factpatch[runs]'
    factpatch data fetch counterfact
    python examples/reproduce_a_table.py

This takes tens of minutes on two CPU cores; start it again after an interruption, and it resumes. As one command:
`factpatch reproduce table2 --model smollm2-135m --facts 40 --batch-size 20 --text-facts 5 --out table2`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from factpatch.lab.runs.directory import RunDirectory
from factpatch.lab.runs.execute import execute
from factpatch.lab.runs.reproductions import blue_pairs, config_for, reproduction_named
from factpatch.lab.runs.results import Results, read_results

SCALED_DOWN: dict[str, Any] = {"edits": 40, "batch_size": 20, "text": {"facts": 5}}


def main(directory: Path, dataset: str = "counterfact", model: str = "smollm2-135m", **options: Any) -> Results:
    """Run the table's methods and return what was measured.

    Args:
        directory: Where the run lives; one that was begun with the same arguments is resumed.
        dataset: A file of facts, or the name of a fetched data set.
        model: What to edit.
        options: Further arguments of `config_for`, in place of `SCALED_DOWN`.
    """
    config = config_for(reproduction_named("table2"), [dataset], model=model, **{**SCALED_DOWN, **options})
    execute(RunDirectory.create(directory, config), print)
    return read_results(directory)


if __name__ == "__main__":
    results = main(Path("table2"))
    print(results.table("Table 2", blue_pairs()).markdown())  # what BLUE improved is bold
    # One row per number: label, dataset, seed, when, edits, batch, place, fact, metric, value.
    end = results.rows[results.rows["when"] == "end"]
    print(end.groupby(["label", "metric"])["value"].mean().unstack("label"))
