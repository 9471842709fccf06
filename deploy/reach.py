"""From where others reach this process: a command or a program that takes part in deployment for a while."""

from __future__ import annotations

import ipaddress
import socket

from zk.connect import parse


def address_towards(directory: str) -> str:
    """The address of this machine from which the directory (a connect string) is reached, so that those who reach it
    too can answer there. Raises OSError when its name is not known or there is no way there."""
    host, port = parse(directory).servers[0]
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:  # connecting a datagram socket sends nothing
        probe.connect(where)
        return str(probe.getsockname()[0])


def bind_at(address: str) -> str:
    """Any free port of `address`, as the bus takes it."""
    return f"tcp://[{address}]:0" if ":" in address else f"tcp://{address}:0"


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
