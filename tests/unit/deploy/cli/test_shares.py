"""What --wave and --max-failed take."""

from __future__ import annotations

import argparse

import pytest

from deploy.cli.parser import share, some


@pytest.mark.parametrize("text", ["1", "20", "0.5%", "10%", "100%"])
def test_a_wave_is_a_number_or_a_part(text: str) -> None:
    assert some(text) == text


def test_nothing_may_fail_but_a_wave_of_nothing_gets_nowhere() -> None:
    assert share("0") == "0"
    for text in ("0", "0%", "-1", "101%", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            some(text)
