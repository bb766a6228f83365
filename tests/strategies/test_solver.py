"""The solvers against the dense formulas of the papers, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from factpatch.patch.shift import LowRank
from factpatch.strategies import NullSpace, Ridge, least_squares
from factpatch.strategies.least_squares import PANEL, EarlierKeys, System, add_rows
from factpatch.strategies.memory import Traces

D_KEY, D_VALUE = 24, 16


def problem(facts: int, earlier: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Second moment, keys, residual, earlier keys."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    text = normal(200, D_KEY) * torch.logspace(-2, 1, D_KEY, dtype=torch.float64)
    return text.T @ text / 200, normal(facts, D_KEY), normal(facts, D_VALUE), normal(earlier, D_KEY)


def solve(solver: Ridge | NullSpace | System, moment: Tensor, keys: Tensor, residual: Tensor, past: Tensor) -> LowRank:
    """One batch, after earlier keys that came as one batch."""
    memory = EarlierKeys(solver) if isinstance(solver, System) else solver.memory(moment)
    memory.follow(traces([past]) if len(past) else [])
    return memory.solve(keys, residual)


def traces(batches: Sequence[Tensor]) -> list[Traces]:
    return [{"keys": keys} for keys in batches]


@pytest.mark.parametrize("earlier", [0, 7])
@pytest.mark.parametrize("facts", [1, 5, 40])
def test_ridge_equals_the_dense_solution(facts: int, earlier: int) -> None:
    moment, keys, residual, past = problem(facts, earlier)
    solver = Ridge(weight=30.0)
    shift = solve(solver, moment, keys, residual, past).matrix()
    system = 30.0 * moment + past.T @ past + keys.T @ keys
    dense = torch.linalg.solve(system, keys.T @ residual).T
    torch.testing.assert_close(shift, dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("earlier", [0, 7])
@pytest.mark.parametrize("facts", [1, 40])
def test_ridge_with_a_weight_of_the_norm_equals_the_dense_solution(facts: int, earlier: int) -> None:
    moment, keys, residual, past = problem(facts, earlier)
    shift = solve(Ridge(weight=30.0, norm_weight=20.0), moment, keys, residual, past).matrix()
    system = 30.0 * moment + 20.0 * torch.eye(D_KEY, dtype=torch.float64) + past.T @ past + keys.T @ keys
    dense = torch.linalg.solve(system, keys.T @ residual).T
    torch.testing.assert_close(shift, dense, rtol=1e-9, atol=1e-11)


def test_a_weight_of_the_norm_makes_a_singular_second_moment_usable() -> None:
    _, keys, residual, past = problem(3, 0)
    few = torch.randn(5, D_KEY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = solve(Ridge(weight=1.0, norm_weight=1.0), few.T @ few / 5, keys, residual, past).matrix()
    assert bool(torch.isfinite(shift).all())


@pytest.mark.parametrize("earlier", [0, 7])
@pytest.mark.parametrize("facts", [1, 5, 40])
def test_null_space_equals_the_dense_solution(facts: int, earlier: int) -> None:
    moment, keys, residual, past = problem(facts, earlier)
    solver = NullSpace(threshold=0.5, l2=3.0)
    shift = solve(solver, moment, keys, residual, past).matrix()
    values, vectors = torch.linalg.eigh(moment)
    inside = vectors[:, values < 0.5]
    projector = inside @ inside.T
    system = projector @ (keys.T @ keys + past.T @ past) + 3.0 * torch.eye(D_KEY, dtype=torch.float64)
    dense = torch.linalg.solve(system, projector @ keys.T @ residual).T
    torch.testing.assert_close(shift, dense, rtol=1e-9, atol=1e-11)


def test_ridge_minimizes_the_least_squares_of_the_paper() -> None:
    moment, keys, residual, past = problem(5, 7)
    solver = Ridge(weight=2.0)
    shift = solve(solver, moment, keys, residual, past).matrix()
    # ‖K Δᵀ − R‖² + ‖K_p Δᵀ‖² + λ ‖C^½ Δᵀ‖² as one stacked least-squares problem.
    root = torch.linalg.cholesky(2.0 * moment).T
    rows = torch.cat([keys, past, root])
    wanted = torch.cat([residual, torch.zeros(len(past) + D_KEY, D_VALUE, dtype=torch.float64)])
    torch.testing.assert_close(shift, torch.linalg.lstsq(rows, wanted).solution.T, rtol=1e-8, atol=1e-10)


def test_a_null_space_shift_leaves_preserved_keys_unchanged() -> None:
    moment, keys, residual, past = problem(5, 0)
    values, vectors = torch.linalg.eigh(moment)
    solver = NullSpace(threshold=0.5, l2=1.0)
    shift = solve(solver, moment, keys, residual, past).matrix()
    preserved = vectors[:, values >= 0.5]
    assert preserved.shape[1] > 0
    assert float((shift @ preserved).abs().max()) < 1e-12 * float(shift.abs().max()) * D_KEY


@pytest.mark.parametrize("solver", [Ridge(weight=5.0), NullSpace(threshold=0.5, l2=1.0)], ids=["ridge", "null-space"])
def test_zero_residual_gives_zero_shift(solver: Ridge | NullSpace) -> None:
    moment, keys, residual, past = problem(5, 3)
    assert not solve(solver, moment, keys, torch.zeros_like(residual), past).matrix().any()


@pytest.mark.parametrize("solver", [Ridge(weight=5.0), NullSpace(threshold=0.5, l2=1.0)], ids=["ridge", "null-space"])
def test_the_order_of_facts_does_not_matter(solver: Ridge | NullSpace) -> None:
    moment, keys, residual, past = problem(6, 4)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    one = solve(solver, moment, keys, residual, past).matrix()
    other = solve(solver, moment, keys[order], residual[order], past.flip(0)).matrix()
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("facts", [1, 6])
def test_the_shift_has_at_most_the_rank_of_the_batch(facts: int) -> None:
    moment, keys, residual, past = problem(facts, 9)
    shift = solve(Ridge(weight=1.0), moment, keys, residual, past)
    assert shift.up.shape == (D_VALUE, facts)
    assert shift.down.shape == (facts, D_KEY)


def test_a_singular_second_moment_is_refused_with_what_to_do() -> None:
    few = torch.randn(5, D_KEY, dtype=torch.float64)
    with pytest.raises(ValueError, match="too few tokens"):
        Ridge().prepare(few.T @ few / 5)


def test_a_threshold_below_the_spectrum_is_refused_with_the_spectrum() -> None:
    moment, *_ = problem(1, 0)
    with pytest.raises(ValueError, match=r"threshold=1e-09.*smallest"):
        NullSpace(threshold=1e-9).prepare(moment)


def test_different_numbers_of_facts_are_refused() -> None:
    moment, keys, residual, past = problem(4, 0)
    solver = Ridge()
    with pytest.raises(ValueError, match="keys hold 4 facts and residual 3"):
        solve(solver, moment, keys, residual[:3], past)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": 0.0}, "must be positive"),
        ({"weight": -1.0}, "must be positive"),
        ({"norm_weight": -1.0}, r"norm_weight=-1.0: μ must be finite and not negative"),
        ({"norm_weight": float("inf")}, "norm_weight=inf"),
    ],
)
def test_a_ridge_without_a_sensible_weight_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ridge(**wrong)


SOLVERS = [Ridge(weight=5.0), NullSpace(threshold=0.5, l2=1.0)]


@pytest.mark.parametrize("solver", SOLVERS, ids=["ridge", "null-space"])
def test_a_memory_gives_what_starting_over_gives_after_every_batch(solver: Ridge | NullSpace) -> None:
    moment, keys, residual, past = problem(5, 90)
    system = solver.prepare(moment)
    memory = EarlierKeys(system)
    batches: list[Traces] = []
    for size in (3, 1, 40, 5, 7, 30):
        start = sum(len(batch["keys"]) for batch in batches)
        batches.append({"keys": past[start : start + size]})
        memory.follow(batches)
        expected = solve(system, moment, keys, residual, past[: start + size]).matrix()
        torch.testing.assert_close(memory.solve(keys, residual).matrix(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS, ids=["ridge", "null-space"])
def test_a_memory_follows_back_and_its_bits_depend_on_the_sequence_alone(solver: Ridge | NullSpace) -> None:
    moment, keys, residual, past = problem(5, 12)
    batches = traces([past[:4], past[4:8], past[8:]])
    straight, wandering = (solver.memory(moment) for _ in range(2))
    straight.follow(batches)
    for path in (batches[:1], batches, batches[:2], [], batches[:1], batches):
        wandering.follow(path)
    assert torch.equal(straight.solve(keys, residual).down, wandering.solve(keys, residual).down)


@pytest.mark.parametrize("solver", SOLVERS, ids=["ridge", "null-space"])
def test_a_memory_that_was_interrupted_while_it_followed_starts_over(
    solver: Ridge | NullSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment, keys, residual, past = problem(5, 12)
    batches = traces(past.split(4))
    memory, calm = (solver.memory(moment) for _ in range(2))
    monkeypatch.setattr(least_squares, "PANEL", 5)
    calm.follow(batches)
    memory.follow(batches[:1])
    panels = iter(range(2))
    decompose = torch.geqrf

    def interrupted(matrix: Tensor) -> tuple[Tensor, Tensor]:
        if next(panels, None) is None:
            raise KeyboardInterrupt
        return decompose(matrix)

    monkeypatch.setattr(torch, "geqrf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory.follow(batches)
    monkeypatch.setattr(torch, "geqrf", decompose)
    memory.follow(batches)
    assert torch.equal(memory.solve(keys, residual).down, calm.solve(keys, residual).down)


@pytest.mark.parametrize("rows", [0, 1, 5, PANEL, 3 * PANEL])
@pytest.mark.parametrize("rank", [1, PANEL - 1, PANEL, 2 * PANEL + 7])
def test_rows_are_added_to_a_cholesky_factor(rank: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    gram = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    gram = gram @ gram.T + torch.eye(rank, dtype=torch.float64)
    added = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    added[:, ::3] = 0.0  # as after a rectified linear unit
    factor, given = torch.linalg.cholesky(gram), added.clone()
    add_rows(factor, added)
    assert torch.equal(added, given)
    assert not factor.triu(1).any()
    torch.testing.assert_close(factor @ factor.T, gram + added.T @ added, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("earlier", [0, 20, 300])
@pytest.mark.parametrize("name", ["ridge", "null-space"])
def test_ill_conditioned_moments_give_the_dense_solution_to_one_in_a_million(name: str, earlier: int) -> None:
    """Eigenvalues from 1 to 1e-6; keys lie in every direction alike, where they cost most and least."""
    width, generator = 150, torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    vectors = torch.linalg.qr(normal(width, width)).Q
    spectrum = torch.logspace(0, -6, width, dtype=torch.float64)
    keys, residual, past = normal(12, width), normal(12, D_VALUE), normal(earlier, width)
    outer = keys.T @ keys + past.T @ past
    if name == "ridge":
        moment = vectors * spectrum @ vectors.T
        system = Ridge(weight=20.0).prepare(moment)
        dense = torch.linalg.solve(20.0 * moment + outer, keys.T @ residual).T
    else:
        basis = vectors[:, spectrum < 0.02].contiguous()
        system = NullSpace(l2=1e-3).within(basis)
        projector = basis @ basis.T
        system_of_paper = projector @ outer + 1e-3 * torch.eye(width, dtype=torch.float64)
        dense = torch.linalg.solve(system_of_paper, projector @ keys.T @ residual).T
    memory = EarlierKeys(system)
    memory.follow(traces(past.split(15)))
    found = memory.solve(keys, residual).matrix()
    assert float((found - dense).norm() / dense.norm()) < 1e-6


@pytest.mark.parametrize("solver", SOLVERS, ids=["ridge", "null-space"])
def test_a_batch_takes_operations_with_the_square_of_the_dimensions_and_equally_many_after_any_number_of_facts(
    solver: Ridge | NullSpace,
) -> None:
    def operations(width: int, earlier: int) -> int:
        generator = torch.Generator().manual_seed(0)
        keys = torch.randn(4, width, generator=generator, dtype=torch.float64)
        past = traces(torch.randn(earlier, width, generator=generator, dtype=torch.float64).split(4))
        memory = EarlierKeys(solver.prepare(torch.diag(torch.logspace(0, -2, width, dtype=torch.float64))))
        memory.follow(past[:-1])
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            memory.follow(past)
            memory.solve(keys, keys)
        return int(counter.get_total_flops())

    at_256 = operations(256, 8)
    assert operations(256, 120) == at_256
    assert operations(512, 8) < 4.2 * at_256


def _product(_: list[int], left: list[int], right: list[int], **__: object) -> int:
    return 2 * left[-2] * left[-1] * right[-1]


def _columns_solved(factor: list[int], right: list[int], *_: object, **__: object) -> int:
    return right[-1] * factor[-1] ** 2


def _cube(matrix: list[int], *_: object, **__: object) -> int:
    return 2 * matrix[-2] * matrix[-1] ** 2


UNCOUNTED = {
    torch.ops.aten.addmm_: _product,
    torch.ops.aten.linalg_solve_triangular: _columns_solved,
    torch.ops.aten.cholesky_solve: lambda right, factor, *_, **__: 2 * right[-1] * factor[-1] ** 2,
    torch.ops.aten.geqrf: _cube,
    torch.ops.aten.linalg_cholesky_ex: _cube,
    torch.ops.aten._linalg_solve_ex: _cube,
    torch.ops.aten.linalg_inv_ex: _cube,
    torch.ops.aten._linalg_eigh: _cube,
}
"""What PyTorch's counter does not count by itself."""


@pytest.mark.parametrize("written", [0.5, 0.9])
@pytest.mark.parametrize("solver", [Ridge(), Ridge(norm_weight=20.0), NullSpace()])
def test_a_scaled_solver_writes_the_wanted_share_of_a_fact_alone(solver: Ridge | NullSpace, written: float) -> None:
    moment, keys, residual, _ = problem(1, 0)
    scaled = solver.scaled([moment], [keys], written)
    nothing = keys.new_zeros(0, D_KEY)
    shift = solve(scaled, moment, keys, residual, nothing).matrix()
    torch.testing.assert_close(keys @ shift.T, written * residual)


@pytest.mark.parametrize("solver", [Ridge(), Ridge(norm_weight=20.0), NullSpace()])
def test_scaling_does_not_depend_on_the_unit_of_keys(solver: Ridge | NullSpace) -> None:
    moment, keys, residual, _ = problem(5, 0)
    nothing = keys.new_zeros(0, D_KEY)
    found = []
    for unit in (1.0, 100.0):
        scaled = solver.scaled([unit**2 * moment], [unit * keys], 0.9)
        shift = solve(scaled, unit**2 * moment, unit * keys, residual, nothing).matrix()
        found.append(unit * keys @ shift.T)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_a_scaled_ridge_weighs_text_and_norm_alike() -> None:
    """Each alone, with half of the cost of both, writes the same share of the median fact."""
    moment, keys, _, _ = problem(5, 0)
    scaled = Ridge(norm_weight=20.0).scaled([moment], [keys], 0.8)
    of_text = (keys @ torch.linalg.inv(scaled.weight * moment) * keys).sum(dim=1).median()
    of_norm = (keys.square().sum(dim=1) / scaled.norm_weight).median()
    torch.testing.assert_close(of_text, of_norm)
    without = Ridge().scaled([moment], [keys], 0.8)
    assert without.norm_weight == 0
    assert scaled.weight < without.weight


@pytest.mark.parametrize("written", [0.0, 1.0, -1.0, 2.0])
def test_a_share_that_is_none_is_refused(written: float) -> None:
    moment, keys, _, _ = problem(3, 0)
    with pytest.raises(ValueError, match=r"written=.*between 0 and 1"):
        Ridge().scaled([moment], [keys], written)
