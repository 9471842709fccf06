"""Percentiles by nearest rank, of all samples; what had not ended counts, too; buckets that add up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.load.latency import BUCKETS, EDGES_S, quantile, summary

TIMES = st.lists(st.floats(0, 5000, allow_nan=False), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("part", "expected"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.999, 100), (1.0, 100)]
)
def test_a_percentile_is_the_sample_at_its_rank(part: float, expected: int) -> None:
    assert quantile([float(n) for n in range(1, 101)], part) == expected


def test_of_nothing_all_is_zero() -> None:
    assert quantile([], 0.5) == 0
    found = summary([])
    assert (found.count, found.p50_ms, found.max_ms, found.mean_ms, found.buckets) == (0, 0, 0, 0, {})


@given(TIMES, st.sampled_from([0.5, 0.9, 0.99, 0.999]))
def test_so_many_are_not_above_a_percentile_and_no_smaller_sample_would_do(times: list[float], part: float) -> None:
    found = quantile(sorted(times), part)
    assert found in times
    assert sum(one <= found for one in times) >= part * len(times) - 1e-9
    smaller = [one for one in times if one < found]
    assert len(smaller) < part * len(times) + 1e-9


@given(TIMES)
def test_buckets_count_every_sample_within_their_edges(times: list[float]) -> None:
    found = summary(times)
    assert sum(found.buckets.values()) == found.count == len(times)
    for at, number in ((int(at), number) for at, number in found.buckets.items()):
        low = EDGES_S[at - 1] if at else -1.0
        high = EDGES_S[at] if at < BUCKETS - 1 else float("inf")
        assert number == sum(low < one <= high for one in times)


def test_what_has_not_ended_counts_with_what_it_waited() -> None:
    """Leaving the slowest out would make a fabric that hangs look quick."""
    found = summary([0.01] * 50, [30.0] * 50)
    assert (found.count, found.open) == (100, 50)
    assert found.p50_ms == 10
    assert found.p90_ms == 30_000
