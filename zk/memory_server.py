"""One of the servers of zk.memory.Ensemble: who watches what there, and how far behind it is.

Theory of operation. A write is carried out by the ensemble as a whole, at once; each server learns of the transaction
and applies it a `lag` later, all in order. A client reads what its server has applied, and its watches fire when the
server applies the change: so a client may read what is no longer so, though another has told it already. The reply to
a write comes when the client's own server has applied it, and reads wait for the writes before them: a session sees its
own writes, and what it sees never goes back. Who connects is kept waiting by real servers until what was under way in
its session is decided and seen (zk.session_tree); so here a server catches up first. As on a server, the events of a
transaction are sent before its reply; a watch belongs to the connection that armed it and is gone with it.

Without lag a server applies everything at once, and costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple

from zk.memory_wire import Connection, Event, Farewell, Schedule
from zk.past import Past
from zk.tree import Children, Existed, Exists, Get, Got, Listed, NoNode, Op, Outcome
from zk.znodes import Change, Write, Znodes


class _Transaction(NamedTuple):
    """`author`: the connection that waits here for its outcome."""

    zxid: int
    changes: list[Change]
    author: Connection | None
    outcome: Outcome | None


class MemoryServer:
    """`lag()`: how late it applies the next transaction, in seconds; None: never late. `write(connection, op)` has the
    ensemble carry out a write; `end(session_id)`, end a session."""

    def __init__(
        self,
        znodes: Znodes,
        past: Past | None,
        schedule: Schedule,
        lag: Callable[[], float] | None,
        write: Callable[[Connection, Write], None],
        end: Callable[[int], None],
    ) -> None:
        self.applied = znodes.zxid
        self._znodes = znodes
        self._past = past
        self._schedule = schedule
        self._lag = lag
        self._write = write
        self._end = end
        self._learnt: deque[_Transaction] = deque()
        self._ahead = 0  # transactions applied before their time
        self._data_watches: dict[str, dict[Connection, None]] = {}
        self._child_watches: dict[str, dict[Connection, None]] = {}

    # --- transactions ---------------------------------------------------------------------------------------------

    def learn(self, zxid: int, changes: list[Change], author: Connection | None, outcome: Outcome | None) -> None:
        if self._lag is None:
            self._apply(_Transaction(zxid, changes, author, outcome))
        else:
            self._learnt.append(_Transaction(zxid, changes, author, outcome))
            self._schedule(self._lag(), self._apply_next)

    def catch_up(self) -> None:
        """Apply all that is known now."""
        while self._learnt:
            self._ahead += 1
            self._apply(self._learnt.popleft())

    def _apply_next(self) -> None:
        if self._ahead:
            self._ahead -= 1
        else:
            self._apply(self._learnt.popleft())

    def _apply(self, transaction: _Transaction) -> None:
        self.applied = transaction.zxid
        for kind, path in transaction.changes:
            if path in self._data_watches:
                for connection in self._data_watches.pop(path):
                    del connection.data_watches[path]
                    connection.tell(Event(path, of_children=False))
            if kind != "set":
                if kind == "delete":
                    self._fire_children(path)
                self._fire_children(path.rpartition("/")[0] or "/")
        author = transaction.author
        if author is not None:
            author.writing -= 1
            assert transaction.outcome is not None
            if author.client.loses_reply and not (author.closed or author.cut):
                author.client.reply_lost()
            else:
                author.tell(transaction.outcome)
            self._go_on(author)

    def _fire_children(self, path: str) -> None:
        for connection in self._child_watches.pop(path, ()):
            del connection.child_watches[path]
            connection.tell(Event(path, of_children=True))

    # --- connections ----------------------------------------------------------------------------------------------

    def serve(self, connection: Connection, request: Op | Farewell) -> None:
        """A request has arrived. Reads, and all behind them, wait for the writes before."""
        connection.held.append(request)
        self._go_on(connection)

    def drop(self, connection: Connection) -> None:
        """It is gone, and its watches with it."""
        connection.held.clear()
        for table, armed in (
            (self._data_watches, connection.data_watches),
            (self._child_watches, connection.child_watches),
        ):
            for path in armed:
                del table[path][connection]
                if not table[path]:
                    del table[path]
            armed.clear()

    def _go_on(self, connection: Connection) -> None:
        held = connection.held
        while held:
            request = held[0]
            if isinstance(request, Get | Exists | Children):
                if connection.writing:
                    return
                held.popleft()
                connection.tell(self._read(connection, request))
            elif isinstance(request, Farewell):
                if connection.writing:
                    return
                held.popleft()
                self._end(connection.session_id)
            else:
                held.popleft()
                connection.writing += 1
                self._write(connection, request)

    # --- reads ----------------------------------------------------------------------------------------------------

    def _read(self, connection: Connection, op: Get | Exists | Children) -> Outcome:
        path = op.path
        node = self._znodes.nodes.get(path)
        names: Collection[str] = () if node is None else node.children
        known = None if node is None else (node.data, node.stat())
        if self._past is not None:
            known = self._past.node_at(self.applied, path, known)
            names = self._past.names_at(self.applied, path, names)
        if op.watch and (known is not None or isinstance(op, Exists)):
            self._arm(connection, path, of_children=isinstance(op, Children))
        if isinstance(op, Exists):
            return Existed(None if known is None else known[1])
        if known is None:
            return NoNode(path)
        return Got(*known) if isinstance(op, Get) else Listed(tuple(sorted(names)))

    def _arm(self, connection: Connection, path: str, of_children: bool) -> None:
        table = self._child_watches if of_children else self._data_watches
        table.setdefault(path, {})[connection] = None
        (connection.child_watches if of_children else connection.data_watches)[path] = None
