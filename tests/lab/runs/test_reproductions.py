"""The paper's tables and figures as configurations, against the paper (arXiv:2502.03748)."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `runs`")

from factpatch.lab.runs.config import RunConfig
from factpatch.lab.runs.reproductions import REPRODUCTIONS, blue_pairs, config_for

FOUR = {"memit", "prune", "rect", "alphaedit"}
DATA = {"capability": {"data": "glue"}, "drift": {"prompts": "known_1000"}}


def configured(name: str, **options: Any) -> RunConfig:
    return config_for(REPRODUCTIONS[name], ["counterfact", "zsre"], **{**DATA, **options})


@pytest.mark.parametrize(
    # Section 5.1; appendix D; appendix F; section 5.3; section 5.4 and appendix E.
    ("name", "plain", "edits", "batch_size", "measured"),
    [
        ("table2", FOUR, 2000, 100, "text"),
        ("table3", FOUR, 2000, 100, "text"),
        ("table4", FOUR, 10000, 10000, "text"),
        ("table5", {"pmet"}, 2000, 100, "text"),
        ("figure6", FOUR, 3000, 100, "capability"),
        ("figure7", FOUR, 2000, 100, "drift"),
        ("figure9", FOUR, 2000, 100, "drift"),
        ("figure10", FOUR, 2000, 100, "drift"),
    ],
)
def test_a_reproduction_is_what_the_paper_ran(
    name: str, plain: set[str], edits: int, batch_size: int, measured: str
) -> None:
    config = configured(name)
    names = [method.name for method in config.methods]
    assert set(names) == plain | {f"{one}-blue" for one in plain}
    assert {blue_pairs()[one] for one in names if one.endswith("-blue")} == plain
    assert [(dataset.limit, dataset.sample) for dataset in config.datasets] == [(edits, True)] * 2
    assert config.batch_size == batch_size
    assert {one for one in ("text", "capability", "drift") if getattr(config.evaluate, one) is not None} == {measured}
    # As published, earlier keys are preserved by AlphaEdit alone.
    remembering = {method.name for method in config.methods if method.remember_keys}
    assert remembering == {"alphaedit", "alphaedit-blue"} & set(names)
    assert {method.variant for method in config.methods} == {None}


def test_capability_is_measured_every_500_edits() -> None:
    capability = configured("figure6").evaluate.capability
    assert capability is not None
    assert (capability.every, capability.limit) == (500, 100)
    assert set(capability.tasks) == {"sst2", "mrpc", "mmlu", "rte", "cola", "nli"}


def test_the_figures_of_hidden_states_differ_in_the_model() -> None:
    models = [configured(name).model for name in ("figure7", "figure9", "figure10")]
    assert [model.split("/")[1].lower() for model in models] == ["meta-llama-3-8b-instruct", "gpt-j-6b", "gpt2-xl"]


def test_the_batch_half_of_table_5_is_a_run_with_the_settings_of_large_batches() -> None:
    config = configured("table5", edits=10000, batch_size=10000, variant="large-batch-counterfact")
    assert [(one.name, one.variant) for one in config.methods] == [
        ("pmet", "large-batch-counterfact"),
        ("pmet-blue", "large-batch-counterfact"),
    ]
    assert config.batch_size == config.datasets[0].limit == 10000


def test_a_run_is_scaled_down_by_its_number_of_facts() -> None:
    assert configured("table4", edits=50).batch_size == 50
    config = configured("table2", edits=50, batch_size=5, methods=["memit"], remember_keys=True)
    assert (config.batch_size, config.datasets[0].limit) == (5, 50)
    assert [(method.name, method.remember_keys) for method in config.methods] == [("memit", True)]
