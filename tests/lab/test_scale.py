"""Sizes, operations and the simulation of maps: equal to what a real model has, and to sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.models import FAMILIES, INNER, NUM_LAYERS, WIDTH, tiny
from torch.utils.flop_counter import FlopCounterMode

from factpatch import Fact
from factpatch.lab.drawing.charts import figure, save_plot
from factpatch.lab.scale.costs import Costs
from factpatch.lab.scale.figures import speedups
from factpatch.lab.scale.machines import KINDS, Machines
from factpatch.lab.scale.shape import Shape, shape_like, shape_of, shipped
from factpatch.lab.scale.simulate import Point, last_that_pays, map_seconds, sweep
from factpatch.lab.scale.work import WITH_GRADIENT, Batch, Pass, Tokens, batch_of, pass_of
from factpatch.model.language_model import LanguageModel
from factpatch.model.packed import packed_attention
from factpatch.statistics.second_moment import KeySums
from factpatch.strategies.spread import Step
from factpatch.strategies.target import HiddenState
from factpatch.values.descent import Loss
from factpatch.values.frozen import freeze
from factpatch.values.rows import optimization_rows

FACTS = (
    Fact("The mother tongue of {} is", "Danielle Darrieux", "Finnish"),
    Fact("{} is in the city of", "The Eiffel Tower", "Rome"),
    Fact("{} works in the field of", "Ada Lovelace", "mathematics"),
)
CONTEXTS = ("{}", "The capital of France. {}", "Question: {}?\nAnswer:")


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def eight() -> Shape:
    return shape_like("llama-3-8b")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model_itself(family: str) -> None:
    lm = tiny(family)
    shape = shape_of(lm.config)
    assert shape.weights("float32") == sum(weight.nbytes for weight in lm.model.parameters())
    assert shape.edited("float32") == lm.weight(1).nbytes
    assert (shape.layers, shape.d_key, shape.d_value) == (NUM_LAYERS, INNER, WIDTH)
    sums = KeySums((1,))(lm, [[[5, 6, 7]]])
    assert shape.second_moment() == INNER**2 * 8
    assert Pass(shape, (1,), 100).returned == sum(band.nbytes for band in sums[1])
    assert shape.block == sum(weight.numel() for weight in lm.block(1).parameters() if weight.dim() > 1)


def test_shipped_configs_have_the_published_numbers_of_parameters() -> None:
    published = {"llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "mixtral-8x7b": 46_702_792_704}
    assert {name: shape_like(name).parameters for name in shipped()} == published


def test_of_experts_all_are_stored_and_a_token_passes_some(eight: Shape) -> None:
    shape = shape_like("mixtral-8x7b")
    attention, router, expert = 2 * 4096**2 + 2 * 4096 * 1024, 8 * 4096, 3 * 4096 * 14336
    assert shape.block == attention + router + 2 * expert
    assert eight.block == attention + expert
    assert shape.second_moment() == 8 * eight.second_moment() == 8 * 14336**2 * 8
    assert shape.edited() == 8 * eight.edited()


def test_tokens_are_those_of_the_rows(lm: LanguageModel) -> None:
    tokens = Tokens.counted(lm, FACTS, CONTEXTS)
    rows = optimization_rows(lm, FACTS, CONTEXTS)
    assert tokens.run == pytest.approx(sum(row.suffix for row in rows) / 3)
    assert tokens.reads == pytest.approx(sum(max(1, len(row.targets)) for row in rows) / 3)
    bare = [row for row in rows if row.context == 0]
    assert tokens.bare == pytest.approx(sum(row.subject + 1 for row in bare) / 3)
    texts = [row for row in rows if row.context >= 0]
    assert tokens.subject == pytest.approx(sum(row.subject + 1 for row in texts) / 3)
    # What all of a context begin with runs once for all: for the second one, the text before the prompt.
    begins = len(lm.tokenizer("The capital of France.")["input_ids"])
    assert tokens.before <= sum(row.subject for row in rows) / 3 - begins


@pytest.mark.parametrize("layer", [0, 2])
def test_operations_of_an_evaluation_are_those_that_pytorch_counts(lm: LanguageModel, layer: int) -> None:
    tokens = Tokens.counted(lm, FACTS, CONTEXTS)
    rows = optimization_rows(lm, FACTS, CONTEXTS)
    counter = FlopCounterMode(display=False)
    with lm.quiet(), packed_attention(lm):
        frozen = freeze(lm, rows, layer, 1024, lm.device)
        present, target = torch.ones(3, 1, WIDTH), HiddenState()
        loss = Loss(lm, frozen, layer, target, present, torch.ones(3, 1), 1024)
        with counter:
            loss.evaluate(torch.zeros(3, 1, WIDTH), {})
    found = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in found.items() if str(operation) in ("aten.mm", "aten.addmm"))
    batch = Batch(shape_of(lm.config), 3, tokens, 1, (Step(layer, layer, 1.0),), inside=False)
    once = replace(batch, evaluations=0).value_operations(layer)
    assert products == pytest.approx(3 * (batch.value_operations(layer) - once))
    assert WITH_GRADIENT == 4


def test_a_batch_takes_layers_and_steps_from_the_preset(eight: Shape) -> None:
    batch = batch_of(eight, "memit-blue", 70)
    assert (batch.targets, batch.written, batch.evaluations) == ([4, 8], [4, 8], 25)
    assert batch.shards == [32, 32, 6]
    assert batch_of(eight, "memit", 4, device="cpu").shards == [4]
    assert (batch_of(eight, "memit", 4).targets, batch_of(eight, "memit", 4).written) == ([8], [4, 5, 6, 7, 8])
    # PMET's δ lies inside the block of its layer, which runs again with those above it.
    plain, inside = batch_of(eight, "memit", 1), batch_of(eight, "pmet", 1)
    assert inside.inside
    assert inside.value_operations(8) > plain.value_operations(8)
    with pytest.raises(ValueError, match="optimizes no values"):
        batch_of(eight, "ultraedit", 4)


def test_bytes_sent_are_counted_by_hand(eight: Shape) -> None:
    batch = batch_of(eight, "memit-blue", 100)
    costs = Costs(batch, pass_of(batch), Machines(workers=3))
    layer = 4096 * 14336 * 2
    assert costs.batch_traffic() == {"edited weights": 2 * 3 * 2 * layer, "values": 2 * 100 * 2 * 4096 * 4}
    bands = 512**2 * sum(range(1, 29)) * 8  # of 512 rows, up to the diagonal
    assert costs.text_traffic() == {"sums": 10 * 2 * bands}  # the preset reads ten tokens per dimension
    assert costs.driver()["solver"] == 2 * 2 * 14336**2 * 8
    assert costs.driver_of_moments()["results that wait"] == 3 * 2 * bands
    # More workers than shards get nothing, and one is this process.
    many = replace(costs, machines=Machines(workers=64))
    assert many.batch_traffic()["edited weights"] == 2 * 4 * 2 * layer
    alone = replace(costs, machines=Machines(workers=1))
    assert sum(alone.batch_traffic().values()) == sum(alone.text_traffic().values()) == 0
    assert set(alone.batch_seconds()) == {"values (shared)", *alone.serial_seconds()}


def test_solves_and_factors_are_counted_by_hand(eight: Shape) -> None:
    batch = batch_of(eight, "memit-blue", 100)
    costs = Costs(batch, pass_of(batch), replace(Machines(), solve_rate=1e9))
    assert costs.serial_seconds()["solves (driver)"] == pytest.approx(2 * (4 * 100 + 48) * 14336**2 / 1e9)
    assert costs.factor_seconds() == pytest.approx(2 * 14336**3 / 3 / 1e9)
    assert Pass(eight, (4, 8), 1000).product_operations() == 1000 * 2 * 14336**2
    assert Pass(eight, (4, 8), 1000).forward_operations() == 2 * 1000 * 9 * eight.block


def test_a_map_is_as_long_as_its_events() -> None:
    assert map_seconds([1.0] * 4, 2) == 2.0
    assert map_seconds([1.0] * 5, 2) == 3.0  # the last shard has the other worker wait
    assert map_seconds([3.0, 1.0, 1.0, 1.0], 2) == 3.0  # who is free gets the next one
    assert map_seconds([1.0] * 2, 2, send=0.5) == 2.0  # the second worker gets its weights after the first
    assert map_seconds([1.0] * 2, 2, reply=0.25) == 1.5  # results come one after the other
    assert map_seconds([1.0] * 3, 1, latency=0.5) == 4.5
    assert map_seconds([1.0], 8, send=1.0) == 2.0  # workers without a shard are sent nothing
    assert map_seconds([], 2, send=1.0) == 0.0


def test_sharing_ends_at_the_amdahl_bound(eight: Shape) -> None:
    batch = batch_of(eight, "memit-blue", 10_000, device="cpu")
    free = replace(KINDS["cpu"], network=1e30, copying=1e30, latency=0.0, rate=1e12)
    costs = Costs(batch, pass_of(batch), free)
    bound = 1 / (1 - costs.shared_fraction())
    speedups = [point.speedup for point in costs.by_workers((1, 2, 4, 8, 16, 32, 64))]
    assert all(one < other < bound for one, other in pairwise(speedups))
    assert costs.by_workers((1, 65536))[-1].speedup == pytest.approx(bound, rel=0.05)
    # A slow network makes sharing slower than none.
    slow = replace(costs, machines=replace(free, network=1e3))
    assert slow.by_workers((1, 2))[-1].speedup < 1


def test_the_end_of_what_pays_is_where_twice_as_many_save_little() -> None:
    points = sweep(lambda workers: 10 + 90 / workers, (1, 2, 4, 8, 16, 32))
    assert [round(point.seconds, 1) for point in points] == [100.0, 55.0, 32.5, 21.2, 15.6, 12.8]
    assert last_that_pays(points) == points[-1]
    assert last_that_pays([*points, Point(64, 12.0, 8.3)]).workers == 32
    assert last_that_pays(sweep(lambda workers: 1.0 + workers, (1, 2))).workers == 1


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_simulation_is_drawn(form: str, tmp_path: Path, eight: Shape) -> None:
    pytest.importorskip("matplotlib")
    batch = batch_of(eight, "memit-blue", 1000, device="cpu")
    panel = speedups("a batch", {"here": Costs(batch, pass_of(batch), KINDS["cpu"]).by_workers()})
    assert "here up to" in panel.alt
    path = tmp_path / f"speedup.{form}"
    save_plot(figure([panel]), path)
    assert path.stat().st_size > 1000
