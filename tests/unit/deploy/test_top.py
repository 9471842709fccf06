"""Which managents of the first level a plan is for: none is removed by being forgotten."""

from __future__ import annotations

import asyncio

import pytest

from deploy.at_work import TopError
from deploy.records import Child, StubRef, Table
from deploy.top import Top, roots_of

STUB = StubRef("s1", "tcp://127.0.0.1:1/" + "a" * 32)
TABLE = Table("", "a" * 32, STUB.address, "o", (Child("region1", 0, STUB), Child("region2", 1, STUB)))


def test_without_names_it_is_for_those_that_are_there() -> None:
    assert roots_of(TABLE, (), False) == ("/region1", "/region2")
    with pytest.raises(TopError, match="expected a root, such as --root /region1"):
        roots_of(None, (), False)


def test_who_is_there_must_be_named_or_is_to_be_removed() -> None:
    assert roots_of(None, ("/a",), False) == ("/a",)
    assert roots_of(TABLE, ("/region2", "/region1", "/a"), False) == ("/region2", "/region1", "/a")
    with pytest.raises(TopError, match="found /region1 there, too"):
        roots_of(TABLE, ("/region2",), False)
    assert roots_of(TABLE, ("/region2",), True) == ("/region2",)


async def refused(directory: str) -> str:
    with pytest.raises(TopError) as told:
        async with Top.open(directory):
            pass
    return str(told.value)


def test_a_directory_without_a_way_there_is_told() -> None:
    assert asyncio.run(refused("nowhere.invalid:2181")).startswith("no way to the directory at nowhere.invalid:2181")
