"""Flavors: the defaults, files of one's own, and errors that name file, key, what was expected and what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.flavors import BadFlavors, load_flavors
from fabric.resources import Resources


def test_the_defaults_from_tiny_to_xlarge() -> None:
    found = load_flavors()
    assert list(found) == ["Tiny", "Small", "Medium", "Large", "XLarge"]
    assert found["Large"].resources == Resources(4, 8192, 40960)


def test_a_file_replaces_them_all(tmp_path: Path) -> None:
    file = tmp_path / "flavors.toml"
    file.write_text("[Huge]\nvcpus = 64\nmemory_mib = 1\ndisk_mib = 0\n[Bit]\nvcpus=1\nmemory_mib=1\ndisk_mib=1\n")
    assert list(load_flavors(file)) == ["Bit", "Huge"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected 1 to 200 flavors, found 0"),
        ("[Huge", "expected TOML"),
        ("Huge = 3", "[Huge]: expected a table with vcpus, memory_mib, disk_mib, found 3"),
        ("[Huge]\nvcpus = 1\nmemory_mib = 1", "disk_mib: expected a whole number from 0 to 1073741824, found nothing"),
        (
            "[Huge]\nvcpus = '4'\nmemory_mib = 1\ndisk_mib = 1",
            "[Huge] vcpus: expected a whole number from 1 to 4096, found '4'",
        ),
        ("[Huge]\nvcpus = true\nmemory_mib = 1\ndisk_mib = 1", "found True"),
        ("[Huge]\nvcpus = 0\nmemory_mib = 1\ndisk_mib = 1", "found 0"),
        (
            "[Huge]\nvcpus = 1\nmemory_mib = 1\ndisk_mib = 1\ngpus = 2",
            "[Huge] gpus: expected only vcpus, memory_mib, disk_mib",
        ),
        ('["a b"]\nvcpus = 1\nmemory_mib = 1\ndisk_mib = 1', "expected a flavor name such as Large"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "flavors.toml"
    file.write_text(text)
    with pytest.raises(BadFlavors) as caught:
        load_flavors(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert told in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadFlavors, match="expected a readable flavors file, found: No such file"):
        load_flavors(tmp_path / "nothing.toml")
