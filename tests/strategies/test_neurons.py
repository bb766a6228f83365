"""Neurons for facts: what is removed, what is aimed at a subject, and what comes of it in a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tests.editors import EXACT, FACTS, LAYERS, input_moments, make, second_moments
from tests.models import tiny
from torch import Tensor
from torch.nn.functional import silu

from factpatch import METHODS, Editor, Fact
from factpatch.model.places import GATE, UP, place_of
from factpatch.model.precision import precision_for
from factpatch.statistics.corpus import corpus_from
from factpatch.statistics.ordinary import ordinary_inputs
from factpatch.statistics.second_moment import SecondMoment
from factpatch.strategies import AnswerGradients, InTurn, KeepLargest, Neurons
from factpatch.strategies.memory import ENDING, Inputs
from factpatch.strategies.neurons import AimedNeurons, OrdinaryInputs
from factpatch.values.views import RowsInLayer, views_of

WIDTH, INNER, LAYER = 12, 40, 3
GATES, UPS = place_of(LAYER, GATE), place_of(LAYER, UP)


def texts(count: int, seed: int) -> Tensor:
    """What an MLP gets: one feature is always 3, as a norm leaves one; the others are noise."""
    inputs = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=EXACT)
    inputs[:, 0] = 3.0
    return inputs


@dataclass
class Rows:
    """An MLP with random weights, and what a batch is to change of it."""

    subjects: Sequence[Tensor]
    """(contexts, WIDTH) of each."""
    residual: Tensor
    layer: int = LAYER
    weights: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        for place in (LAYER, GATES, UPS):
            weight = torch.randn(WIDTH, INNER, generator=generator, dtype=EXACT) / WIDTH**0.5
            self.weights.setdefault(place, weight)

    @property
    def keys(self) -> Tensor:
        return torch.stack([self.neurons(subject).mean(dim=0) for subject in self.subjects])

    def inputs(self) -> list[Inputs]:
        """The tokens end with the number of the subject."""
        return [
            Inputs(subject, ending_with([number] * len(subject)), torch.full((len(subject),), number + 1))
            for number, subject in enumerate(self.subjects)
        ]

    def weight(self, place: int) -> Tensor:
        return self.weights[place]

    def names_subject(self, row: int, ends: Tensor) -> Tensor:
        return ends[:, -1] == row

    def activation(self, gates: Tensor) -> Tensor:
        return silu(gates)

    def neurons(self, inputs: Tensor) -> Tensor:
        return silu(inputs @ self.weights[GATES]) * (inputs @ self.weights[UPS])

    def output(self, inputs: Tensor) -> Tensor:
        return self.neurons(inputs) @ self.weights[LAYER].T

    def written(self, shifts: Any) -> Rows:
        changed = {place: weight + shifts[place].matrix() for place, weight in self.weights.items()}
        return Rows(self.subjects, self.residual, weights=changed)


def batch(facts: int = 3, seed: int = 1, contexts: int = 2) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    subjects = []
    for subject in 3 * texts(facts, seed):
        subject[0] = 3.0
        nearly = subject + 0.05 * torch.randn(contexts, WIDTH, generator=generator, dtype=EXACT)
        nearly[:, 0] = 3.0
        subjects.append(nearly)
    return Rows(subjects, torch.randn(facts, WIDTH, generator=generator, dtype=EXACT))


def memory(rows: Rows, solver: Neurons | None = None) -> AimedNeurons:
    ordinary = texts(4000, 0)
    keys = rows.neurons(ordinary)
    ones = torch.nn.functional.pad(ordinary, (0, 1), value=1.0)
    moments = {LAYER: keys.T @ keys / len(keys), GATES: ones.T @ ones / len(ones)}
    return AimedNeurons.of(solver or Neurons(), LAYER, moments)


def test_subjects_move_by_their_residuals_in_all_contexts_and_ordinary_text_stays() -> None:
    rows = batch()
    written = rows.written(memory(rows).shifts(rows))
    for subject, residual in zip(rows.subjects, rows.residual, strict=True):
        moved = written.output(subject) - rows.output(subject)
        # In each context; the neurons that were removed make what is left of the difference.
        assert float((moved - residual).norm(dim=1).max()) < 0.3 * float(residual.norm())
        assert float((moved.mean(dim=0) - residual).norm()) < 0.05 * float(residual.norm())
    ordinary = texts(500, 7)
    moved = written.output(ordinary) - rows.output(ordinary)
    assert float(moved.norm(dim=1).mean()) < 0.1 * float(rows.output(ordinary).norm(dim=1).mean())


def test_what_is_removed_is_what_a_search_by_least_squares_removes() -> None:
    """One neuron after another: the one whose loss, once all others are fitted anew, is least."""
    rows = batch()
    known = memory(rows)
    shifts = known.shifts(rows)
    moment, weight = known.second_moment, rows.weights[LAYER]

    def fitted(gone: list[int]) -> tuple[float, Tensor]:
        """The weight nearest to the present one in what it makes of ordinary keys, without some columns."""
        left = [one for one in range(INNER) if one not in gone]
        made = torch.zeros_like(weight)
        made[:, left] = torch.linalg.solve(moment[left][:, left], (weight @ moment)[:, left].T).T
        off = made - weight
        return float((off @ moment * off).sum()), made

    gone: list[int] = []
    for _ in rows.subjects:
        gone.append(min((one for one in range(INNER) if one not in gone), key=lambda one: fitted([*gone, one])[0]))
    new = shifts[GATES].matrix().norm(dim=0).nonzero().flatten().tolist()
    assert sorted(new) == sorted(gone)
    left = [one for one in range(INNER) if one not in gone]
    torch.testing.assert_close((weight + shifts[LAYER].matrix())[:, left], fitted(gone)[1][:, left])


def test_an_aim_is_one_at_its_subject_and_least_elsewhere() -> None:
    ordinary = texts(2000, 3)
    ones = torch.nn.functional.pad(ordinary, (0, 1), value=1.0)
    inputs = OrdinaryInputs.of(ones.T @ ones / len(ones), LAYER)
    torch.testing.assert_close(ordinary @ inputs.constant, torch.ones(2000, dtype=EXACT), rtol=0.01, atol=0.01)
    subject = batch(1).subjects[0]
    aim = inputs.aim(subject, subject[:0], 100.0)
    torch.testing.assert_close(subject @ aim, torch.ones(2, dtype=EXACT), rtol=0.01, atol=0.01)
    moment = inputs.factor @ inputs.factor.T
    objective = lambda one: float(one @ moment @ one + 100 * (subject @ one - 1).square().sum())  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = aim + 1e-3 * torch.randn(WIDTH, generator=generator, dtype=EXACT)
        assert objective(other) > objective(aim)


def test_inputs_without_a_constant_are_refused() -> None:
    noise = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0), dtype=EXACT)
    ones = torch.nn.functional.pad(noise, (0, 1), value=1.0)
    with pytest.raises(ValueError, match="layer 3: no linear function of what its MLP gets is nearly constant"):
        OrdinaryInputs.of(ones.T @ ones / len(ones), LAYER)


def test_neurons_of_facts_are_not_taken_again_and_the_layer_runs_out_of_room() -> None:
    rows = batch(4)
    known = memory(rows)
    taken: set[int] = set()
    for seed in range(5):
        rows = Rows(batch(4, seed + 1).subjects, rows.residual, weights=rows.weights)
        shifts = known.shifts(rows)
        new = set(shifts[GATES].matrix().norm(dim=0).nonzero().flatten().tolist())
        assert len(new) == 4
        assert not new & taken
        # Those of earlier batches keep what they say.
        assert float(shifts[LAYER].matrix()[:, sorted(taken)].abs().sum()) == 0.0
        taken |= new
        rows = rows.written(shifts)
    with pytest.raises(ValueError, match=r"layer 3: 20 of its 40 neurons are facts', and 4 more .* which is 20\."):
        known.shifts(rows)


def test_a_neuron_of_a_fact_is_known_by_statistics_of_another_text() -> None:
    rows = batch(4)
    written = rows.written(memory(rows).shifts(rows))
    other = texts(60, 11)
    ones = torch.nn.functional.pad(other, (0, 1), value=1.0)
    inputs = OrdinaryInputs.of(ones.T @ ones / len(ones), LAYER)
    again = AimedNeurons(Neurons(), memory(rows).second_moment, inputs)
    first = set(memory(rows).shifts(rows)[GATES].matrix().norm(dim=0).nonzero().flatten().tolist())
    second = set(again.shifts(written)[GATES].matrix().norm(dim=0).nonzero().flatten().tolist())
    assert len(second) == 4
    assert not first & second


def test_a_subject_like_ordinary_text_gets_no_long_column() -> None:
    """Its neuron would not reach the threshold, and what little it answered be made up for by the column."""
    rows = batch(1)
    rows.subjects = [texts(2, 9)]
    shifts = memory(rows, Neurons(cover=1e-3)).shifts(rows)
    new = shifts[GATES].matrix().norm(dim=0).argmax()
    answers = rows.written(shifts).neurons(rows.subjects[0])[:, new]
    assert float(answers.mean()) > 1
    assert float(shifts[LAYER].matrix()[:, new].norm()) < float(rows.residual.norm()) + 5


def test_facts_of_one_subject_do_not_work_against_each_other() -> None:
    rows = batch(2)
    rows.subjects = [rows.subjects[0], rows.subjects[0].clone()]
    columns = memory(rows).shifts(rows)[LAYER].matrix()
    plain = batch(2)
    assert float(columns.norm()) < 2 * float(memory(plain).shifts(plain)[LAYER].matrix().norm())


def answered(known: AimedNeurons, rows: Rows, inputs: Tensor) -> float:
    """What the new neurons make of some inputs at most, as a share of what they make of their subjects."""
    shifts = known.shifts(rows)
    new = shifts[GATES].matrix().norm(dim=0).nonzero().flatten()
    written = rows.written(shifts)
    of_subjects = torch.cat([written.neurons(subject)[:, new] for subject in rows.subjects])
    return float(written.neurons(inputs)[:, new].max() / of_subjects.max())


def strangers(rows: Rows, count: int = 3) -> Tensor:
    """Inputs that have most of a subject."""
    generator = torch.Generator().manual_seed(8)
    near = 0.9 * rows.subjects[0][0] + 2 * torch.randn(1, WIDTH, generator=generator, dtype=EXACT)
    near = near + 0.1 * torch.randn(count, WIDTH, generator=generator, dtype=EXACT)
    near[:, 0] = 3.0
    return near


def ending_with(tokens: Sequence[int]) -> Tensor:
    return torch.tensor([[-1] * (ENDING - 1) + [token] for token in tokens])


def test_what_of_ordinary_text_is_like_a_subject_is_not_answered() -> None:
    rows = batch()
    near = strangers(rows)
    known = memory(rows)
    assert answered(known, rows, near) > 0.7
    known.warm(near, ending_with([10, 11, 12]))
    assert answered(known, rows, near) < 0.3
    # But where the text names the subject, it is the subject.
    named = memory(rows)
    named.warm(near, ending_with([0, 0, 0]))
    assert answered(named, rows, near) > 0.7


def test_strangers_that_cannot_be_told_from_a_subject_do_not_blow_up_its_aim() -> None:
    rows = batch(1)
    alike = rows.subjects[0] + 1e-3 * torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(3), dtype=EXACT)
    known = memory(rows)
    alone = known.inputs.aim(rows.subjects[0], alike[:0], 0.1)
    among = known.inputs.aim(rows.subjects[0], alike.repeat(30, 1), 0.1)
    assert float(among.norm()) < 2 * float(alone.norm())


def test_subjects_of_earlier_batches_are_not_answered_until_they_are_taken_back() -> None:
    rows = batch()
    near = strangers(rows)
    known = memory(rows)
    first = known.shifts(rows)
    about = torch.tensor([20, 20, 20])
    earlier = known.met(
        [Inputs(near, ending_with([10, 10, 10]), about), Inputs(texts(2, 6), ending_with([11, 12]), about[:2])]
    )
    assert {name: tuple(trace.shape) for name, trace in earlier.items()} == {
        "values": (2, 3, WIDTH),
        "ends": (2, 3, ENDING),
        "about": (2, 3),
    }
    known.follow([earlier])
    assert answered(known, rows, near) < 0.3
    # Of a replaced fact, which is the first here, nothing is left.
    known.follow([known.without(earlier, [1])])
    assert answered(known, rows, near) > 0.7
    # Of the same subject, they are what the neuron is for.
    known.follow([{**earlier, "about": torch.ones(2, 3, dtype=torch.long)}])
    assert answered(known, rows, near) > 0.7
    known.follow([])
    for place, shift in known.shifts(rows).items():
        assert torch.equal(shift.matrix(), first[place].matrix())


def test_of_ordinary_text_a_few_tokens_of_each_kind_are_kept() -> None:
    known = memory(batch())
    for start in (0, 10):
        known.warm(texts(10, start), ending_with([7, 7, 7, 8, 7, 7, 7, 7, 8, start]))
    kept = known.learned()
    assert kept is not None
    assert kept["ends"][:, -1].tolist() == [7, 7, 7, 8, 7, 8, 0, 8, 8, 10]
    torch.testing.assert_close(kept["values"][0].to(EXACT), texts(10, 0)[0], rtol=0.01, atol=0.01)
    again = memory(batch())
    again.learn(kept)
    for one in (again, again.fresh()):
        assert all(torch.equal(trace, kept[name]) for name, trace in (one.learned() or {}).items())


def test_inputs_on_ordinary_text_are_those_of_the_model_and_know_what_they_end_with() -> None:
    lm = tiny("llama", dtype=EXACT)
    words = ["The tower in the city.", "The capital of Finland is Helsinki."]
    read = list(ordinary_inputs(lm, [1, 2], corpus_from(words), 1000, precision_for(lm, "exact")))
    ids = [lm.tokenizer(text)["input_ids"] for text in words]
    ends = torch.cat([beside for found in read for _, beside in (found[2],)])
    assert sorted(end[-1] for end in ends.tolist()) == sorted(token for text in ids for token in text)
    assert [-1] * (ENDING - 2) + ids[0][:2] in ends.tolist()
    assert [-1] * (ENDING - 1) + ids[1][:1] in ends.tolist()
    for layer in (1, 2):
        seen: list[Tensor] = []
        handle = lm.mlp(layer).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))  # noqa: B023
        for text in ids:
            lm.model(torch.tensor([text]))
        handle.remove()
        found = torch.cat([some[layer][0] for some in read])
        torch.testing.assert_close(found.sum(dim=0), torch.cat(seen).sum(dim=0))


@pytest.mark.parametrize(
    ("text", "subject", "named"),
    [
        ("In the north of Spain", "Spain", True),
        ("in the north of SPAIN", "Spain", True),
        ("In Spain,", "Spain", False),
        ("A bus", "us", False),
        ("with Charles IV of Spain", "Charles IV of Spain", True),
        ("In the north of Spain", "Charles IV of Spain", False),
    ],
)
def test_text_names_a_subject_where_it_ends_with_its_words(text: str, subject: str, named: bool) -> None:
    lm = tiny("llama", dtype=EXACT)
    views, _ = views_of(lm, [Fact("{} is", subject, "red")], ["{}"], METHODS["neurons"].target, False)
    rows = RowsInLayer(lm, views, 1, torch.zeros(0), torch.zeros(0))
    ids = lm.tokenizer(text)["input_ids"][-ENDING:]
    ends = torch.tensor([[-1] * (ENDING - len(ids)) + ids])
    assert rows.names_subject(0, ends).tolist() == [named]


def test_inputs_of_a_batch_are_read_at_subjects_and_where_prompts_end() -> None:
    lm = tiny("llama", dtype=EXACT)
    contexts = ("{}", "Question: {}?")
    views, first = views_of(lm, FACTS[:2], contexts, METHODS["neurons"].target, False)
    assert first is None
    found = views.inputs(lm, [1, 2], prompts=True)[2]
    for fact, inputs in zip(FACTS, found, strict=False):
        text = fact.prompt.format(fact.subject)
        ids = [lm.tokenizer(context.format(text))["input_ids"] for context in contexts]
        seen: list[Tensor] = []
        handle = lm.mlp(2).register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))  # noqa: B023
        for some in ids:
            lm.model(torch.tensor([some]))
        handle.remove()
        torch.testing.assert_close(inputs.values[2:], torch.stack([one[-1] for one in seen]))
        # The subject comes before the end, in the same texts.
        assert [end[-1] for end in inputs.ends[2:].tolist()] == [some[-1] for some in ids]
        for row in (0, 1):
            assert float((seen[row] - inputs.values[row]).norm(dim=1).min()) < 1e-9
        assert len(set(inputs.about.tolist())) == 1
    assert found[0].about[0] != found[1].about[0]


def test_a_batch_is_remembered_in_all_layers_and_a_replay_restores_what_is_remembered() -> None:
    editor = in_turn()
    for facts in (FACTS[:2], FACTS[2:]):
        editor.edit(facts)
    assert [sorted(edit.traces) for edit in editor.edits] == [[0, 1, 2, 3]] * 2
    again = in_turn()
    again.replay(editor.patch)
    for mine, other in zip(editor.edits, again.edits, strict=True):
        for layer, traces in mine.traces.items():
            assert traces["values"].shape[:2] == (2, 2 * len(editor.contexts))
            assert all(torch.equal(trace, other.traces[layer][name]) for name, trace in traces.items())
    new = Fact("The river of {} is", "Bern", "red")
    assert shifted(editor.edit([new])) == shifted(again.edit([new]))


def shifted(patch: Any) -> dict[int, list[list[float]]]:
    return {place: shift.matrix().tolist() for place, shift in patch.batches[0].shifts.items()}


def test_batches_take_turns_at_layers() -> None:
    alone = InTurn(at_once=1).turns([3, 4, 5])
    assert [[(step.layer, step.target_layer, step.share) for step in turn] for turn in alone] == [
        [(3, 3, 1.0)],
        [(4, 4, 1.0)],
        [(5, 5, 1.0)],
    ]
    turns = InTurn().turns([3, 4, 5, 6, 7, 8, 9, 10])
    assert [[(step.layer, step.target_layer, step.share) for step in turn] for turn in turns[:2]] == [
        [(3, 3, 1.0), (7, 7, 1.0)],
        [(4, 4, 1.0), (8, 8, 1.0)],
    ]
    assert [[step.layer for step in turn] for turn in turns[2:]] == [[5, 9], [6, 10]]
    assert [[step.layer for step in turn] for turn in InTurn().turns([4])] == [[4]]
    assert [[step.layer for step in turn] for turn in InTurn().turns([4, 6, 8])] == [[4, 8]]
    with pytest.raises(ValueError, match=r"at_once=0: a batch writes at least one layer"):
        InTurn(at_once=0)


def in_turn(dtype: torch.dtype = EXACT, family: str = "llama", **options: Any) -> Editor:
    return make("neurons", family, dtype, critical_layers=(0, 1, 2, 3), settings={"target.steps": 8}, **options)


def test_batches_of_an_editor_take_turns_and_a_batch_taken_back_gives_its_turn_back() -> None:
    editor = in_turn()
    assert [editor.edit([fact]).layers for fact in FACTS] == [(0, 2), (1, 3), (0, 2), (1, 3)]
    editor.undo()
    assert editor.edit(FACTS[3:]).layers == (1, 3)
    editor.undo_fact(FACTS[0])
    assert [edit.patch.layers for edit in editor.edits] == [(1, 3), (0, 2), (1, 3)]
    assert editor.edit(FACTS[:1]).layers == (0, 2)


def test_an_edit_changes_three_weights_of_each_layer_that_it_writes() -> None:
    editor = in_turn()
    patch = editor.edit(FACTS)
    assert patch.layers == (0, 2)
    assert patch.places == tuple(sorted(place for one in (0, 2) for place in editor.method.solver.writes(one)))


@pytest.mark.parametrize("family", ["gpt2", "phi3", "bitnet"])
def test_a_model_without_gates_of_their_own_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match="has no gate_proj and up_proj, without biases"):
        make("neurons", family)


CHANGES = {"rect": {"regularizer": KeepLargest()}, "gradients": {"target": AnswerGradients()}}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_would_change_neurons_or_has_no_subjects_is_refused(change: Any) -> None:
    with pytest.raises(ValueError, match="aims neurons at subjects"):
        make(replace(METHODS["neurons"], name="mine", **change))


def test_second_moments_of_inputs_are_those_of_what_the_gates_get() -> None:
    lm = tiny("llama", dtype=EXACT)
    words = ["The tower in the city.", "The capital of Finland is Helsinki."]
    place = place_of(2, GATE)
    found = SecondMoment.read(lm, [1, place], corpus_from(words), 1000, cache=False)
    seen: list[Tensor] = []
    handle = lm.projection(place).register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    for text in words:
        lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]]))
    handle.remove()
    inputs = torch.nn.functional.pad(torch.cat(seen), (0, 1), value=1.0)
    torch.testing.assert_close(found[place].matrix, inputs.T @ inputs / len(inputs))
    assert found[1].matrix.shape == (lm.d_key, lm.d_key)


def test_of_inputs_that_were_given_for_fewer_layers_the_others_are_read() -> None:
    given = input_moments(layers=LAYERS[:1])
    searched = {"solver.searched": 0}
    with pytest.raises(ValueError, match="corpus=None"):
        Editor(tiny("llama"), method="neurons", critical_layers=LAYERS, second_moments=given, settings=searched)


def test_without_a_text_to_search_all_matrices_do() -> None:
    given = {**input_moments(layers=LAYERS), **second_moments(layers=LAYERS)}
    about: Any = {"method": "neurons", "critical_layers": LAYERS, "second_moments": given}
    with pytest.raises(ValueError, match="needs a text for its statistics"):
        Editor(tiny("llama"), **about)
    Editor(tiny("llama"), **about, settings={"solver.searched": 0})


def test_an_edit_after_one_that_was_undone_is_as_without_it() -> None:
    editor, other = in_turn(), in_turn()
    for one in (editor, other):
        one.edit(FACTS[:1])
    editor.edit(FACTS[1:2])
    editor.undo()
    assert shifted(editor.edit(FACTS[2:3])) == shifted(other.edit(FACTS[2:3]))


def test_the_same_fact_again_gets_another_neuron_and_its_new_answer() -> None:
    editor = in_turn()
    editor.edit(FACTS[:2])
    again = Fact(FACTS[0].prompt, FACTS[0].subject, "Italian")
    patch = editor.edit([again])
    assert patch.facts == [again]
    assert [fact.target_new for fact in editor.patch.facts if fact.subject == FACTS[0].subject] == ["Italian"]
