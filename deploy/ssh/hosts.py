"""The file that names the hosts: one a line, as [user@]host[:port], then name=… and domain=… where wanted.

    # rack 1
    root@192.0.2.11                 name=r1c01 domain=/site/r1
    [2001:db8::12]:2222             name=r1c02 domain=/site/r1
    build-host                      # an alias of ~/.ssh/config will do

A boot stub without a name gets that of its host. The characters allowed are few on purpose: no host can be taken for an
option of ssh, or mean anything to what an operator's ~/.ssh/config does with it ("Match exec").
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from deploy.identity import BadIdentity, check_path

MAX_HOSTS = 20_000
MAX_LINE_CHARS = 1000
MAX_HOST_CHARS = 253
MAX_PORT = 65_535

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,31}\$?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)


class BadHosts(ValueError):
    """The file is wrong: which line, what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class Host:
    """`host`: an address (IPv6 without brackets), a name, or an alias of ~/.ssh/config. `user` and `name` may be "",
    `port` 0: then ssh, or the host itself, knows."""

    host: str
    user: str = ""
    port: int = 0
    name: str = ""
    domain: str = ""

    def __str__(self) -> str:
        """As the file has it, without name and domain."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


def parse_hosts(text: str, source: str) -> tuple[Host, ...]:
    """At least one host. `source`: the file's name, for errors. Raises BadHosts."""
    hosts: list[Host] = []
    where: dict[tuple[str, int], int] = {}
    names: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            host = _parse_line(line)
            if host is None:
                continue
            first = where.setdefault((host.host.lower(), host.port), number)
            if first != number:
                raise BadHosts(f"expected each host once, found {host} again, which line {first} has")
            first = names.setdefault(host.name, number) if host.name else number
            if first != number:
                raise BadHosts(f"expected each name once, found {host.name} again, which line {first} has")
            if len(hosts) == MAX_HOSTS:
                raise BadHosts(f"expected at most {MAX_HOSTS} hosts, found more")
        except (BadHosts, BadIdentity) as error:
            raise BadHosts(f"{source}, line {number}: {error}") from None
        hosts.append(host)
    if not hosts:
        raise BadHosts(f"{source}: expected a host a line, as [user@]host[:port] [name=…] [domain=…], found none")
    return tuple(hosts)


def _parse_line(line: str) -> Host | None:
    """None for an empty line or a comment."""
    if len(line) > MAX_LINE_CHARS:
        raise BadHosts(f"expected at most {MAX_LINE_CHARS} characters, found {len(line)}")
    words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].split()
    if not words:
        return None
    user, host, port = _parse_destination(words[0])
    fields: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals or key not in _FIELDS:
            raise BadHosts(f"expected name=… or domain=… after the host, found {word!r}")
        if key in fields:
            raise BadHosts(f"expected {key}=… once, found it twice")
        fields[key] = _FIELDS[key](value)
    return Host(host, user, port, **fields)


def _parse_destination(word: str) -> tuple[str, str, int]:
    user, at, rest = word.rpartition("@")
    if at and not _USER.fullmatch(user):
        raise BadHosts(f"expected a user's name before the @, found {user!r}")
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or not _is_ipv6(host):
            raise BadHosts(f"expected an IPv6 address in brackets, found {rest!r}")
        if port and not port.startswith(":"):
            raise BadHosts(f"expected nothing or :port after the brackets, found {port!r}")
        return user, host, _parse_port(port[1:]) if port else 0
    if rest.count(":") > 1:
        raise BadHosts(f"expected an IPv6 address in brackets, as [{rest[:60]}], found it without")
    host, colon, port = rest.partition(":")
    if len(host) > MAX_HOST_CHARS or not _HOST.fullmatch(host):
        raise BadHosts(
            "expected a host's name or address, of letters, digits, '.', '_' and '-', not beginning with '-' or '.', "
            f"found {host[:100]!r}"
        )
    return user, host, _parse_port(port) if colon else 0


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _ZONE.fullmatch(zone) is not None


def _parse_port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_PORT:
        raise BadHosts(f"expected a port from 1 to {MAX_PORT}, found {text[:20]!r}")
    return int(text[:9])


def check_name(text: str) -> str:
    """`text` if it can be the name of a boot stub; raises BadHosts."""
    if not _NAME.fullmatch(text):
        raise BadHosts(
            "expected a name of 1 to 64 letters, digits, '.', '_', '-', neither beginning with '.' or '-' nor ending "
            f"with '.', found {text[:100]!r}"
        )
    return text


_FIELDS: dict[str, Callable[[str], str]] = {"name": check_name, "domain": check_path}
