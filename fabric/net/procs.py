"""Whose connections these are: the processes at the other ends of connections over this machine's loopback, from /proc.

The kernel names the inode of each TCP socket (/proc/net/tcp), and of what each process has open (/proc/<pid>/fd). Only
processes of the same user can be looked into; all others are strangers, as are those that have closed it meanwhile.
One look costs about 0.1 ms for each process, so many connections are looked up at once.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping

Ends = tuple[tuple[str, int], tuple[str, int]]
"""Of a TCP socket over IPv4: its own (host, port), and the other's."""
_PREFIX = "socket:["


def owners(connections: Iterable[Ends], pids: Mapping[str, int]) -> dict[Ends, str]:
    """The name of who has the socket with these ends open; who is not of `pids` is missing."""
    wanted = {_as_written(ends): ends for ends in connections}
    inodes: dict[str, Ends] = {}
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table:
            words = line.split()
            if ends := wanted.get((words[1], words[2])):
                inodes[words[9]] = ends
    found: dict[Ends, str] = {}
    for name, pid in pids.items():
        if len(found) == len(inodes):
            break
        for inode in _sockets(pid) & inodes.keys():
            found[inodes[inode]] = name
    return found


def _sockets(pid: int) -> set[str]:
    """The inodes of the sockets that a process has open; none of one that is gone, or somebody else's."""
    folder = f"/proc/{pid}/fd"
    try:
        links = [_link(f"{folder}/{fd}") for fd in os.listdir(folder)]
    except OSError:
        return set()
    return {link[len(_PREFIX) : -1] for link in links if link.startswith(_PREFIX)}


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _as_written(ends: Ends) -> tuple[str, str]:
    """As /proc/net/tcp has it: addresses in the machine's own order of bytes."""

    def one(host: str, port: int) -> str:
        return f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"

    return one(*ends[0]), one(*ends[1])
