"""An agent: the roles of one node, composed. The runtime and the simulator know only this class.

        input -> the roles it concerns, in a fixed order -> effects, in order

Every agent is a member (`member`) and stands for leader of its rack (`zk.election`). A compute agent has a node's work
(`compute`), a storage agent has a store (`storage`). Who is elected also leads its rack (`rack`) and does what leaders
of its layer do: compute leaders coordinate deployments (`leading`), storage leaders find holders (`storage`).

Sessions. SUSPENDED: leadership is kept but nothing is awarded. LOST: every role that ZooKeeper gave is dropped, then
the agent registers anew; instances run on. A leader whose session is SUSPENDED for two thirds of the session timeout
counts itself out without waiting for LOST, which may come only when a server answers again: someone else may lead.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Protocol

from fabric.effects import (
    Adopted,
    CallTree,
    ContentDropped,
    Effect,
    FetchProgress,
    HoldersWanted,
    ImageFailed,
    ImageReady,
    Input,
    InstanceExited,
    InstanceFailed,
    InstanceGone,
    InstanceStarted,
    Leave,
    LogFetched,
    PeerLost,
    Quit,
    Received,
    StoreChanged,
    TreeDone,
)
from fabric.messages import (
    AnyMessage,
    FindHolders,
    Heartbeat,
    Holders,
    HoldersChanged,
    LeaderHello,
    NodeAnswer,
    NodeCall,
    NodeReport,
    PickStores,
    RackAnswer,
    RackCall,
    RackStatusCall,
    Submit,
)
from fabric.records import Leader, encode
from fabric.roles.beats import Beats
from fabric.roles.compute import Compute
from fabric.roles.leaders import coarse
from fabric.roles.leading import Leading
from fabric.roles.member import Membership
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.rack import RackLeader
from fabric.roles.settings import Identity, Settings
from fabric.roles.storage import Storage, StorageLeading
from zk import paths
from zk.election import TOKEN_PREFIX, Candidacy, Request
from zk.tree import Existed, Exists, Get, Outcome, SessionChanged, SessionState, WatchFired

CORDON = "cordon:"
LEADER = "leader:"
"""Token of the read of who leads the own rack."""
LEAVE_WAIT_S = 3.0


class _Timed(Protocol):
    @property
    def next_deadline(self) -> float | None: ...


class Agent:
    """One agent. `journal` is what its journal held at start."""

    def __init__(
        self, identity: Identity, settings: Settings, rng: random.Random, journal: Mapping[str, bytes]
    ) -> None:
        self.identity = identity
        self.settings = settings
        self._rng = rng
        self._out = Outbox()
        self._beats = Beats(identity, rng, self._out)
        self._candidacy = Candidacy(identity.layer, identity.rack, identity.guid, self._leader_record(0))
        self._rack = RackLeader(identity, settings, self._out)
        compute = identity.layer == "compute"
        self._compute = Compute(identity, settings, rng, self._out, self._beats, journal) if compute else None
        home = self._compute.verifier if self._compute is not None else None
        self._member = Membership(identity, settings, self._out, home)
        self._storage = None if compute else Storage(identity, settings, self._out, self._beats)
        self._leading = Leading(identity, settings, rng, self._out, self._rack) if compute else None
        self._storage_leading = None if compute else StorageLeading(identity, settings, rng, self._out)
        worker = self._compute or self._storage
        assert worker is not None
        self._beats.worker = worker
        if self._storage_leading is not None:
            self._rack.on_vitals = self._storage_leading.repair.on_vitals
        everybody = (self._compute, self._storage, self._leading, self._storage_leading)
        self._layers = [role for role in everybody if role is not None]
        self._timed: tuple[_Timed, ...] = (self._member, self._candidacy, self._rack, self._beats, *self._layers)
        self._session = 0
        self._session_s = settings.session_timeout_s
        """As it was granted."""
        self._out_at: float | None = None
        """When to count itself out, should the session stay SUSPENDED."""
        self._was_present = False
        self._cordon_at: float | None = None
        self._hint_at: float | None = None
        self._hinted = 0
        self._leaving_at: float | None = None
        self._standing = False
        self._gone = False

    # --- what the world and status pages read -----------------------------------------------------------------------

    @property
    def present(self) -> bool:
        return self._member.present

    @property
    def leads(self) -> bool:
        return self._rack.leads

    @property
    def cordoned(self) -> bool:
        return self._compute.cordoned if self._compute else False

    # --- the loop ---------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Effect]:
        """Before any input. What the journal holds was taken over by the constructor."""
        if self._compute is not None:
            self._compute.touch.lost(now)
        return self._out.take()

    def handle(self, now: float, wall_ms: int, event: Input) -> list[Effect]:
        """One input; returns what to do about it, in order."""
        self._out.wall_ms = wall_ms
        self._route(now, event)
        self._after(now)
        return self._out.take()

    def tick(self, now: float, wall_ms: int) -> list[Effect]:
        """`next_deadline` has passed."""
        self._out.wall_ms = wall_ms
        if self._out_at is not None and now >= self._out_at:
            self._out_at = None
            self._count_out()
        if self._leaving_at is not None and now >= self._leaving_at:
            self._quit()
            return self._out.take()
        self._member.tick(now)
        due = self._candidacy.next_deadline
        if due is not None and now >= due:
            self._submit(self._candidacy.on_tick(now))
        self._rack.tick(now)
        if self._cordon_at is not None and now >= self._cordon_at:
            self._cordon_at = None
            self._ask_cordon()
        for role in self._layers:
            role.tick(now)
        self._after(now)
        return self._out.take()

    def next_deadline(self) -> float | None:
        first = earliest(self._out_at, None if self._gone else self._leaving_at, self._hint_at, self._cordon_at)
        for role in self._timed:
            due = role.next_deadline
            if due is not None and (first is None or due < first):
                first = due
        return first

    def _route(self, now: float, event: Input) -> None:
        if isinstance(event, Received):
            self._on_message(now, event.sender, event.message)
        elif isinstance(event, TreeDone):
            self._on_tree(now, event)
        elif isinstance(event, WatchFired):
            self._on_watch(event.path)
        elif isinstance(event, SessionChanged):
            self._on_session(now, event)
        elif isinstance(event, PeerLost):
            self._rack.on_lost(now, event.endpoint)
        elif isinstance(event, Leave):
            self._leave(now)
        elif self._compute is not None:
            self._on_compute(now, event, self._compute)
        elif self._storage is not None:
            self._on_storage(now, event, self._storage)

    def _quit(self) -> None:
        if not self._gone:
            self._gone = True
            self._out.add(Quit(""))

    def _after(self, now: float) -> None:
        """What follows from any input: leadership begun or ended, news told."""
        if self._leaving_at is not None and self._member.left and self._candidacy.resigned:
            self._quit()
        self._member.go_on()
        if self._member.present and not self._was_present:
            self._registered(now)
        self._was_present = self._member.present
        epoch = self._candidacy.epoch
        if epoch is None:
            if self._rack.leads:
                self._drop_leadership("another agent leads", session_lives=True)
        elif not self._rack.leads and self._candidacy.may_award and self._leaving_at is None:
            self._begin_leadership(now, epoch)
        if self._compute is not None:
            self._compute.instances.flush(now)
        self._hint_load(now)
        self._beats.beat(now)

    # --- ZooKeeper --------------------------------------------------------------------------------------------------

    def _on_session(self, now: float, event: SessionChanged) -> None:
        self._member.on_session(event)
        if self._leading is not None:
            self._leading.on_session(event)
        if self._storage_leading is not None:
            self._storage_leading.on_session(now, event)
        if event.state is SessionState.CONNECTED:
            self._session, self._session_s = event.session_id, event.timeout_s
            self._out_at = None
            if self._compute is not None and self._member.present:  # it was counted as present all the time
                self._compute.touch.found()
                self._compute.touch.resume(now)
            if self._standing:
                self._submit(self._candidacy.on_session(event))
            if self._rack.leads:
                self._rack.on_connected()
            if self._leading is not None:
                self._leading.release(now)
        elif event.state is SessionState.SUSPENDED:
            self._out_at = now + self._session_s * 2 / 3
            if self._compute is not None:
                self._compute.touch.lost(now)
            self._submit(self._candidacy.on_session(event))
            if self._leading is not None:
                self._leading.hold()
        else:
            self._out_at = None
            self._standing = False
            if self._compute is not None:
                self._compute.touch.lost(now)
                self._compute.departed(now)
            self._submit(self._candidacy.on_session(event))
            self._drop_leadership("the session is lost")

    def _registered(self, now: float) -> None:
        """Present in ZooKeeper: now stand for leader, and check what happened while we were away."""
        if not self._standing:
            self._standing = True
            self._submit(self._candidacy.on_session(SessionChanged(SessionState.CONNECTED, self._session)))
        if self._member.took_over:  # a leader that sees the same names may not notice that it is another process
            self._out.tree(LEADER, Get(paths.leader(self.identity.layer, self.identity.rack)))
        if self._compute is not None:
            self._ask_cordon()
            self._compute.arrived(now, self._member.registered)
        elif self._storage is not None:
            self._storage.registered(now)

    def _on_tree(self, now: float, event: TreeDone) -> None:
        token, outcome = event.token, event.outcome
        if token.startswith(TOKEN_PREFIX):
            self._submit(self._candidacy.on_outcome(token, outcome))
        elif token == CORDON:
            self._on_cordon(now, outcome)
        elif token == LEADER:
            self._beats.introduce(outcome)
        elif self._member.on_tree(now, token, outcome):
            return
        elif self._rack.on_tree(now, token, outcome):
            if self._storage_leading is not None and self._rack.ready:
                self._storage_leading.repair.on_members(now, self._rack.nodes)
        elif self._leading is not None and self._leading.on_tree(now, token, outcome):
            return
        elif self._storage_leading is not None and self._storage_leading.on_tree(now, token, outcome):
            return
        elif self._storage is not None and self._storage.leftovers.on_tree(now, token, outcome):
            return
        elif self._compute is not None and not self._compute.instances.finder.on_tree(now, token, outcome):
            self._compute.verifier.on_tree(now, token, outcome)

    def _ask_cordon(self) -> None:
        self._out.tree(CORDON, Exists(paths.cordon(self.identity.node), watch=True))

    def _on_cordon(self, now: float, outcome: Outcome) -> None:
        if isinstance(outcome, Existed) and self._compute is not None:
            self._compute.cordoned = outcome.stat is not None
        else:
            self._cordon_at = now + self.settings.retry_max_s

    def _on_watch(self, path: str) -> None:
        self._member.on_watch(path)
        self._submit(self._candidacy.on_watch(path))
        self._rack.on_watch(path)
        if self._leading is not None:
            self._leading.on_watch(path)
        if self._storage_leading is not None:
            self._storage_leading.directory.on_watch(path)
        if self._compute is not None and path == paths.cordon(self.identity.node):
            self._ask_cordon()

    def _submit(self, requests: list[Request]) -> None:
        for request in requests:
            self._out.add(CallTree(request.token, request.op))

    # --- leadership -------------------------------------------------------------------------------------------------

    def _leader_record(self, load: int) -> bytes:
        one = self.identity
        return encode(Leader(node=one.node, rack=one.rack, guid=one.guid, address=one.address, load=load))

    def _begin_leadership(self, now: float, epoch: int) -> None:
        self._out.note("info", f"leads rack {self.identity.rack} ({self.identity.layer}), epoch {epoch}")
        self._rack.begin(now, epoch)
        if self._leading is not None:
            self._leading.begin(now, self._session)
            self._leading.release(now)
        if self._storage_leading is not None:
            self._storage_leading.begin(now)

    def _count_out(self) -> None:
        """The session has been SUSPENDED for so long that somebody else may lead the rack. The deployments in charge
        stay, on hold: their owner znodes are gone only when the session is, and then LOST says so."""
        if self._rack.leads:
            self._out.note("warning", f"counts itself out as leader of rack {self.identity.rack}: out of touch")
        self._rack.end()
        if self._storage_leading is not None:
            self._storage_leading.end()

    def _drop_leadership(self, why: str, session_lives: bool = False) -> None:
        if self._rack.leads:
            self._out.note("warning", f"leads rack {self.identity.rack} ({self.identity.layer}) no more: {why}")
        self._rack.end()
        if self._leading is not None:
            self._leading.end(session_lives)
        if self._storage_leading is not None:
            self._storage_leading.end()
        self._hint_at = None

    def _hint_load(self, now: float) -> None:
        """The load hint in the leader znode, rewritten when it has changed, rarely."""
        leading = self._leading or self._storage_leading
        if leading is None or not self._rack.leads:
            self._hint_at = None
            return
        load = coarse(leading.load)
        if self._hint_at is None and load != self._hinted:
            self._hint_at = now + self.settings.load_hint_interval_s
        elif self._hint_at is not None and now >= self._hint_at:
            self._hint_at = None
            if load != self._hinted:
                self._hinted = load
                self._submit(self._candidacy.update(self._leader_record(load)))

    def _leave(self, now: float) -> None:
        """Give up leadership and membership; after LEAVE_WAIT_S the end of the session has to do the rest."""
        self._leaving_at = now + LEAVE_WAIT_S
        self._beats.stop()
        self._drop_leadership("leaving", session_lives=True)
        self._submit(self._candidacy.resign())
        self._member.leave()

    # --- messages ---------------------------------------------------------------------------------------------------

    def _on_message(self, now: float, sender: str, message: AnyMessage) -> None:
        if isinstance(message, NodeCall):
            if self._compute is not None:
                self._compute.command(now, sender, message.call, message.command)
            elif self._storage is not None:
                self._storage.command(now, sender, message.call, message.command)
        elif isinstance(message, NodeAnswer):
            self._rack.on_answer(now, message)
        elif isinstance(message, RackCall):
            self._rack.on_call(now, sender, message)
        elif isinstance(message, RackStatusCall):
            repair = self._storage_leading.repair if self._storage_leading is not None else None
            counts = (repair.lacking, repair.lost) if repair is not None else (0, 0)
            self._rack.on_status_call(now, sender, message, *counts)
        elif isinstance(message, Heartbeat):
            self._rack.on_heartbeat(now, message)
        elif isinstance(message, LeaderHello):
            self._beats.on_hello(now, sender, message)
        elif isinstance(message, RackAnswer):
            leading = self._leading or self._storage_leading
            if leading is not None:
                leading.calls.on_answer(now, message)
        elif self._leading is not None and isinstance(message, Submit):
            self._leading.on_submit(now, sender, message)
        elif self._leading is not None and isinstance(message, NodeReport):
            self._leading.on_report(now, message)
        elif self._compute is not None and isinstance(message, Holders):
            self._compute.instances.finder.on_holders(now, message)
        elif self._storage_leading is not None and isinstance(message, FindHolders | PickStores):
            self._storage_leading.on_ask(now, sender, message)
        elif self._storage_leading is not None and isinstance(message, HoldersChanged):
            self._storage_leading.repair.on_changed(now)

    # --- the layer's own inputs -------------------------------------------------------------------------------------

    @staticmethod
    def _on_compute(now: float, event: Input, compute: Compute) -> None:
        instances = compute.instances
        if isinstance(event, InstanceStarted):
            instances.on_started(now, event)
        elif isinstance(event, InstanceFailed):
            instances.on_failed(now, event)
        elif isinstance(event, InstanceExited):
            instances.on_exited(now, event)
        elif isinstance(event, InstanceGone):
            instances.on_gone(now, event)
        elif isinstance(event, Adopted):
            instances.on_adopted(now, event)
        elif isinstance(event, ImageReady):
            instances.on_ready(now, event)
        elif isinstance(event, ImageFailed):
            instances.on_image_failed(now, event)
        elif isinstance(event, HoldersWanted):
            instances.on_holders_wanted(now, event)
        elif isinstance(event, FetchProgress):
            instances.on_progress(now, event)
        elif isinstance(event, LogFetched):
            compute.on_log(now, event)

    @staticmethod
    def _on_storage(now: float, event: Input, storage: Storage) -> None:
        if isinstance(event, StoreChanged):
            storage.on_store(event)
        elif isinstance(event, ContentDropped):
            storage.on_dropped(now, event)
        elif isinstance(event, ImageReady):
            storage.on_ready(event)
        elif isinstance(event, ImageFailed):
            storage.on_failed(event)
        elif isinstance(event, HoldersWanted):
            storage.on_holders_wanted(event)
