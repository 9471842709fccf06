"""What every bus agrees on, the real one and the simulated: addresses, routes, errors, and what is counted.

An *address* is "tcp://host:port/guid": where an agent listens, and the incarnation that does. A *route* is "route:…",
the `sender` of a received message: sending to it answers on the connection that the message came by. `route:self` is
the way of a bus to itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.messages import AnyMessage

ROUTE = "route:"
OWN_ROUTE = "route:self"

_ADDRESS = re.compile(r"(tcp://(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5}))/([0-9a-f]{8,32})")

OnMessage = Callable[[str, AnyMessage], None]
"""(sender, message)."""


class BindFailed(Exception):
    """The bus could not listen where it was told to: where, why, and what to do."""


class PortInUse(BindFailed):
    """Somebody else listens at this address."""


@dataclass(slots=True)
class BusCounters:
    """Since the start. `sent` and `received` by kind of message; `bad` by cause (size, seal, msgpack, version, type,
    parts, empty); `dropped` sends by cause: full (the peer does not keep up), gone (nobody is at that route any more),
    large, encoding (what no frame can hold), address (malformed). `stale`: meant for an earlier incarnation. `evicted`,
    `lost`: outgoing connections that had to make room, or broke; `peers`: those there are now."""

    sent: Counter[str] = field(default_factory=Counter)
    received: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    evicted: int = 0
    lost: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    peers: int = 0


def parse_address(text: str) -> tuple[str, str] | None:
    """(endpoint, guid), or None when no agent can have this address."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65_536:
        return None
    return match[1], match[3]
