"""Ordinal sets as text: what is written is read back, and nothing else is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.ordinals import format_ordinals, parse_ordinals


@given(st.sets(st.integers(0, 9999)))
def test_what_is_written_is_read_back(ordinals: set[int]):
    assert parse_ordinals(format_ordinals(ordinals)) == tuple(sorted(ordinals))


def test_ten_thousand_ordinals_in_a_row_are_a_few_bytes():
    assert format_ordinals(range(10_000)) == "0-9999"


WRONG = ["1,1", "3-1", "-1", "1-", "a", "10000", "0-10000", "2,1", " 1", "1,,2", "²", "0" * 70000]


@pytest.mark.parametrize("text", WRONG)
def test_what_was_not_written_by_us_is_refused(text: str):
    with pytest.raises(ValueError, match="ordinals: expected"):
        parse_ordinals(text)
