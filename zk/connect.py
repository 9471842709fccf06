"""The connect string: which servers, and below which znode everything of one fabric lives.

    192.0.2.1:2181,192.0.2.2:2181,[fd00::3]:2181/fabric/site-a
    └──────────── servers ───────────────────┘└── chroot ──┘

A server without a port gets 2181. The chroot is optional, may have several parts, and is made when it is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_PORT = 2181
MAX_SERVERS = 32

_SERVER = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


class Unreachable(ConnectionError):
    """No server of a connect string answered in time."""

    def __init__(self, hosts: str, waited_s: float) -> None:
        super().__init__(
            f"no ZooKeeper server answered at {hosts} within {waited_s:g} s: start one there, "
            "or give another connect string (host:port,host:port/chroot)"
        )
        self.hosts = hosts
        self.waited_s = waited_s


@dataclass(frozen=True, slots=True)
class ConnectString:
    """`servers`: (host, port), in the order given. `chroot`: "" or "/one/or/more" without a slash at its end."""

    servers: tuple[tuple[str, int], ...]
    chroot: str

    @property
    def hosts(self) -> str:
        """The servers alone, as text: what errors name and what a client library takes."""
        return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers)


def parse(text: str) -> ConnectString:
    """Raises ValueError that says what was expected, what was found, and where."""
    servers_text, slash, below = text.strip().partition("/")
    words = [word.strip() for word in servers_text.split(",")]
    if len(words) > MAX_SERVERS:
        raise ValueError(f"connect string: expected at most {MAX_SERVERS} servers, found {len(words)}")
    servers = tuple(_server(word, text) for word in words)
    parts = below.split("/") if slash and below else []
    for part in parts:
        if not _PART.fullmatch(part) or part in (".", ".."):
            raise ValueError(
                f"connect string {text!r}: expected a chroot like /fabric/site-a after the servers, found part {part!r}"
            )
    return ConnectString(servers, "".join(f"/{part}" for part in parts))


def _server(word: str, text: str) -> tuple[str, int]:
    match = _SERVER.fullmatch(word)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError(f"connect string {text!r}: expected servers as host:port,host:port, found {word!r}")
    return match["v6"] or match["host"], port
