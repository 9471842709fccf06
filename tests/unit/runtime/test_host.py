"""The host's own rule: what a role asked for in one session is never done in the next."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from fabric.effects import CallTree, Effect, Persist, TreeDone
from fabric.gate import Gate
from fabric.resources import Resources
from fabric.runtime.host import AgentHost
from fabric.runtime.settings import AgentConfig
from tests.unit.runtime.until import until
from zk.tree import Create, SessionChanged, SessionExpired, SessionState


class SlowJournal:
    """Writes are on the disk when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def append(self, puts: Any, deletes: Any, done: Any) -> None:
        self.waiting.append(done)


class Tree:
    def __init__(self) -> None:
        self.submitted: list[object] = []

    def submit(self, op: object, done: object) -> None:
        self.submitted.append(op)


class Role:
    """Asks for a znode behind a write, whatever it is told; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def handle(self, now: float, wall_ms: int, news: object) -> list[Effect]:
        self.told.append(news)
        if len(self.told) == 1:
            return [Persist(puts=(("k", b"v"),)), CallTree("t", Create("/members/x", ephemeral=True))]
        return []

    def next_deadline(self) -> None:
        return None


def test_an_operation_that_waited_for_the_journal_over_a_lost_session_is_not_done(tmp_path: Path):
    async def main() -> None:
        config = AgentConfig("n1", "r1", "compute", "127.0.0.1:1", tmp_path, Resources(1, 1, 1))
        host = AgentHost(config, cast(Any, None), cast(Any, None))
        journal, tree, role = SlowJournal(), Tree(), Role()
        host.agent, host._tree = cast(Any, role), cast(Any, tree)
        host._gate = Gate(cast(Any, journal), host._perform, lambda reason: None)
        host._on_tree_event(SessionChanged(SessionState.CONNECTED, 1))
        host._on_tree_event(SessionChanged(SessionState.LOST, 1))
        host._on_tree_event(SessionChanged(SessionState.CONNECTED, 2))
        journal.waiting.pop()(None)
        await until(lambda: len(role.told) == 4, what="the role is told")
        assert isinstance(role.told[-1], TreeDone)
        assert isinstance(role.told[-1].outcome, SessionExpired)
        assert tree.submitted == []

    asyncio.run(main())
