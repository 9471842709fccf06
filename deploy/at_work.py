"""A top initiator at work in this process: the lock, the initiator, and that both are given up in the end.

While it works, this process is the top of the tree for everybody (deploy.top_lock).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from deploy import top_lock
from deploy.configuration import InitiatorRole
from deploy.directory import Directory, Fenced
from deploy.initiator_host import InitiatorFailed, TopHost, built_in
from deploy.messages import Charge
from deploy.records import TopRecord
from deploy.settings import Settings
from fabric.runtime.bus import SocketContext
from zk.client import TreeClient
from zk.tree import Tree


class TopError(Exception):
    """It can't be done: what was expected, what was found, what to do."""


class Workplace:
    """What a top of this process works with. `hosts`: the directory, as a connect string. `bind`: where it is to be
    reached. `settings`: of the initiator; None for the defaults."""

    def __init__(
        self, hosts: str, key: bytes | None, tree: Tree, context: SocketContext, bind: str, settings: Settings | None
    ) -> None:
        self.hosts, self.key, self.tree, self.context, self.bind = hosts, key, tree, context, bind
        self.settings = settings
        self.client = TreeClient(tree)
        self.directory = Directory(self.client)


@dataclass(frozen=True, slots=True)
class Work:
    """`record`: of the lock."""

    host: TopHost
    record: TopRecord


@asynccontextmanager
async def at_work(
    place: Workplace,
    role: InitiatorRole,
    charge: Charge,
    doing: str,
    *,
    over: bool = False,
    stays: bool = False,
) -> AsyncIterator[Work]:
    """`doing`: for people. `over`: even if somebody else is at work. `stays`: it only looks after what is there: it
    makes way for others, and has others of its kind make no way for it. Raises top_lock.Held, TopError, and what a
    directory may raise."""
    host = TopHost(place.context, place.key, place.bind, place.tree, built_in(place.settings))
    mine = top_lock.this_process(host.guid, host.address, doing, stays)
    try:
        await top_lock.take(place.client, mine, over, waits=stays)
        try:
            await host.start(role, charge)
            yield Work(host, mine)
        except Fenced as error:
            raise TopError(f"another top initiator has taken over: {error}") from error
        except InitiatorFailed as error:
            raise TopError(str(error)) from error
        finally:
            await top_lock.release(place.client, mine)
    finally:
        host.close()
