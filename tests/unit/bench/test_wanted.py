"""The arithmetic of what was wanted: exponents, tables, and which programs fit into the time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import PROGRAMS, Program, fitting
from bench.wanted import Row, at_least, at_most, exponent, spread, table, told


@given(st.floats(-2, 2), st.floats(0.01, 1000))
def test_the_exponent_of_a_power_is_found(power: float, factor: float) -> None:
    sizes = [40.0, 200.0, 1000.0, 5000.0]
    assert exponent(sizes, [factor * size**power for size in sizes]) == pytest.approx(power, abs=1e-6)


def test_the_exponent_is_that_of_least_squares_of_the_logarithms() -> None:
    """Two sizes, two costs each: the line goes through the geometric means."""
    found = exponent([10, 10, 100, 100], [1, 4, 10, 40])
    assert found == pytest.approx(math.log10(20) - math.log10(2))


def test_a_cost_of_nothing_does_not_break_it_and_one_size_is_refused() -> None:
    assert exponent([10, 100], [0, 5]) == pytest.approx(0)
    assert exponent([10, 100], [0, 0]) == 0
    with pytest.raises(ValueError, match="at least two sizes"):
        exponent([10, 10], [1, 2])


def test_a_limit_holds_up_to_itself() -> None:
    assert at_most(1, "x", 1.5, 1.5) == Row(1, "x", "at most 1.5", "1.50", True)
    assert at_most(1, "x", 1.51, 1.5, "s", 1) == Row(1, "x", "at most 1.5 s", "1.5 s", False)
    assert at_least(2, "y", 139.9, 140, "/s", 0) == Row(2, "y", "at least 140 /s", "140 /s", False)
    assert at_least(2, "y", 140, 140).holds


def test_the_table_says_what_does_not_hold() -> None:
    lines = table([at_most(1, "a", 2, 1), at_most(0, "b", 1, 1), told("c", "3")])
    assert lines[2:] == [
        "| 1 | a | at most 1 | 2.00 | **does not hold** |",
        "|  | b | at most 1 | 1.00 | holds |",
        "|  | c |  | 3 |  |",
    ]
    assert spread([3, 1, 2]) == "2.00 (1.00 to 3.00)"


def test_programs_fit_in_order_and_a_long_one_is_passed_over() -> None:
    programs = [Program(name, (), about_s) for name, about_s in (("a", 50), ("b", 100), ("c", 30), ("d", 20))]
    taken, out = fitting(programs, 90)
    assert [one.name for one in taken] == ["a", "c"]
    assert [one.name for one in out] == ["b", "d"]
    assert fitting(programs, 10) == ([], programs)


def test_what_make_bench_runs_is_known_once_each() -> None:
    assert len({one.name for one in PROGRAMS}) == len(PROGRAMS)
    assert all(one.about_s > 0 for one in PROGRAMS)
