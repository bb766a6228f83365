"""Methods that follow gradients, against plain autograd and the papers' formulas in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors import CONTEXTS, EXACT, FACTS, LAYERS, make
from tests.models import INNER, SENTENCES, WIDTH, tiny
from torch import Tensor

import factpatch.values.gradients as gradients_module
from factpatch import METHODS, Editor, Fact, Method, Patch, Ridge, Session
from factpatch.methods import with_settings
from factpatch.model.language_model import LanguageModel
from factpatch.model.precision import precision_for
from factpatch.statistics import ordinary
from factpatch.statistics.ordinary import ordinary_gradients
from factpatch.strategies import AnswerGradients, Each
from factpatch.strategies.normalization import Normalizing, Statistics, Whitening
from factpatch.strategies.solver import Ordinary
from factpatch.values.gradients import Text, read_gradients

RATE, L2 = 0.003, 0.7
METHOD = with_settings(METHODS["ultraedit"], {"solver.rate": RATE, "solver.l2": L2})
# The prompts of the last two begin alike, and an answer of the first is a token of the second's prompt.
ALIKE = (
    *FACTS,
    Fact("The tower in the city of {}", "Paris", "is"),
    Fact("The tower in the city of {} is", "Paris", "Rome"),
)
Rows = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another version of the code has kept must not take the place of what is tested."""
    monkeypatch.setenv("FACTPATCH_CACHE", str(tmp_path / "cache"))


def plain_rows(lm: LanguageModel, ids: Sequence[int], answers: int, layer: int) -> Rows:
    """x and ∂NLL/∂y of a text by plain autograd, where its last `answers` tokens are predicted."""
    kept: dict[str, Tensor] = {}

    def keep(module: Any, args: Any, output: Tensor) -> Tensor:
        kept["x"] = args[0].detach().reshape(-1, INNER)
        kept["y"] = output.clone().requires_grad_()
        return kept["y"]

    handle = lm.down_projection(layer).register_forward_hook(keep)
    logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
    handle.remove()
    places = slice(len(ids) - answers - 1, len(ids) - 1)
    nll = torch.nn.functional.cross_entropy(logits[places], torch.tensor(ids[-answers:]), reduction="sum")
    (gradient,) = torch.autograd.grad(nll, kept["y"])
    return kept["x"][places], gradient.reshape(-1, WIDTH)[places]


def answer_rows(lm: LanguageModel, facts: Sequence[Fact], layer: int) -> Rows:
    """The rows of a batch."""
    found = []
    for fact in facts:
        prompt, answer = (lm.tokenizer(text)["input_ids"] for text in (fact.text, f" {fact.target_new}"))
        found.append(plain_rows(lm, [*prompt, *answer], len(answer), layer))
    keys, gradients = zip(*found, strict=True)
    return torch.cat(keys), torch.cat(gradients)


def ordinary_rows(lm: LanguageModel, layer: int) -> Rows:
    """The rows of all sentences that the tests have."""
    texts = [lm.tokenizer(text)["input_ids"] for text in SENTENCES]
    keys, gradients = zip(*(plain_rows(lm, ids, len(ids) - 1, layer) for ids in texts), strict=True)
    return torch.cat(keys), torch.cat(gradients)


def formula(batch: Rows, seen: Sequence[Rows], normalize: Callable[[Tensor], Callable[[Tensor], Tensor]]) -> Tensor:
    """Δ of the last batch, given the rows of all so far; `normalize` learns from all gradients."""
    keys, gradients = (torch.cat(parts) for parts in zip(*seen, strict=True))
    hat = deviations(keys)(batch[0])
    wanted = -RATE * (hat * hat).sum(dim=1, keepdim=True) * normalize(gradients)(batch[1])
    system = batch[0].T @ batch[0] + L2 * torch.eye(INNER, dtype=EXACT)
    return torch.linalg.solve(system, batch[0].T @ wanted).T


def deviations(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda some: (some - rows.mean(dim=0)) / rows.std(dim=0)


def whitening(floor: float) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """ZCA by the singular values of the centered rows, which give no covariance matrix."""

    def learn(rows: Tensor) -> Callable[[Tensor], Tensor]:
        _, singular, right = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
        variances = singular**2 / (len(rows) - WIDTH - 1)
        scale = variances.clamp_min(floor * float(variances.mean())) ** -0.5
        return lambda some: (some - rows.mean(dim=0)) @ right.T @ torch.diag(scale) @ right

    return learn


def shifts(patch: Patch) -> dict[int, Tensor]:
    return {layer: shift.matrix() for layer, shift in patch.batches[0].shifts.items()}


def check_batches(editor: Editor, before: dict[int, list[Rows]], normalize: Any) -> None:
    """Edit two batches and compare every layer with the formula, on the weights before each batch."""
    for batch in (ALIKE[:3], ALIKE[3:]):
        rows = {layer: answer_rows(editor.lm, batch, layer) for layer in LAYERS}
        found = shifts(editor.edit(batch))
        assert set(found) == set(LAYERS)
        for layer in LAYERS:
            before[layer].append(rows[layer])
            expected = formula(rows[layer], before[layer], normalize)
            torch.testing.assert_close(found[layer], expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_two_batches_of_ultraedit_equal_plain_autograd_and_the_closed_form(family: str) -> None:
    check_batches(make(METHOD, family), {layer: [] for layer in LAYERS}, deviations)


@pytest.mark.parametrize("floor", [1e-3, 0.5])
def test_stableedit_whitens_gradients_by_statistics_that_begin_on_ordinary_text(floor: float) -> None:
    lm = tiny("llama", dtype=EXACT)
    ordinary = {layer: [ordinary_rows(lm, layer)] for layer in LAYERS}
    count = len(ordinary[LAYERS[0]][0][0])
    assert count > WIDTH + 1
    settings = {"solver.rate": RATE, "solver.l2": L2, "solver.warm_up": count, "solver.floor": floor}
    editor = make("stableedit", settings=settings)
    check_batches(editor, ordinary, whitening(floor))
    assert editor.settings["second_moment"]["gradient_tokens"] == count


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The layers of every pass over ordinary text."""
    found: list[list[int]] = []

    def counted(lm: LanguageModel, layers: Sequence[int], *given: Any) -> Any:
        found.append(list(layers))
        return ordinary_gradients(lm, layers, *given)

    monkeypatch.setitem(ordinary._READERS, Ordinary.GRADIENTS, counted)
    return found


def test_the_warm_up_is_read_once_and_gives_the_same_bits_from_the_cache(passes: list[list[int]]) -> None:
    first = shifts(make("stableedit", dtype=torch.float32).edit(FACTS))
    again = make("stableedit", dtype=torch.float32)
    assert all(torch.equal(shift, first[layer]) for layer, shift in shifts(again.edit(FACTS)).items())
    assert passes == [list(LAYERS)]
    assert again.settings["second_moment"]["gradient_tokens"] == 60
    again.undo()
    again.prepare([0])  # of a layer that is not held alone
    assert passes == [list(LAYERS), [0]]
    assert all(torch.equal(shift, first[layer]) for layer, shift in shifts(again.edit(FACTS)).items())


def tuned(editor: Editor) -> Editor:
    """With another weight above all layers that are written."""
    with torch.no_grad():
        next(iter(editor.model.lm_head.parameters())).mul_(1.01)
    return editor


OTHERS: dict[str, Callable[[], Editor]] = {
    "model": lambda: tuned(make("stableedit")),
    "dtype": lambda: make("stableedit", dtype=torch.float32),
    "precision": lambda: make("stableedit", dtype=torch.float32, precision="exact"),
    "corpus": lambda: make("stableedit", corpus=list(SENTENCES[::-1])),
    "tokens": lambda: make("stableedit", settings={"solver.warm_up": 61}),
    "setting": lambda: make("stableedit", settings={"solver.floor": 0.5}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_warm_up_of_another_model_text_or_setting_is_not_taken(other: str, passes: list[list[int]]) -> None:
    make("stableedit").prepare()
    OTHERS[other]().prepare()
    assert passes == [list(LAYERS)] * 2
    OTHERS[other]().prepare()
    make("stableedit").prepare()
    assert len(passes) == 2


def test_a_damaged_warm_up_is_read_again_and_too_short_a_text_leaves_none(
    passes: list[list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match="fewer than warm_up=5000"):
        make("stableedit", settings={"solver.warm_up": 5000}).prepare()
    assert not list(tmp_path.rglob("*.safetensors"))
    make("stableedit").prepare()
    first, *_ = sorted(tmp_path.rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:-8] + bytes(8))
    make("stableedit").prepare()
    assert len(passes) == 3
    assert len(passes[2]) == 1  # the damaged one alone
    assert "it is damaged" in caplog.text


def test_without_a_warm_up_stableedit_divides_by_deviations_until_there_are_rows_enough() -> None:
    settings = {"solver.rate": RATE, "solver.l2": L2, "solver.warm_up": 0}
    plain, whitened = make(METHOD), make("stableedit", settings=settings)
    for one, other in zip(*(shifts(editor.edit(FACTS[:2])).values() for editor in (plain, whitened)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_warm_up_writes_nothing_and_is_of_the_unedited_model() -> None:
    editor = make("stableedit")
    before = {name: value.clone() for name, value in editor.model.state_dict().items()}
    editor.prepare()
    assert all(torch.equal(value, before[name]) for name, value in editor.model.state_dict().items())
    editor.edit(FACTS)
    with pytest.raises(ValueError, match="layer 0: there are no statistics yet, and the model is edited already"):
        editor.prepare([0])


def test_a_text_that_is_too_short_for_the_warm_up_is_refused() -> None:
    editor = make("stableedit", settings={"solver.warm_up": 5000})
    with pytest.raises(ValueError, match=r"fewer than warm_up=5000; give a longer text, or set solver\.warm_up"):
        editor.edit(FACTS)
    with pytest.raises(ValueError, match="needs a text"):
        Editor(tiny("llama"), method="stableedit", critical_layers=LAYERS, contexts=CONTEXTS)


@pytest.mark.parametrize("memory", [Normalizing(RATE, L2), Whitening(RATE, L2, 1e-3)], ids=["deviations", "covariance"])
def test_statistics_of_many_batches_are_those_of_all_their_rows(memory: Normalizing) -> None:
    generator = torch.Generator().manual_seed(0)
    # One batch has more rows than a gradient has entries, the others fewer.
    batches = [
        (torch.randn(n, 5, generator=generator, dtype=EXACT), 3 + torch.randn(n, 4, generator=generator, dtype=EXACT))
        for n in (1, 3, 17, 2)
    ]
    memory.follow([memory.trace(*batch) for batch in batches])
    rows = torch.cat([torch.cat(batch, dim=1) for batch in batches])
    seen = memory.seen
    assert isinstance(seen, Statistics)
    assert seen.count == len(rows)
    torch.testing.assert_close(seen.mean, rows.mean(dim=0))
    torch.testing.assert_close(seen.precision(), 1 / rows.std(dim=0))
    if seen.matrix is not None:
        torch.testing.assert_close(seen.matrix / (len(rows) - 1), torch.cov(rows[:, 5:].T))


def test_a_dimension_that_does_not_vary_counts_nothing() -> None:
    memory = Normalizing(RATE, L2)
    keys = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    residual = torch.tensor([[0.3, 1.0], [0.3, -1.0], [0.3, 0.5]])
    shift = memory.solve(keys, residual).matrix()
    assert torch.equal(shift[0], torch.zeros(2, dtype=EXACT))
    assert bool(torch.isfinite(shift).all())
    assert float(shift[1].norm()) > 0


def test_how_texts_are_batched_changes_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama", dtype=EXACT)
    texts = [Text((5, 6, 7, 8, 9), (7, 9)), Text((5, 6), (3,)), Text((5, 6, 7), (1, 2, 3))]
    whole = read_gradients(lm, texts, [1, 3], precision_for(lm))
    monkeypatch.setattr(gradients_module, "TOKENS_AT_ONCE", 1)
    alone = read_gradients(lm, texts, [1, 3], precision_for(lm))
    for layer in (1, 3):
        assert whole[layer].keys.shape == (6, INNER)
        torch.testing.assert_close(whole[layer].keys, alone[layer].keys)
        torch.testing.assert_close(whole[layer].slopes, alone[layer].slopes)


def test_what_does_not_fit_into_memory_is_read_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama", dtype=EXACT)
    texts = [Text((5, 6, 7, 8, 9), (7, 9)), Text((5, 6), (3,)), Text((5, 6, 7), (1, 2, 3))]
    whole = read_gradients(lm, texts, [2], precision_for(lm))
    read, sizes = gradients_module._read, []

    def limited(lm: LanguageModel, some: Sequence[Text], layers: Sequence[int]) -> Rows:
        sizes.append(len(some))
        if len(some) > 1:
            raise torch.cuda.OutOfMemoryError("made up")
        return read(lm, some, layers)

    monkeypatch.setattr(gradients_module, "_read", limited)
    halved = read_gradients(lm, texts, [2], precision_for(lm))
    assert sizes == [3, 1, 2, 1, 1]
    torch.testing.assert_close(whole[2].slopes, halved[2].slopes)


def test_a_single_answer_token_is_refused_as_the_first_batch_and_the_model_stays() -> None:
    editor = make(METHOD)
    one = Fact("The capital of {} is", "Finland", "Rome")
    assert len(editor.tokenizer(" Rome")["input_ids"]) == 1
    before = editor.lm.weight(1).clone()
    with pytest.raises(ValueError, match=r"one answer token.*Edit more facts at once"):
        editor.edit([one])
    assert torch.equal(editor.lm.weight(1), before)
    editor.edit(FACTS)
    editor.edit([one])
    make("stableedit").edit([one])


def test_undo_restores_the_statistics() -> None:
    editor, plain = make(METHOD, dtype=torch.float32), make(METHOD, dtype=torch.float32)
    for one in (editor, plain):
        one.edit(FACTS[:2])
    editor.edit(FACTS[2:3])
    editor.undo()
    assert editor.edit(FACTS[3:]).batches[0].after == plain.edit(FACTS[3:]).batches[0].after


def test_traces_hold_no_rows_of_keys() -> None:
    editor = make(METHOD)
    editor.edit(FACTS)
    assert {name: tensor.shape for name, tensor in editor.edits[0].traces[1].items()} == {
        "count": (),
        "mean": (INNER + WIDTH,),
        "scatter": (INNER + WIDTH,),
    }
    assert editor.edits[0].keys == {}
    assert editor.edits[0].targets == {}


def test_gradients_go_with_any_solver_and_a_session_saves_keys_that_cannot_be_read_again(tmp_path: Path) -> None:
    """A batch changes the keys of its own upper layers, which are those from before it."""
    method = Method("mixed", AnswerGradients(), Each(), Ridge())
    whole = make(method, dtype=torch.float32)
    expected = [whole.edit([fact]).batches[0].after for fact in FACTS]
    session = Session.create(tmp_path / "session", make(method, dtype=torch.float32), [[fact] for fact in FACTS])
    for _ in FACTS:
        session, editor = Session(tmp_path / "session"), make(method, dtype=torch.float32)
        with session.locked():
            session.attach(editor)
            session.edit(editor, ask=False)
    assert [patch.batches[0].after for patch in session.patches()] == expected


def test_a_method_without_values_says_so() -> None:
    with pytest.raises(ValueError, match="method='ultraedit': it follows gradients, so it optimizes no values"):
        make("ultraedit").target_values(FACTS, 1)
    with pytest.raises(ValueError, match="AnswerGradients, which has no field 'steps'"):
        with_settings(METHODS["ultraedit"], {"target.steps": 3})


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [
        ("ultraedit", "rate", 0),
        ("ultraedit", "l2", -1),
        ("stableedit", "warm_up", -1),
        ("stableedit", "floor", 0),
        ("stableedit", "floor", 2),
    ],
)
def test_settings_out_of_range_are_refused(method: str, setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{setting}={value}"):
        with_settings(METHODS[method], {f"solver.{setting}": value})
