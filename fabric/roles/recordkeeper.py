"""One deployment's record in the hands of one coordinator: claim it, write it under the claim, close it.

Theory of operation. A coordinator *claims* a deployment in one transaction: create the ephemeral owner znode and touch
the record. All operations of a transaction share one zxid: that is the **epoch**. Touching the record matters:
it moves the record's version on, so a former owner that still believes in itself fails with BadVersion at its
next write. That is the fence on the side of ZooKeeper; agents have their own (`compute`).

Every write names the version it replaces. BadVersion means that a user changed the desired state (the owner znode is
still ours: adopt the change and reconcile again) or that somebody else owns the deployment now (leave it). A reply that
was lost is no case of its own: read the record; it says whether the write happened.

Closing is one transaction too: the final record, the trace, and the end of owner and open marker. A request costs
four write transactions: create (API), claim, plan, close.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric.messages import RecordSeen
from fabric.records import BadRecord, Deployment, Owner, State, decode, encode
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity
from zk import paths
from zk.tree import (
    BadVersion,
    Check,
    ConnectionLost,
    Create,
    Delete,
    Done,
    Existed,
    Exists,
    Get,
    Got,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    NotEmpty,
    Op,
    Outcome,
    Overloaded,
    Refused,
    SessionExpired,
    Set,
    Stat,
    TreeError,
    Written,
)

RETRY_S = 0.3
MAX_TRIES = 200

_Then = Callable[[float, Outcome], None]


class RecordKeeper:
    """`claimed(now)`, `changed(now)` (a user changed the record; `record` is the new one), `lost(now, why)` (ours no
    more, or never was) and `elsewhere(address)` (another's claim was found) are called as it happens, `wrote(seen,
    closed)` after each write that was answered; `write` and `close` call what they were given when it is done."""

    def __init__(
        self,
        deployment: str,
        identity: Identity,
        session: int,
        out: Outbox,
        claimed: Callable[[float], None],
        changed: Callable[[float], None],
        lost: Callable[[float, str], None],
        elsewhere: Callable[[str], None],
        wrote: Callable[[RecordSeen, bool], None],
    ) -> None:
        self.deployment = deployment
        self.epoch = 0
        self.ticket = 0
        """The record's czxid: the deployment's seniority among those that compete."""
        self.writes = 0
        self.reads = 0
        self._identity = identity
        self._session = session
        self._out = out
        self._claimed = claimed
        self._changed = changed
        self._lost = lost
        self._elsewhere = elsewhere
        self._wrote = wrote
        self._record: Deployment | None = None
        self._version = -1
        self._path = paths.deployment(deployment)
        self._owner = paths.owner(deployment)
        self._serial = 0
        self._then: _Then | None = None
        self._again: tuple[float, Callable[[float], None]] | None = None
        self._tries = 0

    @property
    def prefix(self) -> str:
        return f"dep:{self.deployment}:"

    @property
    def record(self) -> Deployment:
        assert self._record is not None, "no record before `claimed`"
        return self._record

    def on_tree(self, now: float, token: str, outcome: Outcome) -> None:
        if token != f"{self.prefix}{self._serial}" or self._then is None:
            return
        then, self._then = self._then, None
        then(now, outcome)

    def tick(self, now: float) -> None:
        if self._again is not None and now >= self._again[0]:
            again, self._again = self._again[1], None
            again(now)

    @property
    def next_deadline(self) -> float | None:
        return self._again[0] if self._again else None

    # --- claim ---------------------------------------------------------------------------------------------------

    def claim(self, now: float, seen: RecordSeen | None = None) -> None:
        """`seen`: the record as somebody wrote it. If it has changed since, the claim fails, and it is read."""
        if seen is None:
            self._ask(Get(self._path), self._read_to_claim)
        else:
            stat = Stat(seen.czxid, seen.mzxid, seen.version, 0, 0, seen.ctime_ms, seen.mtime_ms)
            self._read_to_claim(now, Got(seen.data, stat))

    def _read_to_claim(self, now: float, outcome: Outcome, sure: bool = False) -> None:
        if isinstance(outcome, NoNode) and not sure:
            # Whoever told us of it may be ahead of the server that we read from. A write is answered when that server
            # has caught up: look again then.
            self._ask(Multi((Check(paths.open_marker(self.deployment), -1),)), self._caught_up)
        elif isinstance(outcome, NoNode):
            # a marker without a record: somebody removed the record by hand; nothing is left to coordinate
            self._ask(Delete(paths.open_marker(self.deployment)), lambda at, _: self._lost(at, "it has no record"))
        elif isinstance(outcome, Got):
            if not self._take_in(now, outcome):
                return
            if self.record.final:
                # With the version: a change that a user makes meanwhile must not lose its marker.
                unmark = Multi(
                    (Check(self._path, outcome.stat.version), Delete(paths.open_marker(self.deployment)))
                )
                self._ask(unmark, lambda at, _: self._lost(at, "it is settled"))
                return
            state: State = "deleting" if self.record.gone else "placing"
            self._record = msgspec.structs.replace(self.record, state=state, updated_ms=self._out.wall_ms)
            self._take()
        else:
            self._retry(now, outcome, self.claim)

    def _caught_up(self, now: float, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            self._ask(Get(self._path), lambda at, found: self._read_to_claim(at, found, sure=True))
        elif isinstance(outcome, MultiFailed):
            self._lost(now, "it has no record")
        else:
            self._retry(now, outcome, self.claim)

    def renew(self, now: float) -> None:
        """Claim anew, in the place of our own claim: `claimed` is called again, under a later epoch."""
        self._record = msgspec.structs.replace(self.record, updated_ms=self._out.wall_ms)
        self._take(Delete(self._owner))

    def _take(self, *first: Delete) -> None:
        owner = Owner(node=self._identity.node, guid=self._identity.guid, address=self._identity.address)
        claim = Create(self._owner, encode(owner), ephemeral=True)
        self._ask(Multi((*first, claim, Set(self._path, encode(self.record), self._version))), self._claim_done)

    def _claim_done(self, now: float, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            written = outcome.results[-1]
            assert isinstance(written, Written)
            self.epoch, self._version = written.stat.mzxid, written.stat.version
            self._tries = 0
            self._wrote(_seen(encode(self.record), written.stat), False)
            self._claimed(now)
        elif isinstance(outcome, MultiFailed) and isinstance(outcome.cause, NodeExists):
            self._ask(Exists(self._owner), self._whose)
        elif isinstance(outcome, MultiFailed) and isinstance(outcome.cause, NoNode) and self._tries > 3:
            self._lost(now, "it was closed meanwhile")
        else:
            self._retry(now, outcome, self.claim)

    def _whose(self, now: float, outcome: Outcome) -> None:
        if isinstance(outcome, Existed) and outcome.stat is not None and outcome.stat.owner == self._session:
            # Our own claim, whose reply was lost or which was dropped. Its epoch may have been used: take a fresh one.
            self._take(Delete(self._owner))
        elif isinstance(outcome, Existed) and outcome.stat is not None:
            self._ask(Get(self._owner), self._owned)
        else:
            self._retry(now, outcome, self.claim)

    def _owned(self, now: float, outcome: Outcome) -> None:
        if isinstance(outcome, Got):
            try:
                self._elsewhere(decode(outcome.data, Owner, self._owner).address)
            except BadRecord as error:
                self._out.note("warning", str(error))
        self._lost(now, "another coordinator owns it")

    # --- write and close -----------------------------------------------------------------------------------------

    def write(self, now: float, record: Deployment, then: Callable[[float], None]) -> None:
        """Replace the record; `then` when it is in ZooKeeper."""
        self._commit(now, record, Set(self._path, encode(record), self._version), then)

    def close(self, now: float, record: Deployment, trace: bytes, then: Callable[[float], None]) -> None:
        """The final record and the trace; the deployment has no owner any more."""
        ops = (
            Set(self._path, encode(record), self._version),
            Set(paths.trace(self.deployment), trace),
            Delete(self._owner),
            Delete(paths.open_marker(self.deployment)),
        )
        self._commit(now, record, Multi(ops), then)

    def _commit(self, now: float, record: Deployment, op: Set | Multi, then: Callable[[float], None]) -> None:
        def done(at: float, outcome: Outcome) -> None:
            cause = outcome.cause if isinstance(outcome, MultiFailed) else outcome
            if isinstance(outcome, Written | Done):
                written = outcome if isinstance(outcome, Written) else outcome.results[0]
                assert isinstance(written, Written)
                self._version, self._record = written.stat.version, record
                self._tries = 0
                self._wrote(_seen(encode(record), written.stat), isinstance(op, Multi))
                then(at)
            elif isinstance(op, Multi) and isinstance(outcome, MultiFailed) and _dispensable(op, outcome):
                # no trace znode, no marker, or something strange below the marker: closing does not depend on them
                kept = tuple(one for index, one in enumerate(op.ops) if index != outcome.index)
                self._commit(at, record, Multi(kept), then)
            elif isinstance(cause, BadVersion | NoNode):
                self._look(at, record, then, retry=None)
            else:
                # what is known of the outcome is nothing: look, and write again only what did not happen
                self._retry(at, cause, lambda later: self._look(later, record, then, retry=op))

        self._ask(op, done)

    def _look(
        self, now: float, wanted: Deployment, then: Callable[[float], None], retry: Set | Multi | None
    ) -> None:
        """After a write that failed or got no reply: did it happen, did a user write, or does another own it?"""

        def read(at: float, outcome: Outcome) -> None:
            if isinstance(outcome, NoNode):
                self._lost(at, "its record was removed")
            elif not isinstance(outcome, Got):
                self._retry(at, outcome, lambda later: self._look(later, wanted, then, retry))
            else:
                unchanged = outcome.stat.version == self._version
                if not self._take_in(at, outcome):
                    return
                if self.record == wanted:
                    then(at)
                elif unchanged and retry is not None:
                    self._commit(at, wanted, retry, then)
                else:
                    self._ask(Exists(self._owner), owned)

        def owned(at: float, outcome: Outcome) -> None:
            if isinstance(outcome, Existed) and outcome.stat is not None and outcome.stat.czxid == self.epoch:
                self._changed(at)
            elif isinstance(outcome, Existed):
                self._lost(at, "another coordinator owns it")
            else:
                self._retry(at, outcome, lambda later: self._look(later, wanted, then, retry))

        self._ask(Get(self._path), read)

    # --- a user's change, and the end --------------------------------------------------------------------------------

    def look(self) -> None:
        """Somebody says that the record may have changed: if nothing is being written, see (a write would notice)."""
        if self._then is None and self._again is None and self.epoch:
            self._ask(Get(self._path), self._looked)

    def _looked(self, now: float, outcome: Outcome) -> None:
        if isinstance(outcome, TreeError) and not isinstance(outcome, NoNode):
            self._look_again(now)
            return
        if not isinstance(outcome, Got) or outcome.stat.version == self._version:
            return
        found = outcome

        def owned(at: float, outcome: Outcome) -> None:
            if isinstance(outcome, Existed) and outcome.stat is not None and outcome.stat.czxid == self.epoch:
                if self._take_in(at, found):
                    self._changed(at)
            elif isinstance(outcome, Existed):
                self._lost(at, "another coordinator owns it")
            else:
                self._look_again(at)

        # Before its version is adopted: if another claim has moved it on, that version is the fence against us.
        self._ask(Exists(self._owner), owned)

    def _look_again(self, now: float) -> None:
        self._again = (now + RETRY_S, lambda later: self.look())

    def abandon(self, now: float, why: str) -> None:
        """Coordinate no more, in a session that lives on: what says that we do must go, so that another can claim."""
        self._tries += 1

        def done(at: float, outcome: Outcome) -> None:
            if isinstance(outcome, ConnectionLost | Overloaded) and self._tries <= MAX_TRIES:
                self._again = (at + RETRY_S, lambda later: self.abandon(later, why))
            else:
                self._lost(at, why)

        def whose(at: float, outcome: Outcome) -> None:
            if isinstance(outcome, Existed) and outcome.stat is not None and outcome.stat.owner == self._session:
                self._ask(Delete(self._owner), done)
            else:
                done(at, outcome)

        self._again = None
        self._ask(Exists(self._owner), whose)

    # --- helpers -------------------------------------------------------------------------------------------------

    def _take_in(self, now: float, found: Got) -> bool:
        try:
            self._record = decode(found.data, Deployment, self._path)
        except BadRecord as error:
            self._out.note("error", f"{error}; nobody can coordinate it")
            self._lost(now, str(error))
            return False
        self._version, self.ticket = found.stat.version, found.stat.czxid
        return True

    def _ask(self, op: Op, then: _Then) -> None:
        self._serial += 1
        self._then = then
        if isinstance(op, Set | Multi | Delete):
            self.writes += 1
        else:
            self.reads += 1
        self._out.tree(f"{self.prefix}{self._serial}", op)

    def _retry(self, now: float, outcome: Outcome, again: Callable[[float], None]) -> None:
        self._tries += 1
        if isinstance(outcome, SessionExpired):
            self._lost(now, "the session is over")
        elif self._tries > MAX_TRIES or isinstance(outcome, Refused):
            self._out.note("error", f"{self.deployment}: giving up on its record: {outcome}")
            self.abandon(now, str(outcome) if isinstance(outcome, TreeError) else "too many tries")
        else:
            self._again = (now + RETRY_S, again)


def _seen(data: bytes, stat: Stat) -> RecordSeen:
    return RecordSeen(data, stat.version, stat.czxid, stat.mzxid, stat.ctime_ms, stat.mtime_ms)


def _dispensable(op: Multi, failed: MultiFailed) -> bool:
    """Whether a closing transaction can do without the operation that failed."""
    one = op.ops[failed.index]
    if isinstance(one, Set):
        return isinstance(failed.cause, NoNode) and one.path.endswith("/trace")
    return (
        isinstance(one, Delete) and isinstance(failed.cause, NoNode | NotEmpty) and not one.path.endswith("/owner")
    )
