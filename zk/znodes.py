"""The znodes of a tree in memory: ZooKeeper's data model, and nothing of its sessions or its network.

Theory of operation. One dict maps every path to its znode; a znode keeps the names of its children (a dict, as those
of a set would come in another order in each process) and how many it ever had, which is where sequence numbers come
from: they count every create below a parent, never go back, and go on after deletes. A write is a transaction with a
zxid of its own, failed ones included, as on a server. A `Multi` is done in place, one operation after the other, and
undone backwards from a log when one of them fails: its cost is that of its operations, not of the tree.

Who watches what is zk.memory's: a write returns its changes, and those say all that watches need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from zk.past import Past
from zk.tree import (
    BadVersion,
    Check,
    Checked,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    NotEmpty,
    Outcome,
    Refused,
    Set,
    Stat,
    TreeError,
    Written,
)

Write = Create | Set | Delete | Multi


class Change(NamedTuple):
    """One effect of a transaction."""

    kind: Literal["create", "set", "delete"]
    path: str


class Znode:
    """`made`: children that were ever created. `children`: names, in the order of their creation."""

    __slots__ = ("children", "ctime_ms", "czxid", "data", "made", "mtime_ms", "mzxid", "owner", "version")

    def __init__(self, data: bytes, zxid: int, owner: int, now_ms: int) -> None:
        self.data = data
        self.czxid = self.mzxid = zxid
        self.version = 0
        self.owner = owner
        self.ctime_ms = self.mtime_ms = now_ms
        self.children: dict[str, None] = {}
        self.made = 0

    def stat(self) -> Stat:
        return Stat(
            self.czxid, self.mzxid, self.version, len(self.children), self.owner, self.ctime_ms, self.mtime_ms
        )


Undo = Callable[[], None]


class Znodes:
    """`wall_ms`: the servers' clock. `past`: where to note what was before each change. `nodes` is there to be read."""

    def __init__(self, wall_ms: Callable[[], int], paths: Iterable[str] = (), past: Past | None = None) -> None:
        """`paths`: what is there from the start, parents first."""
        self._past = past
        self.zxid = 0
        self.nodes: dict[str, Znode] = {"/": Znode(b"", 0, 0, wall_ms())}
        self._wall_ms = wall_ms
        self._ephemerals: dict[int, dict[str, None]] = {}
        for path in paths:
            self.write(Create(path), 0)

    def write(self, op: Write, session_id: int) -> tuple[Outcome, list[Change]]:
        """Carry out `op` for that session: the outcome, and what changed (nothing when it failed)."""
        self.zxid += 1
        changes: list[Change] = []
        if isinstance(op, Multi):
            return self._write_all(op, session_id, changes), changes
        outcome: Outcome
        try:
            outcome = self._write_one(op, session_id, changes, None)
        except TreeError as error:
            outcome = error
        return outcome, changes

    def end_session(self, session_id: int) -> list[Change]:
        """Delete its ephemerals, in one transaction."""
        self.zxid += 1
        changes: list[Change] = []
        for path in tuple(self._ephemerals.get(session_id, ())):
            self._remove(path, self.nodes[path])
            changes.append(Change("delete", path))
        return changes

    def ephemerals(self, session_id: int) -> tuple[str, ...]:
        return tuple(self._ephemerals.get(session_id, ()))

    # --- transactions ---------------------------------------------------------------------------------------------

    def _write_all(self, op: Multi, session_id: int, changes: list[Change]) -> Outcome:
        results: list[Created | Written | Deleted | Checked] = []
        undo: list[Undo] = []
        for index, part in enumerate(op.ops):
            try:
                if isinstance(part, Check):
                    self._found(part.path, part.version)
                    results.append(Checked())
                else:
                    result = self._write_one(part, session_id, changes, undo)
                    results.append(Created(result.path, None) if isinstance(result, Created) else result)
            except TreeError as error:
                for step in reversed(undo):
                    step()
                changes.clear()
                return MultiFailed(part.path, index, error)
        return Done(tuple(results))

    def _write_one(
        self, op: Create | Set | Delete, session_id: int, changes: list[Change], undo: list[Undo] | None
    ) -> Created | Written | Deleted:
        """Raises TreeError. Servers find what is wrong in this order: no parent, there already, parent ephemeral; no
        znode, version, children."""
        if isinstance(op, Create):
            return self._create(op, session_id, changes, undo)
        path = op.path
        node = self._found(path, op.version)
        if isinstance(op, Set):
            if undo is not None:
                undo.append(_restoring(node))
            if self._past is not None:
                self._past.node_was(self.zxid, path, (node.data, node.stat()))
            node.data = op.data
            node.mzxid = self.zxid
            node.version += 1
            node.mtime_ms = self._wall_ms()
            changes.append(Change("set", path))
            return Written(node.stat())
        if path == "/":
            raise Refused(path, "the root can't be deleted")
        if node.children:
            raise NotEmpty(path)
        self._remove(path, node)
        if undo is not None:
            undo.append(lambda: self._put(path, node))
        changes.append(Change("delete", path))
        return Deleted()

    def _found(self, path: str, version: int) -> Znode:
        node = self.nodes.get(path)
        if node is None:
            raise NoNode(path)
        if version != -1 and version != node.version:
            raise BadVersion(path)
        return node

    def _create(self, op: Create, session_id: int, changes: list[Change], undo: list[Undo] | None) -> Created:
        parent = self.nodes.get(op.path.rpartition("/")[0] or "/")
        if parent is None:
            raise NoNode(op.path)
        path = f"{op.path}{parent.made:010d}" if op.sequence else op.path
        if path in self.nodes:
            raise NodeExists(op.path)
        if parent.owner:
            raise Refused(op.path, "its parent is ephemeral, and an ephemeral has no children")
        node = Znode(op.data, self.zxid, session_id if op.ephemeral else 0, self._wall_ms())
        self._put(path, node)
        parent.made += 1
        if undo is not None:

            def step() -> None:
                self._remove(path, node)
                parent.made -= 1

            undo.append(step)
        changes.append(Change("create", path))
        return Created(path, node.stat())

    def _put(self, path: str, node: Znode) -> None:
        self.nodes[path] = node
        above, _, name = path.rpartition("/")
        self.nodes[above or "/"].children[name] = None
        if self._past is not None:
            self._past.node_was(self.zxid, path, None)
            self._past.child_was(self.zxid, above or "/", name, there=False)
        if node.owner:
            self._ephemerals.setdefault(node.owner, {})[path] = None

    def _remove(self, path: str, node: Znode) -> None:
        del self.nodes[path]
        above, _, name = path.rpartition("/")
        del self.nodes[above or "/"].children[name]
        if self._past is not None:
            self._past.node_was(self.zxid, path, (node.data, node.stat()))
            self._past.child_was(self.zxid, above or "/", name, there=True)
        if node.owner:
            owned = self._ephemerals[node.owner]
            del owned[path]
            if not owned:
                del self._ephemerals[node.owner]


def _restoring(node: Znode) -> Undo:
    before = (node.data, node.mzxid, node.version, node.mtime_ms)

    def step() -> None:
        node.data, node.mzxid, node.version, node.mtime_ms = before

    return step
