"""What a storage agent still holds though no image refers to it any more: found after each start and then rarely, and
freed.

An image may be deleted or replaced while one of its holders is away, and a push may be cut off just after its last
holder had it whole: nobody tells the holder then. So every `leftovers_every_s`, the first time when it has registered,
a storage agent notes what it holds, waits (`leftovers_after_s`: a push that was being acknowledged must have its record
by then), reads the image records, one at a time, and, if that leaves anything, the deployments' (one that is not over
goes on needing what its image's name meant when it was made). It drops what it noted and no record names. If a single
record can't be read, nothing is dropped: not knowing is no reason to delete.
"""

from __future__ import annotations

from fabric.effects import DropContent
from fabric.records import BadRecord, Deployment, Image, decode
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Settings
from zk import paths
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome

PREFIX = "leftover:"
IMAGES, DEPLOYMENTS = "images", "deployments"


class Leftovers:
    """Embed it in the storage role."""

    def __init__(self, settings: Settings, out: Outbox) -> None:
        self._settings = settings
        self._out = out
        self._suspects: set[str] = set()
        self._kind = IMAGES
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
            self._out.tree(f"{PREFIX}{IMAGES}", Children(paths.IMAGES))

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
        kind, _, name = token[len(PREFIX) :].partition(":")
        if isinstance(outcome, Listed):
            self._kind, self._names = kind, list(outcome.names)
            self._next()
        elif isinstance(outcome, Got):
            try:
                self._suspects.discard(_needed(kind, name, outcome.data))
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
        """The next record; after the images, and only if anything is left to ask about, the deployments."""
        if not self._suspects:
            self._names = []
        elif self._names:
            name = self._names.pop()
            path = paths.image(name) if self._kind == IMAGES else paths.deployment(name)
            self._out.tree(f"{PREFIX}{self._kind}:{name}", Get(path))
        elif self._kind == IMAGES:
            self._out.tree(f"{PREFIX}{DEPLOYMENTS}", Children(paths.DEPLOYMENTS))
        else:
            for digest in sorted(self._suspects):
                self._out.note("info", f"image content {digest} belongs to nothing any more: freeing it")
                self._out.add(DropContent(PREFIX + digest, digest))
            self._suspects.clear()


def _needed(kind: str, name: str, data: bytes) -> str:
    """The content that a record needs, or "". Raises BadRecord."""
    if kind == IMAGES:
        return decode(data, Image, paths.image(name)).digest
    record = decode(data, Deployment, paths.deployment(name))
    over = record.final and record.state in ("failed", "deleted")
    return "" if over else record.spec.digest
