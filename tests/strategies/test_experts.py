"""Mixtures of experts: the published formula written out, what is kept, and what routers send where."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tests.models import SENTENCES, save_corpus, save_tiny, tiny, tiny_model, tiny_tokenizer
from tests.test_more_families import FACTS, editor_of, logits, nll, unit_moment
from torch import Tensor

from factpatch import METHODS, Editor, NullSpace, Patch, Ridge
from factpatch.edit_report import Measure, edit_and_report
from factpatch.evaluation.routing import read_routes, rerouted
from factpatch.model.experts import Routed
from factpatch.model.gguf_names import gguf_names
from factpatch.model.hooks import captured
from factpatch.model.language_model import LanguageModel, editable_names
from factpatch.recipe import RecipeError
from factpatch.statistics.corpus import Corpus
from factpatch.statistics.second_moment import SecondMoment
from factpatch.strategies import MlpOutput
from factpatch.strategies.experts import ORDER, RoutedKeys, Systems
from factpatch.strategies.least_squares import EarlierKeys, System
from factpatch.strategies.memory import Memory

EXPERTS, WIDTH, VALUE, FACTS_IN_BATCH = 5, 12, 7, 4
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Second moments, the keys of each expert without gates, gates of two experts a fact, and a residual."""
    generator = torch.Generator().manual_seed(3)
    scales = torch.logspace(-1.5, 0.5, WIDTH, dtype=torch.float64)
    text = torch.randn(EXPERTS, 300, WIDTH, generator=generator, dtype=torch.float64) * scales
    moments = text.transpose(1, 2) @ text / 300
    keys = torch.randn(FACTS_IN_BATCH, EXPERTS, WIDTH, generator=generator, dtype=torch.float64)
    gates = torch.zeros(FACTS_IN_BATCH, EXPERTS, dtype=torch.float64)
    for fact, routed in enumerate([(0, 2), (2, 3), (0, 3), (3, 2)]):  # nothing goes to experts 1 and 4
        gates[fact, list(routed)] = torch.rand(2, generator=generator, dtype=torch.float64) + 0.2
    return moments, keys, gates, torch.randn(FACTS_IN_BATCH, VALUE, generator=generator, dtype=torch.float64)


def moe_edit(
    solver: NullSpace, moments: Tensor, keys: Tensor, gates: Tensor, residual: Tensor, order: list[int]
) -> Tensor:
    """The update as MoEEdit (arXiv:2602.10965) writes it, expert by expert in the order given: (E, d_value, d_key)."""
    projectors = []
    for moment in moments:
        values, vectors = torch.linalg.eigh(moment)
        inside = vectors[:, values < solver.threshold]
        projectors.append(inside @ inside.T)
    shifts = torch.zeros(EXPERTS, VALUE, WIDTH, dtype=torch.float64)
    for one in order:
        wanted = residual.clone()
        for fact in range(len(keys)):
            for other in range(EXPERTS):
                if other != one:
                    wanted[fact] -= gates[fact, other] * shifts[other] @ projectors[other] @ keys[fact, other]
        numerator = torch.zeros(VALUE, WIDTH, dtype=torch.float64)
        system = solver.l2 * torch.eye(WIDTH, dtype=torch.float64)
        for fact in range(len(keys)):
            projected = gates[fact, one] * projectors[one] @ keys[fact, one]
            numerator += torch.outer(wanted[fact], projected)
            system += torch.outer(projected, projected)
        shifts[one] = torch.linalg.solve(system, numerator, left=False)
    return shifts


def wide(keys: Tensor, gates: Tensor) -> Tensor:
    return (gates[:, :, None] * keys).flatten(1)


def apart(matrix: Tensor) -> Tensor:
    return matrix.view(VALUE, EXPERTS, WIDTH).transpose(0, 1)


def test_the_passes_are_those_of_the_published_formula(problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    moments, keys, gates, residual = problem
    solver = NullSpace(threshold=0.5, l2=0.3, passes=3)
    found = solver.memory(moments).solve(wide(keys, gates), residual)
    generator, routed = torch.Generator().manual_seed(ORDER), [0, 2, 3]
    order = [routed[place] for _ in range(3) for place in torch.randperm(3, generator=generator).tolist()]
    expected = moe_edit(solver, moments, keys, gates, residual, order)
    torch.testing.assert_close(apart(found.matrix()), expected, **EXACT)
    assert not bool(apart(found.matrix())[[1, 4]].any())  # bit for bit


@pytest.mark.parametrize("solver", [NullSpace(threshold=0.5, l2=0.3), Ridge(weight=20)])
def test_the_passes_converge_to_the_solution_of_all_experts_together(
    problem: tuple[Tensor, Tensor, Tensor, Tensor], solver: Ridge | NullSpace
) -> None:
    """That is one dense least-squares problem, with a cost that is a block for each expert."""
    moments, keys, gates, residual = problem
    together = wide(keys, gates)
    if isinstance(solver, Ridge):
        cost, basis = torch.block_diag(*(solver.weight * moments)), torch.eye(EXPERTS * WIDTH, dtype=torch.float64)
    else:
        spectra = [torch.linalg.eigh(moment) for moment in moments]
        basis = torch.block_diag(*(vectors[:, values < solver.threshold] for values, vectors in spectra))
        cost = solver.l2 * torch.eye(basis.shape[1], dtype=torch.float64)
    rows = together @ basis
    expected = (basis @ torch.linalg.solve(cost + rows.T @ rows, rows.T @ residual)).T
    kind, given = type(solver), {"weight": 20} if isinstance(solver, Ridge) else {"threshold": 0.5, "l2": 0.3}
    exact = kind(**given, passes=0).memory(moments).solve(together, residual).matrix()
    torch.testing.assert_close(exact, expected, **EXACT)
    many = kind(**given, passes=3000).memory(moments).solve(together, residual).matrix()
    torch.testing.assert_close(many, expected, rtol=1e-6, atol=1e-8)
    few, one = (kind(**given, passes=n).memory(moments).solve(together, residual).matrix() for n in (5, 1))
    assert float((few - expected).norm()) < float((one - expected).norm())


def test_an_expert_preserves_what_earlier_facts_have_there(problem: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    moments, keys, gates, residual = problem
    solver = Ridge(weight=1e-9, passes=0)
    together = wide(keys, gates)
    memory = solver.memory(moments)
    memory.follow([memory.trace(1e3 * together[:2], None)])
    shift = memory.solve(together[2:], residual[2:]).matrix()
    blocks, parts = (gates[:2, :, None] * keys[:2]), apart(shift)
    for expert in range(EXPERTS):
        assert float((blocks[:, expert] @ parts[expert].T).abs().max()) < 1e-4
    memory.follow([])
    fresh = solver.memory(moments).solve(together[2:], residual[2:]).matrix()
    assert torch.equal(memory.solve(together[2:], residual[2:]).matrix(), fresh)


def test_a_fact_sent_to_an_expert_of_which_nothing_is_known_is_refused(
    problem: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    moments, keys, gates, residual = problem
    moments[3] = 0
    with pytest.raises(
        ValueError, match=r"corpus: the router sends a fact to expert 3, .* no token, .*--corpus-tokens"
    ):
        Ridge().memory(moments).solve(wide(keys, gates), residual)
    moments[3] = torch.eye(WIDTH)
    counts = torch.tensor([100, 0, 100, 11, 0])
    with pytest.raises(ValueError, match=r"expert 3, .* 11 tokens, fewer than a key has dimensions \(12\)"):
        RoutedKeys(Systems(Ridge().prepare, moments, counts), 1).solve(wide(keys, gates), residual)
    counts[3] = 12
    RoutedKeys(Systems(Ridge().prepare, moments, counts), 1).solve(wide(keys, gates), residual)
    with pytest.raises(ValueError, match="keys have width 12, but the second moments are of 5 experts and 12 each"):
        Ridge().memory(moments).solve(keys[:, 0], residual)


@dataclass(frozen=True)
class Alone(Ridge):
    """A solver with a memory of its own, as others may add."""

    def memory(self, second_moment: Tensor | None) -> Memory:
        assert second_moment is not None
        return EarlierKeys(System(second_moment.double()))


# --- in a model


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_layer_of_experts_is_one_wide_projection(family: str) -> None:
    """Its output is W z + Σ g b, with z the gated keys side by side; the router and other experts are not in it."""
    lm = tiny(family, dtype=torch.float64)
    module = lm.down_projection(2)
    with torch.no_grad(), lm.quiet(), captured(inputs={"z": module}, outputs={"y": module}) as found:
        lm.body(input_ids=torch.tensor([[5, 17, 90, 33]]))
    routed: Routed = found["z"]  # type: ignore[assignment]
    keys = routed[torch.arange(4)]
    assert bool((keys.view(4, 4, -1).abs().amax(dim=-1) > 0).sum(dim=1).eq(2).all())
    expected = keys @ lm.weight(2).flatten(1).T
    if module.has_bias:
        expected += torch.stack(
            [gates @ module.down_proj_bias[index] for index, gates in zip(routed.index, routed.gates, strict=True)]
        )
    torch.testing.assert_close(found["y"].reshape(4, -1), expected, rtol=1e-9, atol=1e-9)


def test_second_moments_of_experts_are_those_of_the_tokens_that_they_saw() -> None:
    lm = tiny("olmoe", dtype=torch.float64)
    corpus = Corpus("the sentences", lambda: iter(SENTENCES))
    (found,) = SecondMoment.read(lm, [2], corpus, 90, cache=False).values()
    sums, counts = torch.zeros_like(found.matrix), torch.zeros(4, dtype=torch.int64)
    left = 90
    for text in SENTENCES:
        ids = lm.tokenizer(text)["input_ids"][:left]
        left -= len(ids)
        if not ids:
            break
        with torch.no_grad(), lm.quiet(), captured(inputs={0: lm.down_projection(2)}) as seen:
            lm.body(input_ids=torch.tensor([ids]))
        routed: Routed = seen[0]  # type: ignore[assignment]
        for row, chosen in zip(routed[torch.arange(len(ids))].view(len(ids), 4, -1), routed.index, strict=True):
            for expert in chosen.tolist():
                sums[expert] += torch.outer(row[expert], row[expert])
                counts[expert] += 1
    assert found.counts is not None
    assert torch.equal(found.counts, counts)
    torch.testing.assert_close(found.matrix, sums / counts.clamp_min(1)[:, None, None], rtol=1e-9, atol=1e-12)


def test_a_mixture_is_edited_with_its_own_text_and_only_where_its_facts_go(tmp_path: Path) -> None:
    save_tiny(tmp_path / "base", "qwen3_moe")
    editor = Editor(
        str(tmp_path / "base"), method="alphaedit-blue", critical_layers=[1, 2], contexts=("{}",),
        corpus=str(save_corpus(tmp_path / "corpus.txt")), corpus_tokens=1500, settings={"target.clamp": 4},
    )  # fmt: skip
    original = {name: value.clone() for name, value in editor.model.state_dict().items()}
    before = [nll(editor.model, fact) for fact in FACTS]
    patch = editor.edit(FACTS)
    assert all(nll(editor.model, fact) < then for fact, then in zip(FACTS, before, strict=True))
    moved = {name for name, value in editor.model.state_dict().items() if not torch.equal(value, original[name])}
    assert moved == {f"model.layers.{layer}.mlp.experts.down_proj" for layer in (1, 2)}
    again = Editor(str(tmp_path / "base"), method="alphaedit-blue", corpus=str(tmp_path / "corpus.txt"))
    assert isinstance(editor.prepared.memory(1), RoutedKeys)
    editor.save_pretrained(tmp_path / "edited")
    patch.apply(again.model)
    saved = Editor(str(tmp_path / "edited"), method="alphaedit-blue", corpus=str(tmp_path / "corpus.txt"))
    for other in (again, saved):
        kept = other.model.state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in editor.model.state_dict().items())
    editor.edit([FACTS[0]])
    editor.undo()
    editor.undo()
    assert all(torch.equal(value, original[name]) for name, value in editor.model.state_dict().items())
    patch.save(tmp_path / "p.safetensors")
    loaded = Patch.load(tmp_path / "p.safetensors")
    loaded.remove(again.model, base=tmp_path / "base")
    assert all(torch.equal(value, original[name]) for name, value in again.model.state_dict().items())
    loaded.remove(saved.model)
    for name, value in saved.model.state_dict().items():  # without the base, up to rounding
        torch.testing.assert_close(value, original[name], rtol=0.0, atol=1e-6)


def test_how_many_tokens_of_ordinary_text_are_sent_elsewhere_is_counted() -> None:
    editor = editor_of("mixtral")
    text = " ".join(SENTENCES)
    before = read_routes(editor.lm, text)
    (ids,) = editor.lm.tokenizer([text])["input_ids"]
    with torch.no_grad(), captured(inputs={0: editor.lm.down_projection(3)}) as seen:
        editor.lm.body(input_ids=torch.tensor([ids]))
    routed: Routed = seen[0]  # type: ignore[assignment]
    assert torch.equal(before[3], routed.index.sort(dim=1).values)
    assert rerouted(before, before) == 0
    editor.edit(FACTS)
    after = read_routes(editor.lm, text)
    assert torch.equal(before[1], after[1])  # the first layer that is written comes after its router
    share = rerouted(before, after)
    assert share == sum((before[n] != after[n]).any(dim=1).sum().item() for n in before) / (4 * len(ids))
    assert share > 0
    assert rerouted(read_routes(tiny("llama")), {}) is None


def test_an_edit_reports_how_many_tokens_are_sent_elsewhere() -> None:
    report = edit_and_report(editor_of("mixtral"), [FACTS], measure=Measure(text=" ".join(SENTENCES)), progress=False)
    assert report.rerouted is not None
    assert report.to_dict()["rerouted"] == report.rerouted


def test_a_fact_is_refused_with_its_layer_where_the_corpus_says_too_little_of_its_expert(tmp_path: Path) -> None:
    editor = Editor(
        tiny_model("olmoe"), tiny_tokenizer(), method="memit-blue", critical_layers=[1, 2], contexts=("{}",),
        corpus=str(save_corpus(tmp_path / "corpus.txt")), corpus_tokens=130, settings={"solver.weight": 1},
    )  # fmt: skip
    original = editor.lm.weight(1).clone()
    with pytest.raises(
        ValueError, match=r"layer 1: corpus: the router sends a fact to expert \d, .*Give a longer text"
    ):
        editor.edit(FACTS)
    assert torch.equal(editor.lm.weight(1), original)


def test_a_solver_that_knows_nothing_of_experts_is_refused() -> None:
    method = replace(METHODS["memit-blue"], solver=Alone())
    moments = {1: torch.eye(64).expand(4, -1, -1)}
    editor = Editor(
        tiny_model("mixtral"), tiny_tokenizer(), method=method, critical_layers=[1], contexts=("{}",),
        second_moments=moments,
    )  # fmt: skip
    with pytest.raises(ValueError, match="solver=Alone: it cannot solve for the experts of layer 1"):
        editor.edit(FACTS)


@pytest.mark.parametrize("method", ["rect", "prune-blue", "alphaedit-sphere-blue"])
def test_a_regularizer_that_looks_at_a_whole_weight_is_refused_for_experts(method: str) -> None:
    with pytest.raises(ValueError, match=f"method='{method}': .* looks at a whole weight"):
        Editor(tiny_model("mixtral"), tiny_tokenizer(), method=method, critical_layers=(1, 2), corpus=SENTENCES)


@pytest.mark.parametrize("method", ["ultraedit", "pmet-blue"])
def test_other_methods_edit_experts_too(method: str) -> None:
    base = editor_of("mixtral")
    moments = {layer: torch.eye(64, dtype=torch.float64).expand(4, -1, -1) for layer in (1, 2)}
    quick: dict[str, float] = {"target.steps": 6, "target.clamp": 4}
    quick = {"ultraedit": {"solver.rate": 0.02}}.get(method, quick)
    editor = Editor(
        tiny_model("mixtral"), tiny_tokenizer(), method=method, critical_layers=(1, 2), contexts=("{}",),
        second_moments=moments, settings=quick,
    )  # fmt: skip
    original = editor.lm.weight(2).clone()
    editor.edit(FACTS)
    assert all(nll(editor.model, fact) < nll(base.model, fact) for fact in FACTS)
    editor.undo()
    assert torch.equal(editor.lm.weight(2), original)


# --- the shared expert


def test_a_family_without_the_shared_expert_that_others_have_is_refused() -> None:
    lm = LanguageModel(tiny_model("granitemoe_swa"), tiny_tokenizer())
    with pytest.raises(ValueError, match=r"has no shared_mlp.output_linear, so there is no expert that every token"):
        lm.with_shared_expert()


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "afmoe"])
def test_the_shared_expert_is_edited_in_place_of_the_others(family: str, tmp_path: Path) -> None:
    """After that of Qwen comes a gate, after AFMoE's a norm; the first layer of DeepSeek is dense."""
    layers = (1, 2)
    lm = LanguageModel(tiny_model(family), tiny_tokenizer())
    shared = lm.with_shared_expert()
    moments = {layer: torch.eye(shared.key_width(layer), dtype=torch.float64) for layer in layers}
    editor = Editor(
        lm.model, lm.tokenizer, method="memit-blue", critical_layers=layers, contexts=("{}",), second_moments=moments,
        shared_expert=True, settings={"target.steps": 8, "target.clamp": 8, "solver.weight": 0.001},
    )  # fmt: skip
    assert isinstance(editor.method.target, MlpOutput) == (family != "deepseek_v3")
    before, original = [nll(lm.model, fact) for fact in FACTS], tiny_model(family).state_dict()
    patch = editor.edit(FACTS)
    assert all(nll(lm.model, fact) < then for fact, then in zip(FACTS, before, strict=True))
    written = {name for name, value in lm.model.state_dict().items() if not torch.equal(value, original[name])}
    assert len(written) == 2
    assert all("shared_expert" in name and name.endswith("down_proj.weight") for name in written)
    assert editable_names(lm.model, shared_expert=True)[1] in written
    assert patch.config["shared_expert"] is True
    expected = logits(lm.model)
    patch.save(tmp_path / "p.safetensors")
    fresh = tiny_model(family)
    Patch.load(tmp_path / "p.safetensors").apply(fresh)
    torch.testing.assert_close(logits(fresh), expected)
    patch.remove(fresh, base=tiny_model(family))
    assert set(gguf_names(patch.config, layers).values()) == {f"blk.{at}.ffn_down_shexp.weight" for at in layers}
    peft = pytest.importorskip("peft")
    patch.to_lora(tmp_path / "lora")
    adapted = peft.PeftModel.from_pretrained(fresh, str(tmp_path / "lora")).eval()
    torch.testing.assert_close(logits(adapted), expected, rtol=0.0, atol=2e-4)
    editor.undo()
    assert all(torch.equal(value, original[name]) for name, value in lm.model.state_dict().items())


def test_dense_layers_of_a_mixture_are_edited_and_exported_beside_layers_of_experts(tmp_path: Path) -> None:
    lm, layers = LanguageModel(tiny_model("deepseek_v3"), tiny_tokenizer()), (0, 1)
    assert [lm.experts(layer) for layer in layers] == [0, 4]
    moments = {layer: unit_moment(lm, layer) for layer in layers}
    editor = Editor(
        lm.model, lm.tokenizer, method="memit", critical_layers=layers, contexts=("{}",), second_moments=moments,
        settings={"target.steps": 8, "target.clamp": 4, "solver.weight": 0.01},
    )  # fmt: skip
    original = logits(lm.model)
    patch = editor.edit(FACTS)
    expected = logits(lm.model)
    peft = pytest.importorskip("peft")
    patch.to_lora(tmp_path / "lora")
    adapted = peft.PeftModel.from_pretrained(tiny_model("deepseek_v3"), str(tmp_path / "lora")).eval()
    torch.testing.assert_close(logits(adapted), expected, rtol=0.0, atol=2e-4)
    assert float((expected - original).abs().max()) > 0.1


def test_a_family_without_a_shared_expert_says_so() -> None:
    with pytest.raises(RecipeError, match=r"shared_expert=True: model_type='mixtral' has no expert that every token"):
        Editor(tiny_model("mixtral"), tiny_tokenizer(), shared_expert=True)
    with pytest.raises(RecipeError, match="families that have one: afmoe, deepseek_v2, deepseek_v3"):
        Editor(tiny_model("llama"), tiny_tokenizer(), shared_expert=True)


def test_second_moments_of_a_shared_expert_are_other_ones_in_the_cache(tmp_path: Path) -> None:
    lm = tiny("qwen2_moe")
    corpus = Corpus("the sentences", lambda: iter(SENTENCES))
    routed, shared = (SecondMoment.read(one, [1], corpus, 90, tmp_path)[1] for one in (lm, lm.with_shared_expert()))
    assert routed.matrix.dim() == 3
    assert shared.matrix.shape == (64, 64)
    again = SecondMoment.read(lm, [1], corpus, 90, tmp_path)[1]
    assert torch.equal(again.matrix, routed.matrix)
    assert again.counts is not None
    assert routed.counts is not None
    assert torch.equal(again.counts, routed.counts)
