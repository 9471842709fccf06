"""Where a role puts its effects, in order. The agent empties it at the end of every input."""

from __future__ import annotations

from fabric.effects import CallTree, Effect, Note, Persist, Send
from fabric.messages import AnyMessage
from zk.tree import Op


class Outbox:
    """`wall_ms`: the wall clock at the input that is being handled, for what people read; set by the agent."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self.wall_ms = 0

    def add(self, effect: Effect) -> None:
        self._effects.append(effect)

    def send(self, to: str, message: AnyMessage) -> None:
        self._effects.append(Send(to, message))

    def tree(self, token: str, op: Op) -> None:
        self._effects.append(CallTree(token, op))

    def persist(self, puts: tuple[tuple[str, bytes], ...] = (), deletes: tuple[str, ...] = ()) -> None:
        if puts or deletes:
            self._effects.append(Persist(puts, deletes))

    def note(self, level: str, text: str) -> None:
        self._effects.append(Note(level, text))

    def take(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


def earliest(*deadlines: float | None) -> float | None:
    """The first of some deadlines, None meaning never. (A loop: this is what an agent does most often.)"""
    first: float | None = None
    for deadline in deadlines:
        if deadline is not None and (first is None or deadline < first):
            first = deadline
    return first
