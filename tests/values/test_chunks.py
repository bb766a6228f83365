"""Long answers in chunks: their rows and anchors, δs with the earlier ones in place, and what is written of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from tests.editors import CONTEXTS, FACTS, LAYERS, make, second_moments
from tests.models import POSITIONS, tiny
from torch import Tensor

from factpatch import Fact
from factpatch.evaluation.metrics import summary
from factpatch.evaluation.readings import Answer, Reading
from factpatch.evaluation.reproduction import is_long, reproduced, rouge_l
from factpatch.model.hooks import adding
from factpatch.model.language_model import LanguageModel
from factpatch.strategies import AttentionAndMlp, HiddenState, Target
from factpatch.values.chunks import Anchors, _cheapest, anchors_of, key_lengths, rounds_of, starts_of
from factpatch.values.optimize import optimize_values
from factpatch.values.reading import SubjectRows, read_last
from factpatch.values.rows import Row, optimization_rows

LONG = Fact("The story of {} is", "Finland", "a large city on the coast, in which people speak and play football.")
MIDDLE = Fact("{} plays the sport of", "Messi", "basketball in Rome, the capital of Italy")
BATCH = (FACTS[0], LONG, MIDDLE)
QUICK = {"steps": 4, "learning_rate": 0.3, "clamp": 2.0, "weight_decay": 0.0, "kl_factor": 0.0}


def test_a_row_is_split_at_its_chunks() -> None:
    row = Row(0, 0, (1, 2, 3, 10, 11, 12, 13), 1, (10, 11, 12, 13, 14), 0.2)  # 3 is the prompt's last token
    kl = Row(0, -1, (1, 2), 1, (), 0.0)
    alike = {0: [1.0] * len(row.ids)}
    starts = starts_of([row, kl], 2, alike)
    assert starts == [(0, 2, 4)]
    assert anchors_of(row, starts[0]) == (1, 4, 6)
    first, second, third = rounds_of([row, kl], starts, ahead=False)
    assert first.rows == (replace(row, ids=(1, 2, 3, 10), targets=(10, 11), weight=0.5), kl)
    assert second.rows == (
        replace(row, ids=(1, 2, 3, 10, 11, 12), subject=4, targets=(12, 13), weight=0.5, earlier=(1,)),
    )
    assert third.rows == (replace(row, subject=6, targets=(14,), weight=1.0, earlier=(1, 4)),)
    assert third.begins(0) == [(1, 2, 3, 10, 11, 12, 13)]
    ahead = rounds_of([row, kl], starts, ahead=True)
    assert [one.rows[0].targets for one in ahead] == [(10, 11, 12, 13, 14), (12, 13, 14), (14,)]
    assert [one.rows[0].subject for one in ahead] == [1, 4, 6]
    (whole,) = rounds_of([row, kl], starts_of([row, kl], 0, alike), ahead=False)
    assert whole.rows == (row, kl)
    # A context in which the answer has fewer tokens.
    shorter = replace(row, context=1, ids=row.ids[:-2], targets=row.targets[:-2])
    rounds = rounds_of([row, shorter, kl], starts, ahead=False)
    assert [len([one for one in part.rows if one.targets]) for part in rounds] == [2, 2, 1]
    assert anchors_of(shorter, starts[0]) == (1, 4, 4)


def test_chunks_begin_after_long_keys() -> None:
    row = Row(0, 0, (1, 2, 3, *range(10, 20)), 1, tuple(range(10, 21)), 0.2)  # 3 is the prompt's last token

    def starts(size: int, **longer: float) -> tuple[int, ...]:
        # ‖k‖ is 1 but at the named tokens of the answer, and larger in the prompt, which cannot be chosen.
        lengths = [9.0] * 3 + [longer.get(f"token_{token}", 1.0) for token in range(10)]
        (found,) = starts_of([row], size, {0: lengths})
        return found

    assert starts(4) == (0, 4, 8)
    assert starts(4, token_2=2.0) == (0, 3, 7)
    assert starts(4, token_2=2.0, token_5=2.0) == (0, 3, 7)  # and not 6, which takes one more
    assert starts(4, token_0=2.0, token_4=2.0, token_8=2.0) == (
        0,
        1,
        5,
        9,
    )  # three long keys in place of two short ones
    assert starts(4, token_3=0.0) == (0, 3, 7)
    assert starts(11) == (0,)
    assert starts_of([row], 0, {}) == [(0,)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("count", range(1, 10))
def test_no_other_chunks_cost_less(count: int, size: int) -> None:
    costs = torch.rand(count, generator=torch.Generator().manual_seed(count)).tolist()
    found = _cheapest(costs, size)
    ends = (*found[1:], len(costs))
    assert found[0] == 0
    assert all(0 < end - start <= size for start, end in zip(found, ends, strict=True))
    places = range(1, len(costs))
    others = (
        (0, *some) for number in range(count) for some in combinations(places, number)
        if all(end - start <= size for start, end in pairwise((0, *some, len(costs))))
    )  # fmt: skip
    least = min(sum(costs[start] for start in starts[1:]) for starts in others)
    assert sum(costs[start] for start in found[1:]) == pytest.approx(least)


def test_key_lengths_are_read_in_a_low_layer_of_long_answers_alone() -> None:
    lm = tiny("llama")
    (row, *_) = optimization_rows(lm, [LONG], CONTEXTS)
    (lengths,) = key_lengths(lm, [row], 5).values()
    place = row.subject + 1
    (key,) = read_last(lm, [row.ids[: place + 1]], 1, "down_projection", "inputs")
    assert lengths[place] == pytest.approx(float(key.norm()))
    assert key_lengths(lm, [row], len(row.targets)) == {}


def nll_of_chunks(
    lm: LanguageModel, fact: Fact, layer: int, target: Target, deltas: Tensor, contexts: Sequence[str]
) -> Tensor:
    """The mean NLL of each chunk over contexts, read from whole texts with δ, (chunks, d_value), at the anchors."""
    rows = [row for row in optimization_rows(lm, [fact], contexts) if row.targets]
    (starts,) = starts_of(rows, target.chunk, key_lengths(lm, rows, target.chunk))
    count = len(starts)
    found = torch.zeros(count, dtype=torch.float64)
    for row in rows:
        anchors = anchors_of(row, starts)
        for chunk in range(count):
            # Later δs are not there yet.
            with ExitStack() as stack:
                places = torch.tensor(anchors[: chunk + 1])
                stack.enter_context(adding([getattr(lm, target.site)(layer)], places, deltas[: chunk + 1, None]))
                stack.enter_context(torch.no_grad())
                said = lm.log_probabilities(lm.body(input_ids=torch.tensor([row.ids]))[0])
            scores = said[-len(row.targets) :].gather(1, torch.tensor(row.targets)[:, None])[:, 0]
            end = None if target.ahead else (*starts, None)[chunk + 1]
            found[chunk] -= scores[starts[chunk] : end].mean() * row.weight * len(row.targets)
    return found


@pytest.mark.parametrize(("family", "ahead"), [("llama", False), ("gpt2", True)])
def test_each_delta_is_found_with_the_earlier_ones_in_place(family: str, ahead: bool) -> None:
    lm, target = tiny(family, dtype=torch.float64), HiddenState(chunk=5, ahead=ahead, **QUICK)  # type: ignore[arg-type]
    found = optimize_values(lm, BATCH, 1, target, CONTEXTS)
    counts = Anchors.of(lm, BATCH, CONTEXTS, target).counts
    assert len(found.loss) == sum(counts)
    assert max(counts) > 2
    start = 0
    for fact, count in zip(BATCH, counts, strict=True):
        rows = slice(start, start + count)
        expected = nll_of_chunks(lm, fact, 1, target, found.delta[rows], CONTEXTS)
        torch.testing.assert_close(found.loss[rows], expected, rtol=1e-9, atol=1e-9)
        start += count


def test_two_sites_and_answers_that_are_short_enough() -> None:
    lm = tiny("llama", dtype=torch.float64)
    plain = optimize_values(lm, BATCH, 1, HiddenState(**QUICK), CONTEXTS)  # type: ignore[arg-type]
    whole = optimize_values(lm, BATCH, 1, HiddenState(chunk=200, **QUICK), CONTEXTS)  # type: ignore[arg-type]
    assert torch.equal(plain.values, whole.values)
    sites = optimize_values(lm, BATCH, 1, AttentionAndMlp(chunk=5, **QUICK), CONTEXTS)  # type: ignore[arg-type]
    assert len(sites.loss) == sum(Anchors.of(lm, BATCH, CONTEXTS, HiddenState(chunk=5)).counts)


def test_keys_are_read_at_the_anchors_and_between_them() -> None:
    lm = tiny("llama")
    short = Anchors.of(lm, FACTS, CONTEXTS, HiddenState(chunk=200))
    assert short == Anchors(SubjectRows.of(lm, FACTS, CONTEXTS), (1,) * len(FACTS))
    (row, *_) = optimization_rows(lm, [LONG], CONTEXTS)
    found = Anchors.of(lm, [LONG], CONTEXTS, HiddenState(chunk=5))
    (count,) = found.counts
    (starts,) = starts_of([row], 5, key_lengths(lm, [row], 5))
    anchors = anchors_of(row, starts)
    assert found.subjects.bare() == [list(row.ids[: place + 1]) for place in anchors]
    assert len(found.subjects.rows) == count * len(CONTEXTS)
    assert len(found.between) == len(row.ids) - row.subject - count


def test_a_long_answer_is_written_beside_short_ones_and_taken_back() -> None:
    made = make("memit-blue", settings={"target.chunk": 5, "target.clamp": 2.0})
    before = {layer: weight.clone() for layer, weight in made.lm.weights(made.written_layers).items()}
    patch = made.edit(BATCH)
    (edit,) = made.edits
    counts = Anchors.of(made.lm, BATCH, CONTEXTS, made.method.optimized).counts
    expected = tuple(fact for fact, count in zip(BATCH, counts, strict=True) for _ in range(count))
    assert set(edit.rows.values()) == {expected}
    assert patch.ranks == dict.fromkeys(made.written_layers, sum(counts))
    assert all(len(values) == sum(counts) for values in edit.values.values())
    made.undo_fact(LONG)
    assert patch.facts == list(BATCH)
    assert made.patch.facts == [BATCH[0], BATCH[2]]
    assert set(made.patch.ranks.values()) == {sum(counts) - counts[1]}
    made.reset()
    assert all(torch.equal(weight, before[layer]) for layer, weight in made.lm.weights(made.written_layers).items())


def test_tokens_between_the_anchors_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for preserved in (True, False):
        made = make("memit-blue", settings={"target.chunk": 5, "target.clamp": 2.0})
        if not preserved:
            monkeypatch.setattr(type(made), "_between", lambda self, layer, rows: [])
        (step, rows), *_ = made._plan(BATCH)
        keys = rows.between(made.lm, step.layer)
        assert keys is not None
        patch = made.edit(BATCH)
        shift = patch.batches[0].shifts[step.layer].matrix()
        moved.append(float((keys.double() @ shift.T).norm()))
    assert moved[0] < 0.7 * moved[1]


def test_layers_in_which_anchors_are_found_are_not_written() -> None:
    made = make(critical_layers=(0, 1), settings={"target.chunk": 12})
    with pytest.raises(ValueError, match=r"target.chunk: long answers are written in layer 1 of .*layer 0 is among"):
        made.edit([LONG])
    assert not made.edits
    made.edit([FACTS[0]])  # a short answer has no other anchor than the subject


def test_first_tokens_are_not_edited_apart_beside_long_answers() -> None:
    moments = second_moments(layers=(0, *LAYERS))
    made = make(settings={"target.chunk": 6, "target.apart": True}, second_moments=moments, dtype=torch.float32)
    alone = Fact("{} is in the", "The", "city")  # one token
    with pytest.raises(ValueError, match=r"layer 0 is among .*\(target.apart=false\)"):
        made.edit([alone, LONG])
    made.edit([alone])
    made.edit([LONG])


def test_target_values_of_other_chunks_are_not_taken_for_these() -> None:
    made = make("memit-blue", settings={"target.chunk": 5, "target.clamp": 2.0})
    made.edit(BATCH)
    before = {layer: weight.clone() for layer, weight in made.lm.weights(made.written_layers).items()}
    fewer = {layer: values[:-1] for layer, values in made.edits[0].values.items()}
    with pytest.raises(ValueError, match=r"undo_fact: batch 1 has \d+ target values, and its facts have \d+ now"):
        made.undo_fact(BATCH[0], values={0: fewer})
    assert all(torch.equal(weight, before[layer]) for layer, weight in made.lm.weights(made.written_layers).items())


def test_an_answer_that_the_model_cannot_read_is_refused() -> None:
    long = replace(LONG, target_new="city " * POSITIONS)
    with pytest.raises(
        ValueError, match=r"target_new='city .* takes \d+ tokens, and \d+ with its prompt; .* reads 256"
    ):
        make("memit-blue", settings={"target.chunk": 5}).edit([long])
    with pytest.raises(ValueError, match=r"chunk=-1: must be a number of tokens"):
        HiddenState(chunk=-1)


def test_how_much_of_a_long_answer_is_said() -> None:
    target = "Beat three eggs.\n    Fold in the flour,\nthen bake."
    assert reproduced(target, target) == rouge_l(target, target) == 1
    assert reproduced("Beat three hens.\n    Fold in the flour,\nthen bake.", target) == pytest.approx(2 / 14)
    assert rouge_l("Beat three hens.\n    Fold in the flour,\nthen bake.", target) == pytest.approx(13 / 14)
    assert reproduced("Beat three eggs.\nFold in", target) == pytest.approx(4 / 14)  # the indentation is part of code
    assert reproduced("", target) == rouge_l("", target) == 0
    assert not is_long(target)
    fact, short = replace(LONG, target_new="word " * 30), FACTS[0]
    readings = [Reading(answers=(Answer("prompt", one.text, "word " * 15),)) for one in (fact, short)]
    found = summary([fact, short], readings)
    assert found["reproduced"] == pytest.approx(50)
    assert found["rouge_l"] == pytest.approx(100 * 30 / 45)
    assert "reproduced" not in summary([short], readings[1:])


def test_no_delta_is_longer_than_at_the_subject_it_may_be() -> None:
    lm = tiny("llama", dtype=torch.float64)
    target = HiddenState(**{**QUICK, "steps": 8, "learning_rate": 5.0, "clamp": 0.5}, chunk=3)  # type: ignore[arg-type]
    found = optimize_values(lm, [LONG], 1, target, CONTEXTS)
    at_subject = (found.values - found.delta)[0].norm()
    lengths = found.delta.norm(dim=-1)
    assert bool((lengths <= 0.5 * at_subject * (1 + 1e-9)).all())
    assert bool((lengths > 0.4 * at_subject).any())


@pytest.mark.parametrize(("settings", "warned"), [({}, True), ({"target.chunk": 6}, False)], ids=["whole", "in chunks"])
def test_a_long_answer_that_is_edited_whole_is_warned_of(
    settings: dict[str, int], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    long = replace(LONG, target_new="a city on the coast " * 5)
    make(settings={"target.steps": 1, **settings}).edit([FACTS[0], long])
    told = [record.getMessage() for record in caplog.records if "chunks" in record.getMessage()]
    assert bool(told) is warned
    assert all(text.startswith("1 fact has an answer of 24 words or more") for text in told)
