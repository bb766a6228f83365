"""What the value optimization computes in: how near each precision is to float64, and that nothing of it stays."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, second_moments
from tests.models import FAMILIES, tiny, tiny_model, tiny_tokenizer
from tests.test_families import FACTS as LEARNED
from tests.test_families import LAYERS
from tests.values.test_optimize import FACTS, TARGET, TWO_SITES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import factpatch.model.precision as precision_module
from factpatch import METHODS, Editor, verify
from factpatch.model.language_model import LanguageModel
from factpatch.model.precision import PRECISIONS, computing, precision_for
from factpatch.strategies import HiddenState, Target
from factpatch.values.optimize import TargetValues, optimize_values
from factpatch.values.reading import SubjectRows, read_keys

STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ONCE = HiddenState(steps=1)


def found(lm: LanguageModel, name: str | None = None, target: Target = TARGET) -> TargetValues:
    return optimize_values(lm, FACTS, 1, target, CONTEXTS, precision=precision_for(lm, name))


def widened(lm: LanguageModel) -> LanguageModel:
    """The same weights in a float64 model."""
    other = tiny_model(lm.architecture.model_type, dtype=lm.dtype)
    return LanguageModel(other.double(), lm.tokenizer)


def farthest(one: Tensor, other: Tensor) -> float:
    """The largest relative distance of two rows."""
    return float(((one.double() - other.double()).norm(dim=1) / other.double().norm(dim=1)).max())


@pytest.fixture(autouse=True)
def _not_warned() -> Iterator[None]:
    precision_module._warn_of_slow_products.cache_clear()
    yield
    precision_module._warn_of_slow_products.cache_clear()


# Every family in one dtype, two that differ most in every dtype.
@pytest.mark.parametrize(
    ("family", "stored"),
    [(family, dtype) for family in FAMILIES for dtype in STORED if family in ("gptj", "llama") or dtype == STORED[1]],
    ids=str,
)
def test_the_first_loss_is_that_of_the_float64_model_to_the_precisions_rounding(
    family: str, stored: torch.dtype
) -> None:
    """Before the first step nothing but the forward pass counts; losses are about 6 nats."""
    lm = tiny(family, dtype=stored)
    expected = found(widened(lm), None, ONCE).loss
    # float64 differs in the order of sums alone; 2e-5 is some 30 units in the last place of a float32 loss; bfloat16
    # rounds logits of about 3 by up to 0.008, of which a mean over tokens and contexts leaves less.
    for name, tolerance in (("exact", 1e-12), ("float32", 2e-5), ("fast", 0.02)):
        loss = found(lm, name, ONCE).loss
        assert loss.dtype == PRECISIONS[name].stream
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("stored", "target"), [(torch.float32, TARGET), (torch.bfloat16, TWO_SITES)], ids=["one", "two"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_and_fast_are_near_exact(family: str, stored: torch.dtype, target: Target) -> None:
    lm = tiny(family, dtype=stored)
    exact, single, fast = (found(lm, name, target) for name in ("exact", "float32", "fast"))
    # Adam divides by a gradient's own size, and so magnifies the rounding of small gradients; float32 has 6e-8.
    assert farthest(single.delta, exact.delta) < 2e-5
    # With products of 8 bits, a component or two of a small gradient even change their sign; the loss does not mind.
    assert farthest(fast.values, exact.values) < 0.2
    torch.testing.assert_close(fast.loss.double(), exact.loss, rtol=0, atol=0.03)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_values_of_a_float32_model_are_those_of_the_float64_model(family: str) -> None:
    lm = tiny(family)
    # The activation that δ is added to is still read in float32.
    assert farthest(found(lm, "exact").values, found(widened(lm)).values) < 2e-6


class Dtypes(TorchDispatchMode):
    """What dtypes each operation computes in: the widest of those that go into it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {arg.dtype for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()}
        if given:
            widest = max(given, key=lambda dtype: dtype.itemsize)
            self.seen.setdefault(function.overloadpacket.__name__, set()).add(widest)
        return function(*args, **(kwargs or {}))


PRODUCTS = {"mm", "addmm", "linear"}
# Operations that cast, turn, cut and pick, but do not compute.
MOVES = {
    "_to_copy", "view", "_unsafe_view", "t", "transpose", "permute", "detach", "alias", "clone", "expand", "copy_",
    "embedding", "gather", "repeat",
}  # fmt: skip


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gptj", "opt", "qwen3"])
def test_fast_multiplies_matrices_in_16_bits_and_computes_everything_else_in_float32(
    family: str, stored: torch.dtype
) -> None:
    lm = tiny(family, dtype=stored)
    short = torch.float16 if stored == torch.float16 else torch.bfloat16
    precision = precision_for(lm, "fast")
    assert precision.products == short
    with Dtypes() as dtypes, lm.quiet(), computing(lm, precision) as seen:
        ids = torch.arange(2, 12)[None]
        hidden = seen.body(input_ids=ids)[0].requires_grad_()
        torch.autograd.grad(seen.log_probabilities(hidden).sum(), hidden)
    assert hidden.dtype == torch.float32
    assert {dtype for name in PRODUCTS for dtype in dtypes.seen.get(name, ())} == {short}
    elsewhere = {name for name, seen_dtypes in dtypes.seen.items() if short in seen_dtypes}
    assert elsewhere <= PRODUCTS | MOVES


def test_optimizations_of_an_edit_share_their_copies_of_weights_but_of_one_that_was_written() -> None:
    lm = tiny("llama")
    precision = precision_for(lm, "fast")
    ids = torch.arange(2, 12)[None]

    def read() -> tuple[Tensor, dict[int, Tensor]]:
        """The last hidden states, and the copies that have been made."""
        with lm.quiet(), computing(lm, precision) as seen:
            last = seen.body(input_ids=ids)[0]
        return last, {name: copy for (name, _), (_, _, copy) in (precision_module._kept_copies.get() or {}).items()}

    alone, none = read()
    assert not none
    with torch.inference_mode(), precision_module.sharing_copies():
        first, made = read()
        again, kept = read()
        with torch.no_grad():
            lm.weight(1).mul_(2)
        written, new = read()
    assert torch.equal(first, alone)
    assert torch.equal(again, first)
    assert made
    assert all(kept[name] is copy for name, copy in made.items())
    assert [name for name, copy in made.items() if new[name] is not copy] == [id(lm.down_projection(1).weight)]
    assert torch.equal(written, read()[0])


@pytest.mark.parametrize(
    ("stored", "name", "products"),
    [
        (torch.float64, "exact", torch.float64),
        (torch.float32, "float32", torch.float32),
        (torch.bfloat16, "fast", torch.bfloat16),
        (torch.float16, "fast", torch.float16),
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [None, "auto"])
def test_the_default_is_what_the_model_is_stored_in_and_copies_no_weight(
    stored: torch.dtype, name: str, products: torch.dtype, given: str | None
) -> None:
    lm = tiny("gpt2", dtype=stored)
    precision = precision_for(lm, given)
    assert (precision.name, precision.products) == (name, products)
    own = {parameter.data_ptr() for parameter in lm.model.parameters()}
    used: list[int] = []

    class Products(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.nn.functional.linear, torch.addmm):
                used.append(args[1 if function is torch.nn.functional.linear else 2].data_ptr())
            return function(*args, **(kwargs or {}))

    with lm.quiet(), computing(lm, precision) as seen:
        replaced = [module for module in lm.model.modules() if "forward" in module.__dict__]
        with Products():
            seen.log_probabilities(seen.body(input_ids=torch.arange(2, 12)[None])[0])
    assert used
    assert set(used) <= own
    if stored in (torch.float64, torch.float32):
        assert not replaced


def methods(model: nn.Module) -> dict[str, Any]:
    return {
        f"{name}.{method}": module.__dict__[method]
        for name, module in model.named_modules()
        for method in ("forward", "_old_forward", "_attn")
        if method in module.__dict__
    }


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["gptj", "llama"])
def test_the_model_is_as_before_even_after_an_error(family: str, stored: torch.dtype, name: str) -> None:
    lm = tiny(family, dtype=stored)
    block = lm.block(0)
    block.forward = block.forward  # as another library may have placed it
    before, weights = methods(lm.model), {key: value.clone() for key, value in lm.model.state_dict().items()}
    parameters = dict(lm.model.named_parameters())
    found(lm, name)
    assert methods(lm.model) == before
    assert all(torch.equal(value, weights[key]) for key, value in lm.model.state_dict().items())
    assert all(parameter is parameters[key] for key, parameter in lm.model.named_parameters())
    assert lm.stream_dtype == lm.dtype == stored
    lm.weight(3)[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="layer 1"):
        found(lm, name)
    assert methods(lm.model) == before


def editor_of(family: str, stored: torch.dtype = torch.float32, **options: Any) -> Editor:
    settings = {"target.steps": 8, "target.learning_rate": 0.5, "target.clamp": 4, "solver.weight": 0.1}
    return Editor(
        tiny_model(family, dtype=stored),
        tiny_tokenizer(),
        method=METHODS["memit-blue"],
        critical_layers=LAYERS,
        contexts=CONTEXTS,
        second_moments=second_moments(),
        settings=settings,
        **options,
    )


@pytest.mark.parametrize("name", ["exact", "fast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_takes_and_says_what_it_was_computed_in(family: str, name: str) -> None:
    editor = editor_of(family, precision=name)
    before = verify(editor.lm, None, LEARNED, answers=False)
    patch = editor.edit(LEARNED)
    after = verify(editor.lm, None, LEARNED, answers=False)
    for now, then in zip(after.after, before.after, strict=True):
        assert now.nll_new < then.nll_new - 0.5
    assert patch.settings["precision"] == name
    # Only the values are another matter: shifts are stored and written as ever.
    assert patch.written_dtype == torch.float32
    assert patch.batches[0].shifts[1].tensors()["up"].dtype == torch.float32


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_default_gives_the_bits_of_its_name(stored: torch.dtype) -> None:
    default = editor_of("llama", stored).edit(LEARNED)
    named = editor_of("llama", stored, precision=default.settings["precision"]).edit(LEARNED)
    assert default.batches[0].after == named.batches[0].after


@pytest.mark.parametrize("wrong", ["fsat", "", torch.float32])
def test_an_unknown_precision_is_refused_before_the_model_is_loaded(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"precision=.*no such precision.*Known: auto, exact, float32, fast") as error:
        Editor("no-such-model", precision=wrong)
    if wrong == "fsat":
        assert "Did you mean 'fast'?" in str(error.value)


@pytest.mark.parametrize("short", [True, False, None])
def test_fast_where_it_is_slow_warns_once(short: bool | None, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(precision_module, "_short_products", lambda device: short)
    with caplog.at_level(logging.WARNING, precision_module.__name__):
        for name in (None, "float32", "exact"):
            precision_for(tiny("llama", dtype=torch.bfloat16), name)
        assert not caplog.records
        for _ in range(2):
            precision_for(tiny("llama"), "fast")
    assert ["is slower on this CPU" in record.message for record in caplog.records] == [True] * (short is False)


def test_a_pytorch_that_does_not_know_its_cpu_is_not_asked(monkeypatch: Any) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert precision_module._short_products(cpu) is False
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for faster in (True, False):  # what has instructions is measured
        monkeypatch.setattr(precision_module, "_measured_faster", lambda faster=faster: faster)
        assert precision_module._short_products(cpu) is faster
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert precision_module._short_products(cpu) is None


@pytest.mark.parametrize(("seconds", "faster"), [((1.0, 1.2), False), ((1.0, 1.5), True), ((2.0, 1.0), False)])
def test_a_cpu_multiplies_in_bfloat16_where_that_is_measured_to_be_faster(
    seconds: tuple[float, float], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def multiply(first: Tensor, second: Tensor) -> None:
        now[0] += seconds[first.dtype == torch.float32] + 0.1 * len(times)  # the first of each takes least
        times.append(now[0])

    times: list[float] = []
    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(precision_module.time, "perf_counter", lambda: now[0])
    precision_module._measured_faster.cache_clear()
    assert precision_module._measured_faster() is faster
    precision_module._measured_faster.cache_clear()
    assert len(times) == 12


@pytest.mark.parametrize(
    ("short", "dtype", "options", "expected"),
    [
        (True, torch.float32, {"effort": "quick"}, "fast"),
        (True, torch.float32, {"effort": "quick", "precision": "auto"}, "fast"),
        (True, torch.float32, {"effort": "quick", "precision": "float32"}, "float32"),
        (True, torch.float32, {}, "float32"),
        (True, torch.float64, {"effort": "quick"}, "exact"),
        (False, torch.float32, {"effort": "quick"}, "float32"),
        (None, torch.float32, {"effort": "quick"}, "float32"),
    ],
)
def test_a_quick_edit_is_fast_where_the_device_is(
    short: bool | None, dtype: torch.dtype, options: dict[str, str], expected: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(precision_module, "_short_products", lambda device: short)
    lm = tiny("llama", dtype=dtype)
    moments = {layer: torch.eye(lm.d_key) for layer in (1, 2)}
    editor = Editor(lm, critical_layers=[1, 2], second_moments=moments, **options)
    assert editor.precision.name == expected


def test_compiled_parts_give_the_same_values_and_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is compiled runs step by step here: code for this machine takes a minute to make.
    monkeypatch.setattr(precision_module, "COMPILER", "aot_eager")
    compiled: list[nn.Module] = []
    compile_ = torch.compile

    def counting(forward: Any, **options: Any) -> Any:
        compiled.append(forward.__self__)
        return compile_(forward, **options)

    monkeypatch.setattr(torch, "compile", counting)
    lm = tiny("llama")
    expected = found(lm)
    precision = replace(precision_for(lm), compiled=True)
    values = optimize_values(lm, FACTS, 1, TARGET, CONTEXTS, precision=precision)
    assert {lm.mlp(layer) for layer in range(lm.num_layers)} < {*compiled}
    assert len(compiled) == 3 * lm.num_layers  # the MLP and two norms of each block
    torch.testing.assert_close(values.values, expected.values, rtol=1e-4, atol=1e-4)
    assert not any("forward" in vars(module) for module in lm.model.modules())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_routers_and_experts_that_are_stored_in_16_bits_compute_in_them(family: str) -> None:
    lm = tiny(family, dtype=torch.bfloat16)
    values = optimize_values(lm, FACTS[:2], 1, HiddenState(steps=3, learning_rate=0.3), CONTEXTS)
    assert values.values.dtype == torch.float32
    assert bool(torch.isfinite(values.values).all())
    keys = read_keys(lm, SubjectRows.of(lm, FACTS[:2], CONTEXTS), 1)
    assert bool(keys.any())
    assert not any("forward" in vars(module) for module in lm.model.modules())
