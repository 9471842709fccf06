"""One top initiator at a time: an ephemeral znode that says who.

It keeps two people from bringing about two descriptions at once, and tells everybody where the top of the tree is, so
that questions go there. It is no fence: that is the epoch of the top's table, which whoever claims it next raises. So
a lock that is lost with its session does no harm, and one whose owner is known to be dead is taken over at once.
"""

from __future__ import annotations

import os
import socket

from deploy.records import TopRecord
from fabric.drivers.procfs import start_time
from fabric.records import BadRecord, decode, encode
from zk import paths
from zk.client import TreeClient
from zk.tree import NodeExists, NoNode

TAKE_TRIES = 5
MAX_DOING_CHARS = 200


class Held(Exception):
    """Somebody else is the top: `record` says who."""

    def __init__(self, record: TopRecord) -> None:
        super().__init__(
            f"expected to be the only one, found process {record.pid} on {record.host}, which does: {record.doing}"
        )
        self.record = record


def this_process(guid: str, address: str, doing: str, stays: bool = False) -> TopRecord:
    """`doing`: for people, cut to what a record takes: one that can't be read would be nobody's."""
    pid = os.getpid()
    return TopRecord(guid, address, socket.gethostname(), pid, start_time(pid), doing[:MAX_DOING_CHARS], stays)


async def holder(client: TreeClient) -> TopRecord | None:
    """Who is the top now. One that was killed on this machine is none, though its session is not over yet."""
    try:
        got = await client.get(paths.TOP)
    except NoNode:
        return None
    record = _read(got.data)
    return None if record is None or _dead(record) else record


async def take(client: TreeClient, record: TopRecord, over: bool, waits: bool = False) -> None:
    """Become the top, for as long as the session lives; `over`: even if somebody else is. One that stays makes way, if
    it is not left where it is by who `waits`. Raises Held."""
    for _ in range(TAKE_TRIES):
        try:
            await client.create(paths.TOP, encode(record), ephemeral=True)
            return
        except NodeExists:
            pass
        try:
            got = await client.get(paths.TOP)
            found = _read(got.data)
            if found is not None and found.guid == record.guid:
                return  # made by a call whose reply was lost
            makes_way = found is None or over or (found.stays and not waits)
            if found is not None and not makes_way and not _dead(found):
                raise Held(found)
            await client.delete(paths.TOP, got.stat.version)
        except NoNode:
            continue
    raise Held(TopRecord(record.guid, record.address, "another machine", 0, 0, "taking it again and again"))


async def hold(client: TreeClient, record: TopRecord) -> bool:
    """Say what this process does now. False when it is not the top any more: somebody else is, or was meanwhile, or its
    session was lost."""
    try:
        got = await client.get(paths.TOP)
        found = _read(got.data)
        if found is None or found.guid != record.guid:
            return False
        if found != record:
            await client.set(paths.TOP, encode(record), got.stat.version)
        return True
    except NoNode:
        return False


async def release(client: TreeClient, record: TopRecord) -> None:
    """Be the top no more; nothing happens when somebody else is."""
    try:
        got = await client.get(paths.TOP)
        found = _read(got.data)
        if found is not None and found.guid == record.guid:
            await client.delete(paths.TOP, got.stat.version)
    except NoNode:
        return


def _read(data: bytes) -> TopRecord | None:
    """None: whatever is written there, nobody can be it."""
    try:
        return decode(data, TopRecord, paths.TOP)
    except BadRecord:
        return None


def _dead(record: TopRecord) -> bool:
    return record.host == socket.gethostname() and start_time(record.pid) != record.started
