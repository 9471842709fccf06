"""A picture of a result, where matplotlib is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.load.plotting import plot
from tests.unit.load.given import RESULT


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_picture_is_what_its_name_says(name: str, begins: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot(RESULT, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
