"""The API's tree where faults are wanted: it shows the writes of new records to the step hooks, and may write as a
later minor version would. Everything else is the tree's own."""

from __future__ import annotations

from collections.abc import Callable

from fabric.effects import CallTree, TreeDone
from fabric.runtime.newer import newer_op
from fabric.runtime.stepping import Stepping
from fabric.steps import recording
from zk.session_tree import SessionTree
from zk.tree import Op, Outcome, SessionState, TreeEvent


class SteppedTree:
    """A `Tree` over another."""

    def __init__(self, tree: SessionTree, stepping: Stepping, newer: bool) -> None:
        self._tree = tree
        self._stepping = stepping
        self._newer = newer

    def submit(self, op: Op, done: Callable[[Outcome], None]) -> None:
        token = recording(op)
        sent = newer_op(op) if self._newer else op
        if not token:
            self._tree.submit(sent, done)
            return

        def answered(outcome: Outcome) -> None:
            self._stepping.before(TreeDone(token, outcome))
            done(outcome)

        asked = CallTree(token, op)
        self._stepping.before(asked)
        self._tree.submit(sent, answered)
        self._tree.flush()
        self._stepping.after(asked)

    def listen(self, listener: Callable[[TreeEvent], None]) -> None:
        self._tree.listen(listener)

    @property
    def state(self) -> SessionState:
        return self._tree.state

    @property
    def session_id(self) -> int:
        return self._tree.session_id

    @property
    def operations(self) -> dict[str, int]:
        return self._tree.operations
