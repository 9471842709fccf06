"""Waves are cut by changes, move forward only, and stop where too much has failed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.messages import Counts
from deploy.waves import ALL, Share, Wave, cut, parse_share, size_of, too_many

PATHS = tuple(f"/r/{number:02}" for number in range(40))


@pytest.mark.parametrize(
    ("text", "total", "number"),
    [("10%", 40, 4), ("2%", 40, 0), ("2%", 11_111, 222), ("100%", 7, 7), ("20", 7, 20), ("0", 7, 0), ("12.5%", 8, 1)],
)
def test_a_share_is_a_number_or_a_part(text: str, total: int, number: int) -> None:
    assert parse_share(text).of(total) == number
    assert str(parse_share(text)) == text


@pytest.mark.parametrize("text", ["", "%", "-1", "ten", "101%", "nan%", "1.5"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|could not|invalid"):
        parse_share(text)


def test_ten_percent_makes_ten_waves() -> None:
    waves = cut(PATHS, parse_share("10%"))
    assert [len(wave.changes) for wave in waves] == [4] * 10
    assert [wave.until for wave in waves] == [*PATHS[3:-1:4], ALL]
    assert [(wave.number, wave.of) for wave in waves] == [(number, 10) for number in range(1, 11)]


def test_without_a_size_all_is_one_wave_and_so_is_nothing() -> None:
    assert cut(PATHS, None) == (Wave(1, 1, ALL, PATHS),)
    assert cut((), parse_share("10%")) == (Wave(1, 1, ALL, ()),)


def test_a_tiny_part_is_one_at_a_time() -> None:
    assert [wave.until for wave in cut(PATHS[:3], parse_share("1%"))] == ["/r/00", "/r/01", ALL]


def test_what_has_no_place_in_the_order_comes_last() -> None:
    waves = cut(PATHS[:4], Share(3), ["/old/a", "/old/b"])
    assert [(wave.until, wave.changes) for wave in waves] == [
        ("/r/02", PATHS[:3]),
        (ALL, ("/r/03", "/old/a", "/old/b")),
    ]
    assert [wave.changes for wave in cut((), Share(1), ["/old/a", "/old/b"])] == [("/old/a", "/old/b")]


@given(st.integers(0, 60), st.integers(0, 20), st.one_of(st.none(), st.integers(1, 70).map(Share)))
def test_every_change_is_in_one_wave_and_the_watermark_moves_forward(
    changes: int, removed: int, size: Share | None
) -> None:
    ordered, unordered = [f"/r/{n}" for n in range(changes)], [f"/old/{n}" for n in range(removed)]
    waves = cut(ordered, size, unordered)
    assert [path for wave in waves for path in wave.changes] == ordered + unordered
    assert waves[-1].until == ALL
    marks = [ordered.index(wave.until) for wave in waves[:-1]]
    assert marks == sorted(set(marks))


def test_a_limit_alone_cuts_waves_too() -> None:
    assert size_of(None, None) is None
    assert size_of(Share(3), Share(1)) == Share(3)
    assert len(cut(PATHS, size_of(None, Share(1)))) == 10


def test_the_limit() -> None:
    counts = Counts(targeted=100, active=95, refused=1, failed=2, unreachable=2)
    assert too_many(counts, None, 100) == ""
    assert too_many(counts, Share(5), 100) == ""
    assert too_many(counts, parse_share("4%"), 100) == (
        "5 managents are not active (1 refused, 2 failed, 2 unreachable), expected at most 4 (4% of 100)"
    )
    assert too_many(Counts(failed=1), Share(0), 100).endswith("expected at most 0")
