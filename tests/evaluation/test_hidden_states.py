"""Hidden states against plain forward passes, and measures of their shift on states moved by a known map."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models import FAMILIES, SENTENCES, tiny

from factpatch.evaluation.hidden_states import HiddenShift, hidden_states, tsne_map
from factpatch.lab.drawing.charts import check_plot_file
from factpatch.lab.drawing.shapes import plot_hidden_shift
from factpatch.model import tree

PROMPTS = [
    "The mother tongue of Danielle Darrieux is",
    "Danielle Darrieux speaks",
    "The Eiffel Tower is in the city of",
    "The",
    "What does the capital of Japan look like?",
    "Danielle Darrieux speaks",
]
SUBJECTS = ["Danielle Darrieux", "Danielle Darrieux", "Eiffel Tower", "The", "Japan", "Danielle Darrieux"]
ENDS = [prompt.index(subject) + len(subject) - 1 for prompt, subject in zip(PROMPTS, SUBJECTS, strict=True)]


def states(n: int = 12, width: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def rotation(width: int, seed: int = 1) -> torch.Tensor:
    return torch.linalg.qr(states(width, width, seed))[0]


def naive(lm, text: str, layer: int, characters: int) -> torch.Tensor:
    """The output of a block at the last token that stands for one of the first characters."""
    encoded = lm.tokenizer(text, return_offsets_mapping=True)
    place = max(i for i, (start, end) in enumerate(encoded["offset_mapping"]) if start < characters and end > start)
    found = []
    hook = lm.block(layer).register_forward_hook(
        lambda module, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([encoded["input_ids"]]))
    hook.remove()
    return found[0].reshape(-1, lm.d_value)[place]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_in_batches_equal_one_forward_each(family, monkeypatch):
    monkeypatch.setattr(tree, "TOKEN_BUDGET", 12)
    lm = tiny(family, bos=True, dtype=torch.float64)
    tolerance = 1e-5 if family == "gptj" else 1e-9  # transformers keeps GPT-J's attention scores in float32
    at_end = torch.stack([naive(lm, prompt, 2, len(prompt)) for prompt in PROMPTS])
    assert torch.allclose(hidden_states(lm, PROMPTS, 2), at_end, rtol=tolerance, atol=tolerance)
    at_subject = torch.stack([naive(lm, prompt, 2, end + 1) for prompt, end in zip(PROMPTS, ENDS, strict=True)])
    assert torch.allclose(hidden_states(lm, PROMPTS, 2, ENDS), at_subject, rtol=tolerance, atol=tolerance)


def test_a_changed_layer_shows_in_it_and_not_below():
    lm = tiny("llama")
    before = [hidden_states(lm, PROMPTS, layer) for layer in (1, 2)]
    with torch.no_grad():
        lm.weight(2).mul_(1.5)
    after = [hidden_states(lm, PROMPTS, layer) for layer in (1, 2)]
    assert torch.equal(before[0], after[0])
    assert HiddenShift.between(before[1], after[1]).relative_shift > 0.01


def test_in_a_chat_the_subject_is_found_after_the_template():
    lm = tiny("llama", dtype=torch.float64, chat=True)
    for prompt, end in zip(PROMPTS, ENDS, strict=True):
        wrapped = lm.frame.wrap(prompt)
        expected = naive(lm, wrapped, 1, wrapped.index(prompt) + end + 1)
        assert torch.allclose(hidden_states(lm, [f" {prompt} "], 1, [end + 1])[0], expected, rtol=1e-9, atol=1e-9)


def test_unusable_prompts_are_refused():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match=r"prompts=\[\]"):
        hidden_states(lm, [], 1)
    with pytest.raises(ValueError, match=r"prompt='' has no tokens"):
        hidden_states(lm, ["The", ""], 1)
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        hidden_states(lm, PROMPTS, 4)
    with pytest.raises(ValueError, match="reads 256"):
        hidden_states(lm, [" ".join(SENTENCES * 3)], 1)
    with pytest.raises(ValueError, match="ends: 3 is no index of a character of 'The'"):
        hidden_states(lm, ["The"], 1, [3])
    with pytest.raises(ValueError, match="1 for 2 prompts"):
        hidden_states(lm, ["The", "In"], 1, [2])


def test_no_shift():
    shift = HiddenShift.between(states(), states())
    assert (shift.prompts, shift.relative_shift, shift.mean_distance) == (12, 0, 0)
    assert shift.cka == pytest.approx(1)


def test_scaled_states_moved_by_their_scale():
    h = states()
    shift = HiddenShift.between(h, 1.25 * h)
    assert shift.relative_shift == pytest.approx(0.25)
    assert shift.cka == pytest.approx(1)


def test_turned_scaled_and_moved_states_are_aligned():
    h = states()
    shift = HiddenShift.between(h, 3 * h @ rotation(7) + 5)
    assert shift.cka == pytest.approx(1)
    assert shift.relative_shift > 1


def test_states_moved_as_a_whole_are_aligned_and_apart_by_that_distance():
    h = states()
    move = torch.arange(7.0, dtype=torch.float64)
    shift = HiddenShift.between(h, h + move)
    spread = math.sqrt(sum(float((row - h.mean(0)).square().sum()) for row in h) / len(h))
    assert shift.mean_distance == pytest.approx(float(move.norm()) / spread)
    assert shift.cka == pytest.approx(1)


def test_alignment_by_hand():
    # One feature, three prompts, centered: (x·y)² / (‖x‖² ‖y‖²) is 0, and (x·z)² / (‖x‖² ‖z‖²) is 1/4.
    x, y, z = (torch.tensor(row, dtype=torch.float64)[:, None] + 7 for row in ([-1, 1, 0], [1, 1, -2], [-1, 0, 1]))
    assert HiddenShift.between(x, y).cka == pytest.approx(0, abs=1e-12)
    assert HiddenShift.between(x, z).cka == pytest.approx(1 / 4)


@pytest.mark.parametrize(("n", "width"), [(5, 30), (30, 5)])
def test_alignment_equals_its_definition_by_features(n, width):
    one, other = states(n, width), states(n, width, seed=3)
    x, y = one - one.mean(0), other - other.mean(0)
    expected = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert HiddenShift.between(one, other).cka == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (states(3), states(4), r"shapes \(3, 7\) and \(4, 7\)"),
        (states(1), states(1), "n ≥ 2"),
        (states(), states() / 0, "after: some hidden states are not finite"),
        (torch.cat([states(2), torch.zeros(1, 7)]), states(3), "state 2 is zero"),
        (torch.ones(3, 7), states(3), "before: all states are the same"),
    ],
)
def test_states_without_a_measure_are_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        HiddenShift.between(before, after)


def test_the_map_is_the_same_for_the_same_seed_and_keeps_groups_apart(tmp_path):
    pytest.importorskip("sklearn", reason="t-SNE needs scikit-learn: pip install 'factpatch[evaluate]'")
    before, after = states(20), states(20, seed=2) + 40
    first, again, other = (tsne_map(before, after, seed, perplexity=5) for seed in (0, 0, 1))
    assert [places.shape for places in first] == [(20, 2), (20, 2)]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    # Every state lies nearer to the center of its own group.
    centers = [places.mean(0) for places in other]
    assert ((other[0] - centers[0]).norm(dim=-1) < (other[0] - centers[1]).norm(dim=-1)).all()
    with pytest.raises(ValueError, match=r"perplexity=40: .* below the number of states, 40"):
        tsne_map(before, after, perplexity=40)


@pytest.mark.parametrize("extension", ["png", "svg"])
def test_the_map_is_drawn(extension, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'factpatch[plots]'")
    path = tmp_path / f"map.{extension}"
    plot_hidden_shift(path, torch.randn(20, 2), torch.randn(20, 2), "a title")
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[extension])
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown extension '.txt'; known: .png, .svg, .pdf"):
        check_plot_file(tmp_path / "map.txt")
