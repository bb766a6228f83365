"""lm-evaluation-harness on a local task: its numbers against our own, and nothing left behind."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.models import tiny

from factpatch.evaluation import harness as module
from factpatch.evaluation.harness import harness
from factpatch.evaluation.probabilities import score

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'factpatch[harness]'")

REQUESTS = [
    ("The capital of France is", "Paris"),
    ("In Rome people speak", "Italian"),
    ("Messi plays the sport of", "football"),
    ("The twin city of Vienna is", "Rome"),
]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that defines a task of four prompts and targets, in another file."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"prompt": prompt, "target": target}) + "\n" for prompt, target in REQUESTS))
    path = tmp_path / "cities.yaml"
    path.write_text(
        f"""
task: local_cities
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{' ' + target}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.5
"""
    )
    return str(path)


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_a_local_task_gives_what_our_own_likelihoods_give(scale, task):
    lm = tiny("llama", dtype=torch.float64)
    with torch.no_grad():
        lm.weight(3).mul_(scale)
    found = {row.metric: row for row in harness(lm, [task], batch_size=3)}
    ours = score(lm, REQUESTS)
    mean = sum(math.log(one.probability) for one in ours) / len(ours)
    # The harness sums in float32.
    assert found["perplexity"].value == pytest.approx(math.exp(-mean), rel=1e-4)
    assert found["acc"].value == sum(one.greedy for one in ours) / len(ours)
    row = found["acc"]
    assert (row.task, row.filter, row.items, row.shots, row.version) == ("local_cities", "none", 4, 0, "1.5")
    assert found["perplexity"].standard_error > 0


def test_nothing_is_left_behind(task):
    lm = tiny("gpt2")
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}

    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def seed():
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seed()
    expected = draws()
    seed()
    assert harness(lm, [task], limit=2)[0].items == 2
    assert draws() == expected
    assert lm.tokenizer.pad_token is None
    assert logging.getLogger("lm_eval").level == logging.NOTSET
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lm.model.state_dict().items())


def test_absent_files_unknown_tasks_and_none_are_refused(tmp_path, monkeypatch):
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match=r"cities.yaml: no such file"):
        harness(lm, [str(tmp_path / "cities.yaml")])
    with pytest.raises(ValueError, match=r"tasks=\[\]"):
        harness(lm, [])
    # Reading the files of all tasks takes long.
    monkeypatch.setattr(module, "_index", lambda shipped: SimpleNamespace(all_tasks=["arc_easy", "rte"]))
    with pytest.raises(ValueError, match=r"has no task 'arc_eazy'\. Did you mean 'arc_easy'\? `lm-eval ls tasks`"):
        harness(lm, ["arc_eazy"])
