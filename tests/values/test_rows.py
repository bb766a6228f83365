"""Grouping of rows: bounded, complete, and as cheap as the cheapest partition."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from factpatch.values.rows import Row, micro_batches


def row(suffix: int, prefix: int = 5, fact: int = 0) -> Row:
    return Row(fact, tuple(range(prefix + suffix)), prefix, (1,), 1.0)


def cost(groups: list[list[Row]], overhead: int) -> int:
    return sum(overhead + len(group) * max(row.suffix for row in group) for group in groups)


@pytest.mark.parametrize("overhead", [0, 3, 20, 1000])
@pytest.mark.parametrize("lengths", [[1, 1, 2, 5, 5, 6], [3], [1, 2, 3, 4, 5, 6, 7], [2, 2, 2, 9]])
def test_no_partition_is_cheaper(lengths: list[int], overhead: int) -> None:
    rows = [row(length, fact=index) for index, length in enumerate(lengths)]
    found = micro_batches(rows[::-1], tokens=10_000, overhead=overhead)
    assert sorted(row.fact for group in found for row in group) == list(range(len(rows)))
    every = []
    for count in range(len(rows)):
        for cuts in combinations(range(1, len(rows)), count):
            bounds = [0, *cuts, len(rows)]
            every.append([rows[a:b] for a, b in pairwise(bounds)])
    assert cost(found, overhead) == min(cost(groups, overhead) for groups in every)


def test_no_group_is_larger_than_allowed() -> None:
    rows = [row(4) for _ in range(30)] + [row(1, prefix=90) for _ in range(30)]
    for group in micro_batches(rows, tokens=20):
        assert len(group) * max(row.suffix for row in group) <= 20
        assert len(group) * max(len(row.ids) for row in group) <= 8 * 20


def test_a_row_that_is_too_long_alone_is_a_group() -> None:
    assert [len(group) for group in micro_batches([row(50), row(50)], tokens=20)] == [1, 1]
