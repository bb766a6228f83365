"""The change of one weight: low-rank factors where the solver gives them, other forms where it is no such product."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from factpatch.model.places import name_of, place_named
from factpatch.support.words import quoted

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Shift(ABC):
    """Δ of one weight; a form is a dataclass of the tensors that a file stores."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(d_value, d_key)"""

    @abstractmethod
    def matrix(self) -> Tensor:
        """Δ in float64, (d_value, d_key)."""

    @abstractmethod
    def check(self) -> None:
        """Raise ValueError unless the parts fit together: what others wrote may be of any shape and dtype."""

    def tensors(self) -> dict[str, Tensor]:
        """Its parts, by the names that a file gives them."""
        return dict(vars(self))

    def to(self, dtype: torch.dtype) -> Shift:
        """The same on the CPU, with numbers in this dtype."""
        parts = self.tensors().items()
        return type(self)(**{name: _converted(part, dtype) for name, part in parts})

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(part).all()) for part in self.tensors().values())


@dataclass(frozen=True)
class LowRank(Shift):
    """Δ = up @ down, of rank at most the number of facts."""

    up: Tensor
    """(d_value, rank)"""
    down: Tensor
    """(rank, d_key)"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def check(self) -> None:
        _check_numbers("up", self.up, 2)
        _check_numbers("down", self.down, 2)
        if self.up.shape[1] != self.down.shape[0] or 0 in (*self.up.shape, *self.down.shape):
            raise ValueError(f"up is of shape {tuple(self.up.shape)} and down of {tuple(self.down.shape)}.")

    def matrix(self) -> Tensor:
        # The product of float32 factors is formed in float64: rounded to float32 it then hardly depends on the order of
        # summation, so that another machine writes the same bits.
        return self.up.to(torch.float64) @ self.down.to(torch.float64)


@dataclass(frozen=True)
class Dense(Shift):
    """Δ as it is."""

    full: Tensor
    """(d_value, d_key)"""

    @property
    def shape(self) -> tuple[int, int]:
        return self.full.shape[0], self.full.shape[1]

    def check(self) -> None:
        _check_numbers("full", self.full, 2)

    def matrix(self) -> Tensor:
        return self.full.to(torch.float64)


@dataclass(frozen=True)
class Masked(Shift):
    """Δ is the product up @ down at some entries and zero at all others: smaller than these entries at low rank."""

    up: Tensor
    """(d_value, rank)"""
    down: Tensor
    """(rank, d_key)"""
    kept: Tensor
    """(⌈d_value · d_key / 8⌉,), uint8: one bit per entry, row by row."""

    @classmethod
    def of(cls, shift: Shift, mask: Tensor) -> Shift:
        """The shift where `mask`, (d_value, d_key), is true: as it is, by its factors or by its entries."""
        if bool(mask.all()):
            return shift
        kept = torch.from_numpy(np.packbits(mask.cpu().numpy()))
        if isinstance(shift, LowRank) and shift.up.numel() + shift.down.numel() < int(mask.sum()):
            return cls(shift.up, shift.down, kept)
        matrix = shift.matrix()
        return Sparse(matrix[mask.cpu()], kept, torch.tensor(matrix.shape))

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def check(self) -> None:
        LowRank(self.up, self.down).check()
        _check_bits(self.kept, self.shape)

    def matrix(self) -> Tensor:
        return torch.where(_mask(self.kept, self.shape), LowRank(self.up, self.down).matrix(), 0.0)


@dataclass(frozen=True)
class Sparse(Shift):
    """Δ by its entries that are not zero."""

    values: Tensor
    """(entries,), row by row."""
    kept: Tensor
    """(⌈d_value · d_key / 8⌉,), uint8: one bit per entry of Δ, row by row."""
    size: Tensor
    """(2,), int64: d_value and d_key."""

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.size[0]), int(self.size[1])

    def check(self) -> None:
        _check_numbers("values", self.values, 1)
        if self.size.dtype != torch.int64 or tuple(self.size.shape) != (2,) or int(self.size.min()) < 1:
            raise ValueError(f"size is {self.size.dtype} of shape {tuple(self.size.shape)}, not two positive int64.")
        _check_bits(self.kept, self.shape)
        # Only after the check above is the mask known to be no larger than the file.
        entries = int(_mask(self.kept, self.shape).sum())
        if entries != len(self.values):
            raise ValueError(f"kept marks {entries} entries, and there are {len(self.values)} values.")

    def matrix(self) -> Tensor:
        matrix = torch.zeros(self.shape, dtype=torch.float64)
        matrix[_mask(self.kept, self.shape)] = self.values.to(torch.float64)
        return matrix


_FORMS = {frozenset(field.name for field in fields(form)): form for form in (LowRank, Dense, Masked, Sparse)}


def shift_from_tensors(tensors: Mapping[str, Tensor]) -> Shift:
    """The inverse of `tensors()`; ValueError if no form has these parts, or they do not fit together."""
    form = _FORMS.get(frozenset(tensors))
    if form is None:
        known = " or ".join(" and ".join(sorted(parts)) for parts in _FORMS)
        raise ValueError(f"a shift is stored as {known}; found {quoted(sorted(tensors))}.")
    made: Shift = form(**tensors)
    made.check()
    return made


def tensors_by_name(batches: Iterable[Mapping[int, Shift]]) -> dict[str, Tensor]:
    """Name the parts of all shifts, given by batch and layer, as a file does."""
    return {
        f"{index}.{name_of(place)}.{part}": tensor.detach().to("cpu").contiguous()
        for index, shifts in enumerate(batches)
        for place, shift in shifts.items()
        for part, tensor in shift.tensors().items()
    }


def shifts_by_batch(tensors: Mapping[str, Tensor]) -> dict[int, dict[int, Shift]]:
    """The inverse of `tensors_by_name`: shifts by batch and, in ascending order, by layer.

    Raises:
        ValueError: A name is not of the form batch.layer.part, or the parts of a shift are incomplete or do not fit.
    """
    parts: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, layer, part = name.split(".")
        parts.setdefault((int(index), place_named(layer)), {})[part] = tensor
    batches: dict[int, dict[int, Shift]] = {}
    for place in sorted(parts):
        try:
            batches.setdefault(place[0], {})[place[1]] = shift_from_tensors(parts[place])
        except ValueError as error:
            raise ValueError(f"batches[{place[0]}], layer {name_of(place[1])}: {error}") from error
    return batches


def smaller(shift: Shift) -> Shift:
    """The same shift, dense if its factors are larger than the matrix."""
    if isinstance(shift, LowRank) and shift.up.numel() + shift.down.numel() > math.prod(shift.shape):
        return Dense(shift.matrix())
    return shift


def total(shifts: Sequence[Shift]) -> Shift:
    """The sum of shifts of one weight, in float64: in factors where all are, else dense; one alone keeps its form.

    Raises:
        ValueError: They are of different shapes.
    """
    # Before a product is formed: the factors of a small file may be those of a matrix that fills the memory.
    if len({shift.shape for shift in shifts}) > 1:
        raise ValueError(f"shifts of one weight have different shapes: {sorted({shift.shape for shift in shifts})}.")
    if len(shifts) == 1:
        return smaller(shifts[0].to(torch.float64))
    if all(isinstance(shift, LowRank) for shift in shifts):
        factors = [shift for shift in shifts if isinstance(shift, LowRank)]
        up = torch.cat([shift.up.double() for shift in factors], dim=1)
        return smaller(LowRank(up, torch.cat([shift.down.double() for shift in factors])))
    matrix = shifts[0].matrix()
    for shift in shifts[1:]:
        matrix = matrix + shift.matrix()
    return Dense(matrix)


def decomposed(shift: Shift) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition: left (d_value, r), descending values (r,), right (r, d_key), in float64.

    Of factors of low rank only a rank × rank matrix is decomposed.

    Raises:
        FloatingPointError: The shift is not finite.
    """
    if isinstance(shift, LowRank) and shift.up.shape[1] < min(shift.shape):
        up, inner_up = torch.linalg.qr(shift.up.double())
        down, inner_down = torch.linalg.qr(shift.down.double().T)
        left, singular, right = _svd(inner_up @ inner_down.T)
        return up @ left, singular, right @ down.T
    return _svd(shift.matrix())


def distance(one: Shift, other: Shift) -> float:
    """How far apart two shifts of one weight are, in the Frobenius norm; no matrix is formed of factors of low rank."""
    if isinstance(one, LowRank) and isinstance(other, LowRank):
        up = torch.cat([one.up.double(), -other.up.double()], dim=1)
        difference: Shift = smaller(LowRank(up, torch.cat([one.down.double(), other.down.double()])))
    else:
        difference = Dense(one.matrix() - other.matrix())
    return norm(difference)


def norm(shift: Shift) -> float:
    """The Frobenius norm of a shift; no matrix is formed of factors of low rank."""
    if isinstance(shift, LowRank) and shift.up.shape[1] < min(shift.shape):
        inner_up = torch.linalg.qr(shift.up.double(), mode="r").R
        inner_down = torch.linalg.qr(shift.down.double().T, mode="r").R
        return float(torch.linalg.matrix_norm(inner_up @ inner_down.T))
    return float(torch.linalg.matrix_norm(shift.matrix()))


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not bool(torch.isfinite(matrix).all()):
        raise FloatingPointError("the shift is not finite in float64; edit the facts again")
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, singular, right


def _check_numbers(name: str, part: Tensor, dimensions: int) -> None:
    if part.dtype not in _FLOATS or part.dim() != dimensions or not bool(torch.isfinite(part).all()):
        raise ValueError(
            f"{name} is {part.dtype} of shape {tuple(part.shape)}; it must hold finite floats in {dimensions} "
            f"dimension{'s' if dimensions > 1 else ''}."
        )


def _check_bits(kept: Tensor, shape: tuple[int, int]) -> None:
    wanted = -(-math.prod(shape) // 8)
    if kept.dtype != torch.uint8 or tuple(kept.shape) != (wanted,):
        raise ValueError(f"kept is {kept.dtype} of shape {tuple(kept.shape)}; {shape} takes {wanted} bytes of uint8.")


def _converted(part: Tensor, dtype: torch.dtype) -> Tensor:
    return part.to("cpu", dtype).contiguous() if part.is_floating_point() else part


def _mask(kept: Tensor, shape: tuple[int, int]) -> Tensor:
    bits = np.unpackbits(kept.numpy(), count=math.prod(shape))
    return torch.from_numpy(bits).bool().view(shape)
