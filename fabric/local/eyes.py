"""The keeper's eyes: a process that looks into ZooKeeper and at the API for it, since the keeper may have no thread.

One JSON line asks (`Look`), one answers (`Seen`). Registered is who has a member znode; for the nodes named in
`check` the znode is read, to tell a new process from the ephemeral that its predecessor left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from fabric.records import BadRecord, LayerName, Leader, Member, decode
from zk import paths
from zk.client import TreeClient
from zk.server import ask_status
from zk.session_tree import SessionTree
from zk.tree import NoNode, SessionState, TreeError

LOOK_WAIT_S = 5.0
API_WAIT_S = 2.0
MODE_WAIT_S = 0.5
OPEN_WAIT_S = 60.0
MAX_LINE_BYTES = 1 << 20
SESSION_S = 6.0
"""Short, as a third of it is how long one silent server is borne (zk.session_tree); nothing hangs on this session."""

R = TypeVar("R", bound=msgspec.Struct)


class Look(msgspec.Struct, frozen=True):
    """`check`: nodes whose member znode shall be read. `sweep`: instead, remove every znode of this fabric."""

    check: tuple[str, ...] = ()
    sweep: bool = False


class Seen(msgspec.Struct, frozen=True):
    """`members`: node names. `pids`: of the checked ones that are registered. `leaders`: rack -> node by layer.
    `modes`: of ZooKeeper servers by name, without those that do not serve. `trouble`: why ZooKeeper could not be asked;
    then only `modes` is said."""

    members: tuple[str, ...] = ()
    pids: dict[str, int] = {}
    leaders: dict[LayerName, dict[str, str]] = {}
    api: bool = False
    modes: dict[str, str] = {}
    trouble: str = ""


async def watch(
    hosts: str,
    racks: Sequence[str],
    api: tuple[str, int],
    requests: int,
    answers: int,
    servers: Mapping[str, tuple[str, int]],
) -> None:
    """Answer each line of the descriptor `requests` with one at `answers`, until `requests` ends. `api`: host and
    port. `servers`: those of ZooKeeper that can be asked what they are, by name."""
    tree = SessionTree(hosts, session_timeout_s=SESSION_S)
    probe = _Probe(*api)
    lines = await _reader(requests)
    try:
        await tree.open(wait_s=OPEN_WAIT_S)
        client = TreeClient(tree)
        while line := await lines.readline():
            look = msgspec.json.decode(line, type=Look)
            modes = asyncio.ensure_future(_modes(servers))
            try:
                if tree.state is not SessionState.CONNECTED:
                    raise TreeError("/", "no connection to ZooKeeper")
                async with asyncio.timeout(LOOK_WAIT_S):
                    if look.sweep:
                        await _sweep(client)
                        seen = Seen()
                    else:
                        seen = await _look(client, racks, look, probe)
            except (TreeError, BadRecord, TimeoutError) as error:
                seen = Seen(trouble=str(error) or f"ZooKeeper did not answer within {LOOK_WAIT_S:g} s")
            seen = msgspec.structs.replace(seen, modes=await modes)
            os.write(answers, msgspec.json.encode(seen) + b"\n")
    finally:
        await tree.close()


async def _reader(fd: int) -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0))
    return reader


async def _look(client: TreeClient, racks: Sequence[str], look: Look, probe: _Probe) -> Seen:
    probe.again()
    layered = [(layer, rack) for layer in paths.LAYERS for rack in racks]
    listed = await asyncio.gather(*(_children(client, paths.rack_members(layer, rack)) for layer, rack in layered))
    found: dict[str, tuple[LayerName, str]] = {}
    for (layer, rack), names in zip(layered, listed, strict=True):
        found.update((name, (layer, rack)) for name in names)
    checked = [name for name in look.check if name in found]
    members = await asyncio.gather(*(_record(client, paths.member(*found[name], name), Member) for name in checked))
    standing = [(layer, rack) for layer in paths.LAYERS for rack in await _children(client, paths.leaders(layer))]
    records = await asyncio.gather(*(_record(client, paths.leader(layer, rack), Leader) for layer, rack in standing))
    leaders: dict[LayerName, dict[str, str]] = {layer: {} for layer in paths.LAYERS}
    for (layer, rack), leader in zip(standing, records, strict=True):
        if leader is not None:
            leaders[layer][rack] = leader.node
    pids = {name: member.pid for name, member in zip(checked, members, strict=True) if member is not None}
    return Seen(tuple(found), pids, leaders, probe.ready)


async def _modes(servers: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """What each server says that it is; without those that do not say it soon."""
    asked = [asyncio.to_thread(ask_status, port, host, MODE_WAIT_S) for host, port in servers.values()]
    found = zip(servers, await asyncio.gather(*asked), strict=True)
    return {name: status.mode for name, status in found if status is not None}


async def _children(client: TreeClient, path: str) -> tuple[str, ...]:
    try:
        return await client.children(path)
    except NoNode:
        return ()


async def _record(client: TreeClient, path: str, kind: type[R]) -> R | None:
    try:
        return decode((await client.get(path)).data, kind, path)
    except NoNode:
        return None


class _Probe:
    """Whether GET /readyz is answered with 200, as of the last time it was asked. It is not waited for: an API that
    starts has its port long before it answers. There is no HTTP library here, so that the keeper's fork stays small."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.ready = False
        self.task: asyncio.Task[None] | None = None

    def again(self) -> None:
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        writer = None
        try:
            async with asyncio.timeout(API_WAIT_S):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                host = f"[{self.host}]" if ":" in self.host else self.host
                writer.write(f"GET /readyz HTTP/1.1\r\nHost: {host}:{self.port}\r\nConnection: close\r\n\r\n".encode())
                status = await reader.readline()
                self.ready = status.split(b" ")[1:2] == [b"200"]
        except (OSError, TimeoutError):
            self.ready = False
        finally:
            if writer is not None:
                writer.close()


async def _sweep(client: TreeClient) -> None:
    """Remove every znode of this fabric, its chroot included: for an ensemble that is not ours."""

    async def remove(path: str) -> None:
        for name in await _children(client, path):
            await remove(f"{path.rstrip('/')}/{name}")
        with contextlib.suppress(NoNode):
            await client.delete(path)

    await remove("/")
