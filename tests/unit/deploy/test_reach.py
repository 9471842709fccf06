"""A command listens where those who reach the directory can reach it, too."""

from __future__ import annotations

import pytest

from deploy.reach import address_towards, bind_at, is_loopback


def test_the_way_to_a_directory_on_this_machine_is_this_machine() -> None:
    assert address_towards("127.0.0.1:2181/site") == "127.0.0.1"
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("192.0.2.1")


def test_an_address_with_colons_is_put_in_brackets() -> None:
    assert bind_at("127.0.0.1") == "tcp://127.0.0.1:0"
    assert bind_at("::1") == "tcp://[::1]:0"


def test_a_name_that_nobody_knows_is_an_os_error() -> None:
    with pytest.raises(OSError, match=r"."):
        address_towards("nowhere.invalid:2181")
