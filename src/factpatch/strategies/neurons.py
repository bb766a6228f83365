"""A neuron for each fact: where a layer's keys are full, make new ones.

An MLP with gates puts out W (σ(G x) ⊙ (U x)): neuron j answers an input x with σ(g·x) (u·x), and adds as much of
column j of W to the stream. A shift of W alone can only use the neurons that are there, which also answer ordinary
text, and each fact leaves less room for the next. So here a fact gets a neuron that answers its subject and hardly
anything else, in the place of one that matters little:

1. *Remove* a neuron. Of column j, what the other neurons cannot stand in for costs ordinary text ‖w_j‖² / [C₀⁻¹]_jj;
   the cheapest goes, and the others take over what they can, W ← W − w_j [C₀⁻¹]_j / [C₀⁻¹]_jj (optimal brain surgeon).
2. *Aim* the new one at the subject. z(x) = a·x is the linear function that is 1 at the subject's inputs x in all
   contexts and least on ordinary text, E[z²]; b is the one that is nearest to 1 everywhere (a norm before the MLP
   leaves one that hardly varies). With g = s (a − θ b) and u = b the neuron answers s (z − θ) to z above θ and next to
   nothing below: ordinary text, whose z is about 0, hardly gets anything.
   Elsewhere a linear function has tails: " Spain" is more like "Charles IV of Spain" than 0. So ordinary text is
   searched for such strangers, and the aim is taken anew with z to be 0 at them, a few times.
3. *Write* into the columns of the new neurons what the residuals are, which takes a system as small as the batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from factpatch.model.places import GATE, UP, place_of
from factpatch.patch.shift import LowRank, Shift
from factpatch.strategies.memory import ENDING, Inputs, LayerRows, Memory, Traces, check_rows

# Of a mean diagonal entry: what makes second moments of few tokens invertible.
_KEY_DAMPING, _INPUT_DAMPING = 1e-3, 1e-4
# Two facts of like subjects share what their neurons answer; without it, these would work against each other.
_ANSWERS_DAMPING = 1e-2
# Chosen on subjects of 200 dev facts, by what they answer of text that was not searched, and of each other's prompts.
_OF_A_KIND, _ROUNDS, _MOST_STRANGERS, _STRANGE = 4, 3, 64, 0.3
_STRANGER, _REACH = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01), 0.8
_CONSTANT = 0.03
"""The most E[(u·x − 1)²] of a function that counts as constant. In layers 4, 8 and 11 of SmolLM2-135M, b has 0.0005 and
the nearest to it among the model's own neurons 0.11."""


class Settings(Protocol):
    """Those of `factpatch.strategies.solver.Neurons`."""

    @property
    def sharpness(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def cover(self) -> float: ...
    @property
    def most(self) -> float: ...
    @property
    def searched(self) -> int: ...


@dataclass(frozen=True)
class OrdinaryInputs:
    """What is known of the inputs of a layer's MLP on ordinary text, in float64."""

    plain: Tensor
    """E[x xᵀ], (d_value, d_value)."""
    mean: Tensor
    """E[x], (d_value,)."""
    factor: Tensor
    """The lower Cholesky factor of E[x xᵀ], damped."""
    constant: Tensor
    """b, (d_value,)."""

    @classmethod
    def of(cls, moment: Tensor, layer: int) -> OrdinaryInputs:
        """From E[(x, 1)(x, 1)ᵀ], (d_value + 1, d_value + 1); ValueError if no linear function of x is constant."""
        whole = moment.double()
        mean, plain = whole[:-1, -1], whole[:-1, :-1]
        factor = torch.linalg.cholesky(_damped(plain, _INPUT_DAMPING))
        constant = torch.cholesky_solve(mean[:, None], factor)
        made = cls(plain, mean, factor, constant[:, 0])
        off = float(made.off(constant))
        if not off <= _CONSTANT:
            raise ValueError(
                f"layer {layer}: no linear function of what its MLP gets is nearly constant (the best is off by "
                f"{off:.2f} in the mean square), so no neuron can be aimed. Choose another method, such as memit-blue."
            )
        return made

    def off(self, functions: Tensor) -> Tensor:
        """E[(u·x − 1)²] of linear functions, the columns of (d_value, n): how far each is from being 1 everywhere."""
        square = (functions * (self.plain @ functions)).sum(dim=0)
        return square - 2 * self.mean @ functions + 1

    def aim(self, subject: Tensor, strangers: Tensor, cover: float) -> Tensor:
        """a, (d_value,), with the least E[(a·x)²] + cover (Σ (a·x_c − 1)² + w Σ (a·x_s)²), w = 3 or less.

        Where strangers are so like the subject that a·x_c would be below 0.8, as one airport is like another, w is a
        third, and so on: what tells them apart would be noise, which the aim would answer anywhere. Scaled to be 1
        on average over the contexts: of a subject like ordinary text it would be below the threshold.

        Args:
            subject: The x_c, (contexts, d_value).
            strangers: The x_s, (n, d_value).
            cover: How much they count against ordinary text.
        """
        seen = torch.cat([subject, strangers])
        toward = torch.cholesky_solve(seen.T, self.factor)
        answered, wanted = seen @ toward, seen.new_zeros(len(seen))
        wanted[: len(subject)] = 1
        for weight in _STRANGER:
            counts = seen.new_full((len(seen),), weight * cover)
            counts[: len(subject)] = cover
            aimed: Tensor = toward @ torch.linalg.solve(answered + (1 / counts).diag(), wanted)
            reach = (subject @ aimed).mean()
            if reach > _REACH:
                break
        return aimed / reach


class AimedNeurons(Memory):
    """What `factpatch.strategies.solver.Neurons` knows of a layer; which neurons are taken, the weights say."""

    def __init__(self, solver: Settings, second_moment: Tensor, inputs: OrdinaryInputs) -> None:
        super().__init__()
        self.solver, self.second_moment, self.inputs = solver, second_moment, inputs
        self.searched: list[Inputs] = []
        """Tokens of ordinary text, a few of each kind."""
        self.earlier: list[Inputs] = []
        """Those of earlier batches."""
        self._kinds: Counter[int] = Counter()

    @classmethod
    def of(cls, solver: Settings, layer: int, moments: Mapping[int, Tensor]) -> AimedNeurons:
        keys = _damped(moments[layer].double(), _KEY_DAMPING)
        return cls(solver, keys, OrdinaryInputs.of(moments[place_of(layer, GATE)], layer))

    def warm(self, rows: Tensor, with_rows: Tensor) -> None:
        kept = []
        for row, kind in enumerate(with_rows[:, -1].tolist()):
            self._kinds[kind] += 1
            if self._kinds[kind] <= _OF_A_KIND:
                kept.append(row)
        ends = with_rows[kept].int()
        self.searched.append(Inputs(rows[kept].bfloat16(), ends, torch.zeros(len(ends), dtype=torch.long)))

    def learned(self) -> Traces | None:
        if not self.searched:
            return None
        self.searched = [_joined(self.searched)]
        return {"values": self.searched[0].values, "ends": self.searched[0].ends}

    def learn(self, learned: Traces) -> None:
        self.searched = [Inputs(**learned, about=torch.zeros(len(learned["ends"]), dtype=torch.long))]

    def learns_from(self) -> str:
        return f"{self.solver.searched} tokens, {_OF_A_KIND} of a kind, {ENDING} ids"

    def met(self, inputs: Sequence[Inputs]) -> Traces:
        # Of a first token the bare prompt is missing; others are repeated in its place.
        most = torch.arange(max(len(some.values) for some in inputs))
        rows = [most % len(some.values) for some in inputs]
        both = list(zip(inputs, rows, strict=True))
        return {
            "values": torch.stack([some.values.cpu()[row].bfloat16() for some, row in both]),
            "ends": torch.stack([some.ends[row].int() for some, row in both]),
            "about": torch.stack([some.about[row] for some, row in both]),
        }

    def shifts(self, rows: LayerRows) -> dict[int, Shift]:
        check_rows(rows.keys, rows.residual)
        places = {part: place_of(rows.layer, part) for part in (GATE, UP)}
        gates, ups = (rows.weight(place).double().cpu() for place in places.values())
        weight = rows.weight(rows.layer).double().cpu()
        new, removed = self._removed(weight, self._free(ups), len(rows.keys), rows.layer)
        found = rows.inputs()
        solver, constant = self.solver, self.inputs.constant
        aims = self._aims(rows, found, _joined([*self.searched, *self.earlier, *found]))
        subjects = [inputs.values.double().cpu() for inputs in found]
        aimed = solver.sharpness * (aims - solver.threshold * constant[:, None])
        answers = torch.stack(
            [(rows.activation(subject @ aimed) * (subject @ constant)[:, None]).mean(dim=0) for subject in subjects]
        )
        left = rows.residual.double() - rows.keys.double() @ removed.down.T @ removed.up.T
        system = answers @ answers.T
        system.diagonal().add_(_ANSWERS_DAMPING * answers.diagonal().square().mean())
        columns = (answers.T @ torch.linalg.solve(system, left)).T
        chosen = torch.nn.functional.one_hot(new, weight.shape[1]).to(weight)
        return {
            rows.layer: LowRank(torch.cat([removed.up, columns], dim=1), torch.cat([removed.down, chosen])),
            places[GATE]: LowRank(aimed - gates[:, new], chosen),
            places[UP]: LowRank(constant[:, None] - ups[:, new], chosen),
        }

    def _aims(self, rows: LayerRows, subjects: Sequence[Inputs], others: Inputs) -> Tensor:
        """a of all rows, (d_value, n), with 0 wanted at those others that are most like a subject but not named so."""
        values, aims = others.values.float(), []
        for row, subject in enumerate(subjects):
            own = subject.values.double().cpu()
            strangers = own[:0]
            aim = self.inputs.aim(own, strangers, self.solver.cover)
            foreign = (others.about != subject.about[0]).nonzero().flatten()
            for _ in range(_ROUNDS):
                given, places = (values @ aim.float())[foreign].topk(min(_MOST_STRANGERS, len(foreign)))
                places = foreign[places[given > _STRANGE]]
                text = others.about[places] == 0
                named = text.clone()
                named[text] = rows.names_subject(row, others.ends[places[text]])
                if bool(named.all()):  # the next round would find the same, which is nothing
                    break
                # Once more those that it answers still, so that they count more.
                strangers = torch.cat([strangers, values[places[~named]].to(own)])
                aim = self.inputs.aim(own, strangers, self.solver.cover)
            aims.append(aim)
        return torch.stack(aims, dim=1)

    def _free(self, ups: Tensor) -> Tensor:
        """Which neurons are those of the model, (d_key,): a fact's has an `up` that is 1, whatever text gave it."""
        return self.inputs.off(ups) > _CONSTANT

    def _removed(self, weight: Tensor, free: Tensor, count: int, layer: int) -> tuple[Tensor, LowRank]:
        """The neurons to remove, (count,), and the shift that removes them and lets the other free ones take over."""
        taken = int((~free).sum())
        most = int(self.solver.most * len(free))
        if taken + count > most:
            raise ValueError(
                f"layer {layer}: {taken} of its {len(free)} neurons are facts', and {count} more would be above "
                f"solver.most={self.solver.most}, which is {most}. Edit fewer facts at once, or let more layers take "
                "turns: --layers, critical_layers=."
            )
        ours = free.nonzero().flatten()
        inverse = torch.linalg.inv(self.second_moment[ours][:, ours])
        # Without those picked, inverse − ΣᵢLᵢᵀLᵢ is left of it, as in a Cholesky factorization with pivots.
        diagonal, columns = inverse.diagonal().clone(), weight[:, ours].clone()
        rows = inverse.new_zeros(count, len(ours))
        picked: list[int] = []
        for number in range(count):
            cost = columns.square().sum(dim=0) / diagonal.clamp_min(torch.finfo(torch.float64).tiny)
            cost[picked] = torch.inf
            one = int(cost.argmin())
            row = inverse[one] - rows[:number, one] @ rows[:number]
            columns.addr_(columns[:, one].clone(), row, alpha=-1 / float(row[one]))
            rows[number] = row / row[one].sqrt()
            diagonal -= rows[number].square()
            picked.append(one)
        gone = torch.tensor(picked)
        down = weight.new_zeros(count, len(free))
        down[:, ours] = inverse[gone]
        up = -torch.linalg.solve(inverse[gone][:, gone].T, weight[:, ours[gone]].T).T
        return ours[gone], LowRank(up, down)

    def solve(self, keys: Tensor, residual: Tensor) -> NoReturn:
        raise ValueError("solver=Neurons: it shifts three weights of a layer, and no single one.")

    def remember(self, traces: Traces) -> None:
        self.earlier.append(Inputs(**{name: trace.flatten(0, 1) for name, trace in traces.items()}))

    def forget(self) -> None:
        self.earlier = []

    def fresh(self) -> AimedNeurons:
        made = AimedNeurons(self.solver, self.second_moment, self.inputs)
        made.searched = self.searched
        return made


def _joined(parts: Sequence[Inputs]) -> Inputs:
    values = torch.cat([part.values.cpu().bfloat16() for part in parts])
    ends, about = torch.cat([part.ends.int() for part in parts]), torch.cat([part.about for part in parts])
    return Inputs(values, ends, about)


def _damped(moment: Tensor, share: float) -> Tensor:
    """A second moment with this share of its mean diagonal entry added to the diagonal."""
    made = moment.clone()
    made.diagonal().add_(share * moment.diagonal().mean())
    return made
