"""Which groups there can be."""

from __future__ import annotations

import pytest

from deploy.discovery import BadGroup, Group, parse_group
from deploy.discovery.group import calling_socket, listening_socket


def test_a_group_is_multicast_or_broadcast() -> None:
    assert parse_group("239.255.76.1:7601", "127.0.0.1") == Group("239.255.76.1", 7601, "127.0.0.1")
    assert parse_group("239.255.76.1:7601", "127.0.0.1").multicast
    assert not parse_group("127.255.255.255:1", "127.0.0.1").multicast


@pytest.mark.parametrize(
    "text",
    [
        "",
        "239.255.76.1",
        "239.255.76.1:",
        "239.255.76.1:0",
        "239.255.76.1:65536",
        "239.255.76.1:-1",
        "192.0.2.1:7601",
        "[ff02::1]:7601",
        "everybody:7601",
        "239.255.76.1:٧",
    ],
)
def test_what_is_no_group_is_said(text: str) -> None:
    with pytest.raises(BadGroup, match=r"expected a multicast group .* or a broadcast address"):
        parse_group(text, "127.0.0.1")


@pytest.mark.parametrize("interface", ["", "lo", "::1", "127.0.0"])
def test_an_interface_is_named_by_its_address(interface: str) -> None:
    with pytest.raises(BadGroup, match="expected the IPv4 address that this machine has on it"):
        parse_group("239.255.76.1:7601", interface)


def test_an_interface_that_is_not_here_is_said() -> None:
    nowhere = Group("239.255.76.1", 7601, "203.0.113.77")
    with pytest.raises(OSError, match=r"can't call from 203\.0\.113\.77"):
        calling_socket(nowhere)
    with pytest.raises(OSError, match=r"can't listen at 239\.255\.76\.1:7601 on 203\.0\.113\.77"):
        listening_socket(nowhere)
