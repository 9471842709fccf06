"""Being here: one ephemeral member znode under the node's layer and rack, and one under the node id alone.

Theory of operation. In each new session the member makes its rack's znode if it is missing, comes home (`Home`, of a
compute agent: is what runs here still this node's?), then creates its own two znodes, `/members/{layer}/{rack}/{node}`
and `/nodes/{node}`, with the same record, in one transaction. The second is what makes a node id one agent's though
racks and layers differ. The same transaction checks that what was read at home still holds. Last it learns the zxid of
its registration, by which it can tell older claims from newer ones.

        CONNECTED (new session) -> make rack -> come home -> create both -> learn zxid -> PRESENT
                                                    |BadVersion, NoNode on a check: come home again
                                                    |NodeExists, on either: whose is it?
                                                    |- this session's (the reply was lost)       -> PRESENT
                                                    |- an earlier start of this agent (its guid
                                                    |  is in our journal): delete both of its
                                                    |  (they may be in another rack), create anew
                                                    '- another agent's: watch it for 1.5 session time-outs
                                                       (it may be a session about to end), then Quit

So a restarted agent is back at once, and of two agents with one node id the second is refused, with the reason. Leaving
deletes both. LOST drops everything; the next CONNECTED registers anew. While SUSPENDED nothing is done.

A compute node that has registered also deletes the note that it was lost (`losses`), if there is one: its rack's leader
does so too, but may be away itself, and by a note that outlives the absence it tells of the next one would be taken for
the same, and the node be replaced before its time. Whatever note there is while the node is registered is such a one.
"""

from __future__ import annotations

from typing import Protocol

from fabric.effects import Quit
from fabric.messages import PROTOCOL
from fabric.records import BadRecord, Member, decode, encode
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import (
    Check,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Existed,
    Exists,
    Get,
    Got,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    Op,
    Outcome,
    SessionChanged,
    SessionState,
)

PREFIX = "member:"
NOTE = f"{PREFIX}note"


class Home(Protocol):
    """What must be so before this node may be counted as present."""

    def arrive(self, now: float, changed: str = "") -> None:
        """Begin to see to it; `changed`: again, as what was checked at this path is not so any more."""

    @property
    def checks(self) -> tuple[Check, ...] | None:
        """What to check in the moment of registration; None: not ready yet."""


class Membership:
    """Embed it: pass it every SessionChanged, WatchFired and TreeDone, and call `go_on` after every input. `present`
    says whether the znode is ours, `registered` under which zxid."""

    def __init__(self, identity: Identity, settings: Settings, out: Outbox, home: Home | None = None) -> None:
        self._home = home
        self._identity = identity
        self._settings = settings
        self._out = out
        self._path = paths.member(identity.layer, identity.rack, identity.node)
        self._paths = (self._path, paths.node(identity.node))
        self._contested = self._path
        self._old: Delete | None = None
        """What an earlier start of ours left at `_contested`, while it is being deleted."""
        self._session = 0
        self._connected = False
        self._serial = 0
        self._step = ""
        self._refuse_at: float | None = None
        self._session_s = settings.session_timeout_s
        """As it was granted: whoever died lately had such a one too."""
        self._retry_at: float | None = None
        self._delay_s = settings.retry_min_s
        self._other = ""
        self._at_the_door = False
        self.present = False
        self.registered = 0
        self.took_over = False
        """An earlier start of ours was registered until a moment before, so the list of members looks as it did."""
        self.left = False
        """After `leave`: nothing of this session's membership is in ZooKeeper any more, as far as can be known."""

    def on_session(self, event: SessionChanged) -> None:
        self._connected = event.state is SessionState.CONNECTED
        if self._connected:
            self._session_s = event.timeout_s
        if event.state is SessionState.LOST:
            self._session = 0
            self.present = False
            self._at_the_door = False
            self._step = ""
            self._refuse_at = self._retry_at = None
        elif self._connected and (event.session_id != self._session or not self.present):
            self._session = event.session_id
            self.present = False
            self._at_the_door = False
            self._delay_s = self._settings.retry_min_s
            self._ask("rack", Create(paths.rack_members(self._identity.layer, self._identity.rack)))

    def on_watch(self, path: str) -> None:
        if path in self._paths and self._connected and not self.present and not self._at_the_door:
            self._create()

    def go_on(self) -> None:
        """Come home meanwhile? Then register."""
        if self._at_the_door and self._connected and (self._home is None or self._home.checks is not None):
            self._at_the_door = False
            self._create()

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        if token == f"{PREFIX}leave":
            self.left = True
            return True
        if token == NOTE and isinstance(outcome, Existed) and outcome.stat is not None and self.present:
            self._out.tree(f"{NOTE} gone", Delete(paths.lost(self._identity.node)))
        if token != f"{PREFIX}{self._serial}" or not self._connected:
            return True
        step, self._step = self._step, ""
        conflict = outcome.cause if isinstance(outcome, MultiFailed) else None
        ready = (
            (step == "whose" and isinstance(outcome, NoNode))
            or (step == "tidy" and isinstance(outcome, Done))
            or (step == "tidy one" and isinstance(outcome, Deleted | NoNode))
            or (step == "watch" and isinstance(outcome, Existed) and outcome.stat is None)
        )
        if ready:
            self._create()
        elif step == "rack" and isinstance(outcome, Created | NodeExists):
            self._come_home(now)
        elif step == "create" and isinstance(outcome, Done):
            self._ask("learn", Exists(self._path))
        elif step == "create" and isinstance(outcome, MultiFailed) and outcome.index >= len(self._paths):
            self._come_home(now, outcome.path)
        elif step == "learn" and isinstance(outcome, Existed) and outcome.stat is not None:
            self._arrived(outcome.stat.czxid)
        elif step == "create" and isinstance(outcome, MultiFailed) and isinstance(conflict, NodeExists):
            self._contested = self._paths[outcome.index]
            self._ask("whose", Get(self._contested))
        elif step == "whose" and isinstance(outcome, Got):
            self._judge(now, outcome)
        elif step == "tidy" and isinstance(conflict, NoNode) and self._old is not None:
            self._ask("tidy one", self._old)  # the two are gone, or only one was there
        elif not (step == "watch" and isinstance(outcome, Existed)):
            self._retry_at = now + self._delay_s
            self._delay_s = min(self._delay_s * 2, self._settings.retry_max_s)
        return True

    def tick(self, now: float) -> None:
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            if self._connected and not self.present:
                self._ask("rack", Create(paths.rack_members(self._identity.layer, self._identity.rack)))
        if self._refuse_at is not None and now >= self._refuse_at and not self.present:
            self._refuse_at = None
            self._out.add(
                Quit(
                    f"node id {self._identity.node!r} in rack {self._identity.rack!r} is taken: {self._other}. "
                    "A node id is for one agent in all racks and layers: stop that one, or give this one another."
                )
            )

    def leave(self) -> None:
        """Unregister at once instead of at the end of the session."""
        self._at_the_door = False
        self._refuse_at = self._retry_at = None
        if self.present and self._connected:
            self.present = False
            self._out.tree(f"{PREFIX}leave", Multi(tuple(Delete(path) for path in self._paths)))
        else:
            self.left = True

    @property
    def next_deadline(self) -> float | None:
        return earliest(self._retry_at, self._refuse_at)

    def _come_home(self, now: float, changed: str = "") -> None:
        self._at_the_door = True
        if self._home is not None:
            self._home.arrive(now, changed)

    def _judge(self, now: float, found: Got) -> None:
        here = Delete(self._contested, found.stat.version)
        if found.stat.owner == self._session:
            if self._contested == self._path:
                self._arrived(found.stat.czxid)
            else:  # they come and go together, so somebody removed the other one by hand
                self._ask("tidy one", here)
            return
        try:
            other = decode(found.data, Member, self._contested)
        except BadRecord as error:
            self._other = str(error)
        else:
            self._other = (
                f"registered in rack {other.rack!r} ({other.layer}) by {other.host} pid {other.pid} at {other.address}"
            )
            if other.guid in self._identity.previous:
                both = {paths.member(other.layer, other.rack, other.node), paths.node(other.node)}
                self._old = here
                # No record is ever rewritten, so the other's version is 0; it is its while this one is.
                rest = (Delete(path, 0) for path in sorted(both - {self._contested}))
                self._ask("tidy", Multi((here, *rest)))
                return
        if self._refuse_at is None:
            wait_s = self._session_s * 1.5
            self._refuse_at = now + wait_s
            self._out.note("warning", f"node id is taken ({self._other}); waiting {wait_s:.0f} s for it to go")
        self._ask("watch", Exists(self._contested, watch=True))

    def _create(self) -> None:
        one = self._identity
        record = Member(
            node=one.node,
            rack=one.rack,
            layer=one.layer,
            guid=one.guid,
            address=one.address,
            data_endpoint=one.data_endpoint,
            total=one.total,
            driver=one.driver,
            protocol=PROTOCOL,
            host=one.host,
            pid=one.pid,
            managent=one.managent,
        )
        data = encode(record)
        checks = self._home.checks if self._home is not None else ()
        if checks is None:  # something has changed since: it was ready a moment ago
            self._at_the_door = True
            return
        self._ask("create", Multi((*(Create(path, data, ephemeral=True) for path in self._paths), *checks)))

    def _arrived(self, registered: int) -> None:
        self.present = True
        self.registered = registered
        self.took_over, self._old = self._old is not None, None
        self._refuse_at = None
        self._out.note("info", f"registered at {self._path}")
        if self._identity.layer == "compute":
            self._out.tree(NOTE, Exists(paths.lost(self._identity.node)))

    def _ask(self, step: str, op: Op) -> None:
        self._serial += 1
        self._step = step
        self._out.tree(f"{PREFIX}{self._serial}", op)
