"""What a storage agent still holds though no image refers to it any more: found after each start and then rarely, and
freed.

An image may be deleted or replaced while one of its holders is away, and a push may be cut off just after its last
holder had it whole: nobody tells the holder then. So every `leftovers_every_s`, the first time when it has registered,
a storage agent notes what it holds, waits (`leftovers_after_s`: a push that was being acknowledged must have its record
by then), reads the image records, one at a time, and drops what it noted and no record names. If a single record can't
be read, nothing is dropped: not knowing is no reason to delete.
"""

from __future__ import annotations

from fabric.effects import DropContent
from fabric.records import BadRecord, Image, decode
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Settings
from zk import paths
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome

PREFIX = "leftover:"


class Leftovers:
    """Embed it in the storage role."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self._settings = settings
        self._out = out
        self._suspects: set[str] = set()
        self._names: list[str] = []
        self._note_at: float | None = None
        self._due: float | None = None

    def tick(self, now: float, held: frozenset[str]) -> None:
        """`held`: what is in the store now."""
        if self._note_at is not None and now >= self._note_at:
            self._note_at = now + self._settings.leftovers_every_s
            if held and self._due is None:
                self._suspects = set(held)
                self._due = now + self._settings.leftovers_after_s
        if self._due is not None and now >= self._due:
            self._due = None
            self._out.tree(PREFIX, Children(paths.IMAGES))

    def begin(self, now: float) -> None:
        """Registered. Only the first time counts."""
        if self._note_at is None:
            self._note_at = now

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._note_at, self._due)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        if isinstance(outcome, Listed):
            self._names = list(outcome.names)
            self._next()
        elif isinstance(outcome, Got):
            name = token[len(PREFIX) :]
            try:
                self._suspects.discard(decode(outcome.data, Image, paths.image(name)).digest)
            except BadRecord as error:
                self._out.note("error", f"{error}; leftovers are kept")
                self._suspects.clear()
            self._next()
        elif isinstance(outcome, NoNode):
            self._next()
        else:
            self._due = now + self._settings.leftovers_after_s
        return True

    def _next(self) -> None:
        if self._names and self._suspects:
            name = self._names.pop()
            self._out.tree(PREFIX + name, Get(paths.image(name)))
            return
        for digest in sorted(self._suspects):
            self._out.note("info", f"image content {digest} belongs to no image any more: freeing it")
            self._out.add(DropContent(PREFIX + digest, digest))
        self._suspects.clear()
