"""Where calls go to: a group that all listen at, and the sockets for it.

Theory of operation. A group is a multicast group, or a broadcast address, and a port; IPv4, as its broadcast is. All
listeners of one machine share the port (SO_REUSEADDR: each gets every datagram that goes to a group). The interface is
named by its own address and never left to the kernel's choice: so tests stay on loopback, and a machine on two networks
does not call into the wrong one. Multicast goes no further than the network itself (TTL 1).
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass

RECEIVE_BYTES = 4 << 20
"""Room for answers that come faster than they are read; the system may give less."""
_MULTICAST_ALL = 49
"""IP_MULTICAST_ALL of linux/in.h: 0 gives a socket the groups of its own interface only."""


class BadGroup(ValueError):
    """There can be no such group: what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class Group:
    """`address` and `interface` are IPv4 addresses."""

    address: str
    port: int
    interface: str

    @property
    def multicast(self) -> bool:
        return ipaddress.IPv4Address(self.address).is_multicast

    def __str__(self) -> str:
        return f"{self.address}:{self.port} on {self.interface}"


def parse_group(text: str, interface: str) -> Group:
    """ "ADDRESS:PORT" and the address of an interface. Raises BadGroup."""
    address, _, port = text.rpartition(":")
    try:
        found = ipaddress.IPv4Address(address)
        good = found.is_multicast or address.endswith(".255")
    except ValueError:
        good = False
    if not good or not port.isascii() or not port.isdecimal() or not 0 < int(port[:6]) < 65_536:
        raise BadGroup(
            "group: expected a multicast group (224.0.0.0 to 239.255.255.255) or a broadcast address (such as "
            f"192.0.2.255), and a port, as 239.255.76.1:7601, found {text!r}"
        )
    try:
        ipaddress.IPv4Address(interface)
    except ValueError:
        raise BadGroup(
            f"interface: expected the IPv4 address that this machine has on it, found {interface!r}"
        ) from None
    return Group(address, int(port), interface)


def listening_socket(group: Group) -> socket.socket:
    """Gets what is sent to the group, and can answer. Raises OSError that names the group."""
    made = _socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((group.address, group.port))  # not the interface's: that would get what is sent to it alone, no group
        if group.multicast:
            joined = socket.inet_aton(group.address) + socket.inet_aton(group.interface)
            made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            if sys.platform == "linux":
                made.setsockopt(socket.IPPROTO_IP, _MULTICAST_ALL, 0)
        return made
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"can't listen at {group}: {error.strerror}") from None


def calling_socket(group: Group) -> socket.socket:
    """Sends to the group, and gets the answers. Raises OSError that names the group."""
    made = _socket()
    try:
        made.bind((group.interface, 0))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(group.interface))
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)  # those who listen on this machine hear it too
        return made
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"can't call from {group.interface}: {error.strerror}") from None


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    with suppress(OSError):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    return made
