"""1. Which activation is changed, what is minimized over the change, and which value follows from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import BeforeValidator

from factpatch.strategies.later import LATER

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = ("prompt", "prefixes")
"""The published contexts: the bare prompt, and the prompt behind generated texts."""
Kept = dict[str, "Tensor"]
"""What a target keeps for every fact during a search, (n, …) each, by name."""


@dataclass(frozen=True)
class Evaluation:
    """The loss at some δ, one row per fact."""

    loss: Tensor
    """(n,): what is minimized, in nats."""
    nll: Tensor
    """(n,): the mean NLL over contexts, in nats."""
    kl: Tensor
    """(n,): the KL without its factor, in nats."""
    predicted: Tensor
    """(n,): whether every target token is the most probable one in every context."""
    margin: Tensor
    """(n,): by how much a target token leads the most probable other one, in nats, in the context where it leads
    least."""
    gradient: Tensor
    """(n, sites, d_value): of the loss; zero if it was not asked for."""


@dataclass(frozen=True)
class Found:
    """The outcome of a search, one row per fact."""

    delta: Tensor
    """(n, sites, d_value)"""
    evaluations: Tensor
    """(n,): loss evaluations made."""
    loss: Tensor
    """(n,): the loss at the last evaluation, in nats."""
    updates: Tensor | None = None
    """(n,): moves of δ; by default one fewer than evaluations."""


class Problem(Protocol):
    """What a search works on: the loss of a batch of facts at any δ."""

    present: Tensor
    """(n, sites, d_value): the unshifted activations of the bare prompts."""

    def evaluate(self, delta: Tensor, kept: Kept, gradient: bool = True) -> Evaluation:
        """Run the facts with δ, (n, sites, d_value), added at the subject's last token."""


F = TypeVar("F", bound=Any)
"""A fact."""
R = TypeVar("R")
Read = TypeVar("Read", covariant=True)


class Readers(Protocol[Read]):
    """The ways to read the rows of a batch: a key and a residual each."""

    def toward_values(self, target: Target) -> Read:
        """One row per fact, at the subject's last token: the residual leads to an optimized value."""

    def against_gradients(self) -> Read:
        """One row per token of an answer, at the position that predicts it: the residual is the negative gradient."""


class Wanted(ABC):
    """What a batch is to change: which rows it has, with a key and a residual each."""

    rereads: ClassVar[bool] = True
    """Whether the keys of a batch can be read on the weights that it leaves, so that a patch suffices to replay it."""
    has_values: ClassVar[bool] = False
    """Whether rows lead to target values, which a fact keeps when its batch is solved again without others."""
    measures: ClassVar[str | None] = None
    """The field of a `Target` that is measured on the unedited model, for each layer with target values, where it is
    not given; see `Target.unmeasured`."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """Where the prompt stands when a batch is read; see `Target.contexts`."""
        return PUBLISHED[:1]

    @property
    def apart(self) -> bool:
        """Whether first tokens are edited apart; see `Target.apart`."""
        return False

    @property
    def inner(self) -> Wanted:
        """The same where something lies between the MLP and the residual stream; see `Target.inner`."""
        return self

    @abstractmethod
    def read(self, by: Readers[R]) -> R:
        """Choose one of the ways to read a batch."""


@dataclass(frozen=True)
class AnswerGradients(Wanted):
    """Follow the gradient of the answer's NLL, without a value optimization and without regard to the subject.

    Every token of an answer is a row. Its key x is the input of the down-projection at the position that predicts the
    token, its residual −g, where g = ∂NLL/∂y is the gradient with respect to the output y of the down-projection there.
    The NLL, in nats, is summed over the tokens of the batch; g so contains what y does to later tokens of its answer.
    One forward and backward pass on the weights before the batch serves all layers, so an earlier write of the same
    batch does not change the rows of a later one.

    Source: UltraEdit (arXiv:2505.14679), after MALMEN (arXiv:2311.04661). *Departure:* the published code edits the
    modules that its configuration lists, gate and up projections among them; here it is always the down-projection.
    """

    rereads: ClassVar[bool] = False

    def read(self, by: Readers[R]) -> R:
        return by.against_gradients()


@dataclass(frozen=True)
class Target(Wanted):
    """The value optimization: what it minimizes, how it moves, when it stops, and which value follows.

    For one fact and one layer, Adam minimizes over δ, added to the activation at the subject's last token,
    mean over contexts of NLL + `kl_factor` · KL + `weight_decay` · ‖δ‖ / ‖h‖², with h the activation of the bare
    prompt. A subclass says which activations these are; if several, each has its own δ, decay and clamp.
    Source: ROME (arXiv:2202.05262), eq. 4; MEMIT (arXiv:2210.07229), eq. 15.

    The methods below are the mathematics for all n facts at once; a subclass overrides those in which it differs.
    `factpatch.values` splits the texts into micro-batches and drops facts that are finished.
    """

    sites: ClassVar[tuple[str, ...]]
    """Whose outputs get a δ each: names of `LanguageModel` methods that take a layer. The target value belongs to the
    last one, where the residual is measured too."""
    inside: ClassVar[bool]
    """Whether a site lies before the end of the block, so that the block itself runs again at each step."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Further outputs that `settle` reads, by names as in `sites`."""
    has_values: ClassVar[bool] = True

    steps: int = 25
    """Largest number of loss evaluations per fact and layer; one fewer updates."""
    learning_rate: float = 0.5
    """Step size of Adam, in units of the activation."""
    clamp: float = 0.75
    """Largest ‖δ‖ as a multiple of ‖h‖."""
    weight_decay: float = 0.5
    """Weight of ‖δ‖ / ‖h‖² in the loss."""
    kl_factor: float = 0.0625
    """Weight of KL(with δ ‖ before) on "{subject} is a", which keeps the subject's essence."""
    stop_loss: float = 0.05
    """A fact is finished when its loss is below this, in nats."""
    enough_steps: int = field(default=0, metadata=LATER)
    """A fact is finished after so many evaluations if every target token is the most probable one in every context; the
    others may take `steps`, for an answer can be long or in a script that the model hardly writes. 0: all take
    `steps`."""
    enough_predictions: int = field(default=0, metadata=LATER)
    """A fact is finished after so many evaluations in which every target token is the most probable one in every
    context: with 1 at the first of them, with 2 one step later at the earliest. 0: they do not matter. Source: ENCORE
    (arXiv:2502.01636)."""
    enough_margin: float = field(default=0.0, metadata=LATER)
    """A fact is finished when every target token leads the most probable other one by so many nats in every context: an
    answer that leads by a hair is lost again when it is written, or asked for in other words. 0: it does not matter."""
    turns: int = field(default=1, metadata=LATER)
    """In how many parts the contexts take turns: each evaluation reads one part of them, neighbors together, and stops
    follow the last evaluation of every part. With 2 an evaluation takes half of the time. 1: all contexts are read, as
    they are with `chunk`."""
    last_look: bool = field(default=True, metadata=LATER)
    """Whether the last of `steps` evaluations is made. Nothing moves after it: without it, a fact that takes all of
    them ends at the same δ one evaluation sooner, and its loss is the one before its last update."""
    stride: float = field(default=0.0, metadata=LATER)
    """Length of the first step along the gradient, with momentum, as a multiple of ‖h‖; the steps shrink linearly to a
    tenth at `steps`. It takes a third of Adam's evaluations, which at its published rates moves δ by a tenth of ‖h‖ at
    a time. 0: Adam with `learning_rate`."""
    shortest: bool = field(default=False, metadata=LATER)
    """Whether ‖h‖ is that of the context in which the activation is shortest, in place of the bare prompt's. Where a
    text begins, an activation can be many times as long as elsewhere, and δ is added to all contexts alike."""
    apart: bool = field(default=False, metadata=LATER)
    """Whether a subject that is the first token of a text without BOS gets a value and a key of its own for the bare
    prompt, in the first layer; see `factpatch.values.views`."""

    contexts: tuple[str, ...] = field(default=PUBLISHED, metadata=LATER)
    """Where the prompt stands while the value is optimized and the key is read: prompt (bare), prefixes (behind
    generated texts), question ("Question: {}? Answer:"), chat (a user's turn), answered (a user's turn, and "The answer
    is"), or a template with {} for the prompt. See `factpatch.values.contexts`."""
    chunk: int = field(default=0, metadata=LATER)
    """Most tokens of an answer that one δ decides; a longer answer has several, each at the token before its chunk, the
    first at the subject. 0: one, however long the answer is. See `factpatch.values.chunks`; source: AnyEdit
    (arXiv:2502.05628)."""
    ahead: bool = field(default=False, metadata=LATER)
    """Whether a δ is found for all later chunks of its answer too, not for its own alone. Source: µKE
    (arXiv:2504.01196)."""
    forgotten: float = field(default=0.001, metadata=LATER)
    """Below this probability, in every context, an answer counts as forgotten where nothing is put in its place; see
    `Silence`."""

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "clamp", "turns"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be positive and finite.")
        if self.steps < 2 and not self.last_look:
            raise ValueError(f"steps={self.steps!r}: must be 2 or more, or last_look true; nothing would be evaluated.")
        enough = ("enough_steps", "enough_predictions", "enough_margin")
        for name in ("weight_decay", "kl_factor", "stop_loss", *enough, "stride"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: must not be negative.")
        if not self.chunk >= 0:
            raise ValueError(f"chunk={self.chunk!r}: must be a number of tokens, or 0 for whole answers.")
        if not 0 < self.forgotten < 1:
            raise ValueError(f"forgotten={self.forgotten!r}: must be a probability between 0 and 1.")

    def read(self, by: Readers[R]) -> R:
        return by.toward_values(self)

    def asked(self, facts: Sequence[F]) -> Sequence[F]:
        """The facts with the answer that is read as `target_new`; by default as they are."""
        return facts

    def told(self, chosen: Tensor, likeliest: Tensor, weight: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        """What each token adds to its fact's loss, by default its share of the mean NLL, and to its misses.

        Args:
            chosen: (tokens,): its log-probability.
            likeliest: (tokens,): whether it is the most probable one.
            weight: (tokens,): its share in the fact's mean.
            row: (tokens,): the number of its text, below the number of tokens.

        Returns:
            Nats and misses, (tokens,) each. A fact without misses counts as predicted.
        """
        return -chosen * weight, ~likeliest

    @property
    def evaluations(self) -> int:
        """Largest number of loss evaluations that are made."""
        return self.steps if self.last_look else self.steps - 1

    @property
    def enough(self) -> int:
        """After how many evaluations a predicted fact is finished."""
        return self.enough_steps or self.steps

    @property
    def site(self) -> str:
        """Where the target value is read."""
        return self.sites[-1]

    @property
    def plain(self) -> Target:
        """The same without what has to be measured: it finds the values that the measurement is made of."""
        return self

    @property
    def inner(self) -> Target:
        """The same at the output of the MLP, before whatever lies between that and the residual stream."""
        return self

    def unmeasured(self, layers: Sequence[int]) -> list[int]:
        """Return those of the layers for which something has to be measured before their values are optimized."""
        return []

    def measured(self, values: Mapping[int, Tensor]) -> Target:
        """Return this target with what has been measured in some layers added.

        Args:
            values: What `plain` finds for some facts on the unedited model: δ and the output that it is added to, the
                last of `beside`, (facts, d_value) by layer.
        """
        return self

    def at(self, layer: int) -> Target:
        """The target at one layer; ValueError if something about that layer has not been measured yet."""
        return self

    def begin(self, present: Tensor) -> Kept:
        """What to keep for every fact before the first evaluation, given (n, sites, d_value) activations."""
        return {}

    def weigh(self, nll: Tensor, kl: Tensor, kept: Kept) -> Tensor:
        """What NLL and KL, (n,) each, add to the loss. Must be linear: they are summed over micro-batches."""
        return nll + self.kl_factor * kl

    def penalty(self, delta: Tensor, norm: Tensor) -> Tensor:
        """What δ itself, (n, sites, d_value), adds to the loss, given the norms of the activations, (n, sites)."""
        length = delta.norm(dim=-1)
        decay: Tensor = self.weight_decay * (length / norm**2).sum(dim=-1)
        return decay

    def judge(self, evaluation: Evaluation, kept: Kept) -> tuple[Tensor, Kept]:
        """Return after an evaluation which facts are finished, (n,), and what to keep for the next one."""
        return evaluation.loss < self.stop_loss, kept

    def project(self, delta: Tensor, norm: Tensor) -> Tensor:
        """Move δ after each update to where it is allowed: here into the ball of radius `clamp` · norm."""
        length = delta.norm(dim=-1)
        largest = self.clamp * norm
        scale: Tensor = (largest / length).where(length > largest, length.new_ones(()))
        return scale[..., None] * delta

    def search(self, problem: Problem, descend: Callable[[], Found]) -> Found:
        """Find δ for a batch of facts; by default by gradient descent, `descend`, which calls the methods above."""
        return descend()

    def settle(self, present: Tensor, delta: Tensor) -> Tensor:
        """The change of the value that follows from δ, (n, d_value).

        Args:
            present: The unshifted activations at the sites, then those of `beside`, (n, sites + beside, d_value).
            delta: δ, (n, sites, d_value).
        """
        return delta[:, -1]


@dataclass(frozen=True)
class HiddenState(Target):
    """Optimize the output of the whole block: the residual stream after it. Source: MEMIT (arXiv:2210.07229)."""

    sites: ClassVar[tuple[str, ...]] = ("block",)
    inside: ClassVar[bool] = False

    @property
    def inner(self) -> Target:
        return MlpOutput(**_values(self, HiddenState))


@dataclass(frozen=True)
class MlpOutput(HiddenState):
    """As `HiddenState`, with δ added to the output of the MLP, which the down-projection gives.

    For models that put a norm or a factor between the MLP and the residual stream: there a change of the block's output
    is not one of the MLP's. ‖h‖, to which clamp, decay and stride refer, is then the norm of the MLP's output.
    """

    sites: ClassVar[tuple[str, ...]] = ("mlp",)
    inside: ClassVar[bool] = True

    @property
    def inner(self) -> Target:
        return self


def _values(target: Target, of: type[Target]) -> dict[str, Any]:
    """The fields that a target shares with a class that it is derived from."""
    return {one.name: getattr(target, one.name) for one in fields(of)}


@dataclass(frozen=True)
class Silence(HiddenState):
    """Make an answer improbable and put nothing in its place: what is left is for the model to say.

    For one text, with p the probability of the whole old answer `target_true` and θ = `forgotten`, the loss has
    max(0, ln p − ln θ), in nats, in place of the mean NLL. It is linear in ln p, so that the steps are as long where p
    is near 1, and ends at θ: nothing is gained by making the answer less probable still. A fact is finished when p < θ
    in every context. After unlikelihood training (arXiv:1908.04319), whose loss is −ln(1 − p).
    """

    @classmethod
    def like(cls, target: Target) -> Silence:
        """With the settings of another target: at the output of the layer, or of the MLP if that one is there alone."""
        inner = target.site == MlpOutput.sites[-1]
        # In chunks, the rest of an answer would have to be improbable after its beginning was said. A margin is how far
        # an answer leads.
        return (MlpSilence if inner else cls)(**_values(target, Target) | {"chunk": 0, "enough_margin": 0.0})

    def asked(self, facts: Sequence[F]) -> Sequence[F]:
        return [replace(fact, target_new=fact.target_true, target_true=None, forget=None) for fact in facts]

    def told(self, chosen: Tensor, likeliest: Tensor, weight: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        # All tokens of a text get its excess, and their weights add up to the text's share.
        whole = chosen.new_zeros(len(chosen)).index_add(0, row, chosen)
        excess = (whole - math.log(self.forgotten)).clamp_min(0)[row]
        return excess * weight, excess > 0

    def judge(self, evaluation: Evaluation, kept: Kept) -> tuple[Tensor, Kept]:
        return evaluation.predicted, kept


@dataclass(frozen=True)
class MlpSilence(Silence):
    """As `Silence`, with δ added to the output of the MLP; see `MlpOutput`."""

    sites: ClassVar[tuple[str, ...]] = MlpOutput.sites
    inside: ClassVar[bool] = True


def _layers_and_norms(value: Any) -> Any:
    """Read `4:2.5,8:3.1`, as on the command line; anything else is left to the field's type."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition(":") for part in value.split(",") if part.strip()]
    return [(layer.strip(), norm.strip()) for layer, _, norm in pairs]


@dataclass(frozen=True)
class AnchoredNorm(HiddenState):
    """As `HiddenState`; then what the MLP is to put out is rescaled to the norm usual in the unedited model.

    With m the present output of the MLP at the subject's last token, the MLP is to put out v = m + δ. In an edited
    model m has grown, so v grows with every batch, and the weights with it. Instead v becomes a v / ‖v‖. The anchor a
    is the mean of ‖v‖ over facts on the unedited model, without the highest 5 % of these norms.
    Source: NAS (arXiv:2602.02543), for AlphaEdit.

    Departures: the published code skips a fact whose ‖v‖ is above 2a, without saying so; here it is rescaled like all
    others. A fact that is known already, with δ = 0, keeps its value. The values behind the anchor are found in the
    contexts of the edits, the published ones in the bare prompt.
    """

    beside: ClassVar[tuple[str, ...]] = ("mlp",)
    measures: ClassVar[str | None] = "anchor"
    DROPPED: ClassVar[float] = 0.05

    anchor: Annotated[tuple[tuple[int, float], ...], BeforeValidator(_layers_and_norms)] = ()
    """a of each layer with a target, as 4:2.5,8:3.1. Where it is not given it is measured on the facts that come with
    the package; `factpatch anchor` and `Editor.measure` take others."""
    tolerance: float = 0.0
    """By how much of a ‖v‖ may differ from a and is left as it is; the published code rescales every v."""

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = [layer for layer, _ in self.anchor]
        if len(set(layers)) < len(layers) or not all(layer >= 0 and 0 < norm < math.inf for layer, norm in self.anchor):
            raise ValueError(
                f"anchor={self.anchor!r}: needs one positive, finite norm for each layer; write it as 4:2.5,8:3.1."
            )
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance={self.tolerance!r}: must not be negative.")

    @property
    def plain(self) -> Target:
        return HiddenState(**_values(self, HiddenState))

    @property
    def inner(self) -> Target:
        return AnchoredMlp(**_values(self, AnchoredNorm))

    def unmeasured(self, layers: Sequence[int]) -> list[int]:
        return sorted(set(layers) - {layer for layer, _ in self.anchor})

    def measured(self, values: Mapping[int, Tensor]) -> Target:
        found = dict(self.anchor)
        for layer, of in values.items():
            norms = of.double().norm(dim=-1).sort().values
            # Six digits, so that the anchor is the same wherever rounding differs, and can be written as a setting.
            mean = norms[: len(norms) - math.floor(self.DROPPED * len(norms))].mean()
            found[layer] = float(f"{float(mean):.6g}")
        return replace(self, anchor=tuple(sorted(found.items())))

    def at(self, layer: int) -> Target:
        if self.unmeasured([layer]):
            raise ValueError(
                f"anchor={self.anchor!r}: has no norm for layer {layer}; Editor.measure measures it, and "
                "target.anchor gives it."
            )
        return replace(self, anchor=tuple(pair for pair in self.anchor if pair[0] == layer))

    def settle(self, present: Tensor, delta: Tensor) -> Tensor:
        ((_, anchor),) = self.anchor  # of one layer: see `at`
        output, change = present[:, -1], delta[:, -1]
        value = output + change
        norm = value.norm(dim=-1, keepdim=True)
        usual = ((norm - anchor).abs() <= self.tolerance * anchor) | (norm == 0)
        known = (change == 0).all(dim=-1, keepdim=True)
        return change.where(usual | known, anchor / norm * value - output)


@dataclass(frozen=True)
class AnchoredMlp(AnchoredNorm):
    """As `AnchoredNorm`, with δ added to the output of the MLP; see `MlpOutput`."""

    sites: ClassVar[tuple[str, ...]] = ("mlp",)
    inside: ClassVar[bool] = True

    @property
    def plain(self) -> Target:
        return super().plain.inner

    @property
    def inner(self) -> Target:
        return self


@dataclass(frozen=True)
class AttentionAndMlp(Target):
    """Optimize the outputs of the attention and of the MLP together; only the MLP's is written.

    The loss is c · NLL + `kl_factor` · KL + `weight_decay` · (‖δ_a‖ / ‖a‖² + ‖δ_m‖ / ‖m‖²), each δ with its own clamp.
    Once a fact is predicted, c becomes `learned_weight`, so that the KL leads, and the fact is finished when the KL is
    below `stop_kl`. Source: PMET (arXiv:2308.08742).
    """

    sites: ClassVar[tuple[str, ...]] = ("attention", "mlp")
    inside: ClassVar[bool] = True

    learned_weight: float = 0.1
    """c while every target token is the most probable one in every context; 1 otherwise."""
    stop_kl: float = 0.01
    """A predicted fact is finished when its KL is below this, in nats."""

    def begin(self, present: Tensor) -> Kept:
        return {"c": present.new_ones(len(present))}

    def weigh(self, nll: Tensor, kl: Tensor, kept: Kept) -> Tensor:
        return kept["c"] * nll + self.kl_factor * kl

    def judge(self, evaluation: Evaluation, kept: Kept) -> tuple[Tensor, Kept]:
        predicted = evaluation.predicted
        finished = (evaluation.loss < self.stop_loss) | (predicted & (evaluation.kl < self.stop_kl))
        c = evaluation.loss.new_ones(()).where(~predicted, evaluation.loss.new_tensor(self.learned_weight))
        return finished, {"c": c}
