"""What a storage agent still holds though no image refers to it any more: found after each start and then rarely, and
freed.

An image may be deleted or replaced while one of its holders is away, and a push may be cut off just after its last
holder had it whole: nobody tells the holder then. So every `leftovers_every_s`, the first time when it has registered,
a storage agent notes what it holds, waits (`leftovers_after_s`: a push that was being acknowledged must have its record
by then), and looks: it reads the image records, one at a time, and, if that leaves anything, the deployments' (one that
is not over goes on needing what its image's name meant when it was made). What it noted and no record names is suspect.

Records are read one by one, so one written meanwhile can be missed: a push of the same bytes. Hence each suspect, one
at a time, is looked for again behind the fence of `fabric.api.contents`, which no image's record can pass:

    look at all -> for each suspect: raise its fence -> look again -> the fence is still ours? -> drop
                                     |there: another holder, or the API, is at it;              |
                                     '- come back, boundedly                                    |
                   lower the fence  <- the store holds it no more, or DROP_WAIT_S  <------------'

The fence stays until the store says that the content is gone, since until then this agent would tell the writer of a
record that it has it. It carries our mark (`salt`), so that a lost reply is found out, and only our fence is lowered.
If a single record can't be read, nothing is dropped: not knowing is no reason to delete. Both waits are longer by a
part that differs from agent to agent and from round to round, so that a fabric that was started at once does not read
at once.
"""

from __future__ import annotations

import zlib

from fabric.effects import DropContent
from fabric.records import BadRecord
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Settings
from fabric.roles.wanted import DEPLOYMENTS, IMAGES, need_of, record_path
from zk import paths
from zk.tree import (
    Children,
    Create,
    Created,
    Delete,
    Deleted,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    NodeExists,
    NoNode,
    Op,
    Outcome,
)

PREFIX = "leftover:"
DROPPED_POLL_S = 0.25
DROP_WAIT_S = 30.0
"""A disk that has not dropped a content by then has failed, or will be late: pushes of it are not kept out longer."""
FENCE_TRIES = 20
"""How often somebody else's fence is come back to, every `retry_max_s`: longer than DROP_WAIT_S."""
JITTER = 0.25
"""By how much the waits of agents differ, as a part of them."""


class Leftovers:
    """Embed it in the storage role. `salt`: another one in every agent (its guid); without it there is no jitter."""

    def __init__(self, settings: Settings, out: Outbox, salt: str = "") -> None:
        self._settings = settings
        self._out = out
        self._salt = salt
        self._mark = f"leftovers {salt}".encode()
        self._suspects: set[str] = set()
        self._sought: set[str] = set()
        """What the look that is under way asks about: all suspects, or the one that is fenced."""
        self._fenced = ""
        self._fence_czxid = 0
        self._tries = 0
        self._kind = IMAGES
        self._names: list[str] = []
        self._name = ""
        self._serial = 0
        self._round = 0
        self._step = ""
        self._note_at: float | None = None
        self._due: float | None = None
        self._poll_at: float | None = None
        self._lower_at = 0.0

    def tick(self, now: float, held: frozenset[str]) -> None:
        """`held`: what is in the store now."""
        if self._note_at is not None and now >= self._note_at:
            self._round += 1
            self._note_at = now + self._jittered(self._settings.leftovers_every_s)
            if held and not self._suspects and not self._fenced:
                self._suspects = set(held)
                self._due = now + self._jittered(self._settings.leftovers_after_s)
        if self._due is not None and now >= self._due:
            self._due = None
            self._sought = self._suspects
            self._look()
        if self._poll_at is not None and now >= self._poll_at:
            self._poll_at = None
            if self._step == "fence":
                self._raise()
            elif self._step == "drop" and self._fenced in held and now < self._lower_at:
                self._poll_at = now + DROPPED_POLL_S
            else:
                self._lower()

    def begin(self, now: float) -> None:
        """Registered. Only the first time counts."""
        if self._note_at is None:
            self._note_at = now

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._note_at, self._due, self._poll_at)

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        if token != f"{PREFIX}{self._serial}":
            return True
        if self._step == "list" and isinstance(outcome, Listed):
            self._names = list(outcome.names)
            self._next()
        elif self._step == "record" and isinstance(outcome, Got | NoNode):
            if isinstance(outcome, Got):
                self._on_record(outcome.data)
            self._next()
        elif self._step == "fence" and isinstance(outcome, Created) and outcome.stat is not None:
            self._fence_czxid = outcome.stat.czxid
            self._sought = {self._fenced}
            self._look()
        elif self._step == "fence" and isinstance(outcome, NodeExists):
            self._tries += 1
            if self._tries < FENCE_TRIES:
                self._poll_at = now + self._settings.retry_max_s
            else:
                self._next_suspect()
        elif self._step == "ours" and isinstance(outcome, Existed):
            self._on_ours(now, outcome)
        elif self._step == "whose" and isinstance(outcome, Got) and outcome.data == self._mark:
            self._ask("lower", Delete(_fence(self._fenced), outcome.stat.version))
        elif self._step in ("whose", "lower") and isinstance(outcome, Got | NoNode | Deleted):
            self._next_suspect()
        elif self._step in ("whose", "lower"):
            self._poll_at = now + self._settings.retry_max_s
        elif self._fenced:
            self._give_up()
        else:
            self._due = now + self._jittered(self._settings.leftovers_after_s)
        return True

    # --- looking for references ---------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._kind = IMAGES
        self._ask("list", Children(paths.IMAGES))

    def _next(self) -> None:
        """The next record; after the images, and only if anything is left to ask about, the deployments."""
        if self._sought and self._names:
            self._name = self._names.pop()
            self._ask("record", Get(record_path(self._kind, self._name)))
        elif self._sought and self._kind == IMAGES:
            self._kind = DEPLOYMENTS
            self._ask("list", Children(paths.DEPLOYMENTS))
        elif not self._fenced:
            self._next_suspect()
        elif self._sought:
            self._ask("ours", Exists(_fence(self._fenced)))
        else:
            self._lower()

    def _on_record(self, data: bytes) -> None:
        try:
            self._sought.discard(need_of(self._kind, self._name, data).digest)
        except BadRecord as error:
            self._out.note("error", f"{error}; leftovers are kept")
            self._sought.clear()
            self._suspects.clear()

    # --- the fence ----------------------------------------------------------------------------------------------------

    def _next_suspect(self) -> None:
        self._fenced, self._step = "", ""
        if self._suspects:
            self._fenced = min(self._suspects)
            self._suspects.discard(self._fenced)
            self._tries = 0
            self._raise()

    def _raise(self) -> None:
        self._ask("fence", Create(_fence(self._fenced), self._mark, ephemeral=True))

    def _on_ours(self, now: float, found: Existed) -> None:
        """The fence has stood all the time if it is the znode that we made: no session ended in between."""
        if found.stat is None or found.stat.czxid != self._fence_czxid:
            self._give_up()
            return
        self._out.note("info", f"image content {self._fenced} belongs to nothing any more: freeing it")
        self._out.add(DropContent(PREFIX + self._fenced, self._fenced))
        self._step = "drop"
        self._poll_at = now + DROPPED_POLL_S
        self._lower_at = now + DROP_WAIT_S

    def _give_up(self) -> None:
        """For this round; the fence may be there, though the reply was lost."""
        self._suspects.clear()
        self._lower()

    def _lower(self) -> None:
        self._ask("whose", Get(_fence(self._fenced)))

    def _ask(self, step: str, op: Op) -> None:
        self._serial += 1
        self._step = step
        self._out.tree(f"{PREFIX}{self._serial}", op)

    def _jittered(self, wait_s: float) -> float:
        part = zlib.crc32(f"{self._salt} {self._round}".encode()) / 2**32 if self._salt else 0.0
        return wait_s * (1 + JITTER * part)


def _fence(digest: str) -> str:
    return paths.drop_fence(digest.partition(":")[2])
