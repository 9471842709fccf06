"""What a driver refuses to act on, and who makes drivers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fabric.drivers import make_driver
from fabric.drivers.base import Launch, Limits, checked_launch, checked_name


def launch(**changed: Any) -> Launch:
    fields: dict[str, Any] = {
        "instance": "d-7f3k2m.17",
        "attempt": 0,
        "entrypoint": Path("/images/x/run"),
        "root": Path("/images/x"),
        "environment": {"A": "b"},
        "limits": Limits(100, 100),
    }
    return Launch(**fields | changed)


@pytest.mark.parametrize("name", ["d-7f3k2m.17", "a", "0.0", "a" * 100])
def test_names_that_are_safe_as_file_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a..b", ".a", "a.", "a/b", "../a", "A.1", "a b", "a\n", "a" * 101])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected an instance name"):
        checked_name(name)


def test_a_good_launch_passes() -> None:
    assert checked_launch(launch()) == launch()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"instance": "A"}, "instance name"),
        ({"attempt": -1}, "attempt"),
        ({"entrypoint": Path("run")}, "entrypoint"),
        ({"root": Path("x")}, "root"),
        ({"limits": Limits(0, 100)}, "memory_mib"),
        ({"limits": Limits(100, -1)}, "disk_mib"),
        ({"limits": Limits(100, 100, open_files=0)}, "open_files"),
        ({"limits": Limits(100, 100, processes=0)}, "processes"),
        ({"environment": {"": "x"}}, "environment"),
        ({"environment": {"a=b": "x"}}, "environment"),
        ({"environment": {"a": "x\0y"}}, "environment"),
    ],
)
def test_a_malformed_launch_is_refused_by_field(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked_launch(launch(**changed))


def test_make_driver_knows_its_names(tmp_path: Path) -> None:
    made = [make_driver(name, tmp_path, print) for name in ("process", "null")]
    assert [(driver.name, driver.real) for driver in made] == [("process", True), ("null", False)]
    with pytest.raises(ValueError, match="expected a driver of process, null, found 'docker'"):
        make_driver("docker", tmp_path, print)
