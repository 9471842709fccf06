"""The rack leader's own work: knowing the rack's agents, and speaking to all of them at once (step 5).

Theory of operation. The leader, and only it, watches its rack's member list; it reads each new member and says hello
(`LeaderHello`), so that agents know whom to send heartbeats without watching anything. Heartbeats, and answers, bring
free capacity and say "I am alive". An agent is *silent* when its connection broke, when it left a call without an
answer, or when it was not heard of for `silent_after_s`; until it is heard of again. It is not waited for: it is still
told what everyone is told (it may come back), but an answer does not wait for it. A `RackCall` becomes one `NodeCall`
an agent, in parallel, and one `RackAnswer` when all are in or its wait is over. A repeat of a call that is still open
is answered when the first is. A question for offers that wants the best alone is answered for the agents (`known`), but
for those that have not said yet what they have.

Losing leadership drops all of it: open calls get no answer from here, and their callers find the next leader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fabric.commands import Answer, AskOffer, Command, Reserve, Reserved
from fabric.messages import (
    Heartbeat,
    LeaderHello,
    NodeAnswer,
    NodeCall,
    NodeResult,
    NodeStatus,
    RackAnswer,
    RackCall,
    RackStatus,
    RackStatusCall,
    Vitals,
)
from fabric.ordinals import parse_ordinals
from fabric.records import BadRecord, Member, decode
from fabric.resources import ZERO, Resources
from fabric.roles.known import Known, best_of
from fabric.roles.outbox import Outbox, earliest
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome

PREFIX = "rack:"
MAX_OPEN_CALLS = 1024
"""One more is not answered; its caller asks again."""


@dataclass(slots=True)
class _Seen:
    member: Member
    since: float
    heard: float | None = None
    vitals: Vitals | None = None
    mute: bool = False
    """Its connection broke, or it left a call without an answer, since it was heard."""
    hello_at: float = 0.0
    registered: int = 0
    """The zxid of its registration."""
    free: Resources = ZERO
    """As it said last, less what it was asked to reserve since."""


@dataclass(slots=True)
class _Open:
    call: RackCall
    caller: str
    deadline: float
    waiting: set[str]
    late: set[str]
    absent: tuple[str, ...]
    results: dict[str, Answer] = field(default_factory=dict)
    sent: int = 0


class RackLeader:
    """Embed it; `begin` on election, `end` on loss. Everything it is passed while it does not lead is answered with
    `leads=False` or ignored."""

    def __init__(self, identity: Identity, settings: Settings, out: Outbox) -> None:
        self._identity = identity
        self._settings = settings
        self._out = out
        self._call_prefix = f"{identity.guid[:8]}-n-"
        self._list_path = paths.rack_members(identity.layer, identity.rack)
        self._members: dict[str, _Seen] = {}
        self._listed: set[str] | None = None
        """The members by ZooKeeper; None before they were listed. Only who is not in here is absent."""
        self._unread: set[str] = set()
        self._early: list[tuple[float, str, RackCall]] = []
        """Calls that came before every member was read: (until when, caller, call)."""
        self._open: dict[tuple[str, str], _Open] = {}
        self._by_call: dict[str, tuple[str, str]] = {}
        self._serial = 0
        self._epoch: int | None = None
        self._list_again_at: float | None = None
        self._look_at: float | None = None
        """No member is to be greeted before this; a bound, as heartbeats only put it off."""
        self.on_vanished: Callable[[float, str], None] = lambda now, node: None
        """Told of a member that is gone from the list."""
        self.on_appeared: Callable[[str], None] = lambda node: None
        """Told of a member whose record was read."""
        self.on_vitals: Callable[[float, str, Vitals], None] = lambda now, node, vitals: None
        """Told of what a member says of itself."""

    def is_member(self, node: str) -> bool:
        """On ZooKeeper's list of this rack, as far as this leader knows."""
        return self._listed is not None and node in self._listed

    @property
    def leads(self) -> bool:
        return self._epoch is not None

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(sorted(self._members))

    def begin(self, now: float, epoch: int) -> None:
        if self._epoch == epoch:
            return
        self._forget_all()
        self._epoch = epoch
        self._list()

    def end(self) -> None:
        self._epoch = None
        self._forget_all()

    def _forget_all(self) -> None:
        self._members.clear()
        self._listed = None
        self._unread.clear()
        self._early.clear()
        self._open.clear()
        self._by_call.clear()
        self._list_again_at = self._look_at = None

    # --- the member list -----------------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """The session is connected again: watches may have been missed."""
        if self._epoch is not None:
            self._list()

    def on_watch(self, path: str) -> None:
        if self._epoch is not None and path == self._list_path:
            self._list()

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        if not token.startswith(PREFIX):
            return False
        if self._epoch is None:
            return True
        node = token[len(PREFIX) :]
        if isinstance(outcome, Listed):
            self._listed = set(outcome.names)
            self._unread &= self._listed
            for gone in sorted(set(self._members) - self._listed):
                self._forget(now, gone)
            for name in outcome.names:
                if name not in self._members:
                    self._unread.add(name)
                    self._read(name)
        elif isinstance(outcome, Got):
            self._unread.discard(node)
            self._learn(now, node, outcome.data, outcome.stat.czxid)
        elif isinstance(outcome, NoNode) and node:
            self._unread.discard(node)
            if self._listed is not None:
                self._listed.discard(node)
            self._forget(now, node)
        else:
            self._list_again_at = now + self._settings.retry_max_s
        if self.ready and self._early:
            early, self._early = self._early, []
            for until, caller, call in early:
                if now < until:
                    self.on_call(now, caller, call)
        return True

    @property
    def ready(self) -> bool:
        """Every member that ZooKeeper lists is known."""
        return self._listed is not None and not self._unread

    def _learn(self, now: float, node: str, data: bytes, registered: int) -> None:
        try:
            member = decode(data, Member, f"{self._list_path}/{node}")
        except BadRecord as error:
            self._out.note("warning", f"{error}; the node counts as silent")
            return
        known = self._members.get(node)
        if known is None or known.member.guid != member.guid:
            known = self._members[node] = _Seen(member, now)
            self.on_appeared(node)
        known.registered = registered
        self._hello(now, known)

    def _forget(self, now: float, node: str) -> None:
        """A member's session is over: nobody waits for it any more."""
        if self._members.pop(node, None) is None:
            return
        self.on_vanished(now, node)
        for key, entry in list(self._open.items()):
            if node in entry.waiting or node in entry.late:
                entry.waiting.discard(node)
                entry.late.discard(node)
                entry.absent = (*entry.absent, node)
                if not entry.waiting:
                    self._answer(key)

    def _hello(self, now: float, seen: _Seen) -> None:
        assert self._epoch is not None
        seen.hello_at = now
        self._look_at = earliest(self._look_at, self._hello_due(seen))
        interval_ms = int(self._settings.heartbeat_interval_s * 1000)
        one = self._identity
        self._out.send(
            seen.member.address, LeaderHello(one.rack, one.layer, self._epoch, one.address, interval_ms)
        )

    def on_heartbeat(self, now: float, beat: Heartbeat) -> None:
        if self._epoch is None:
            return
        seen = self._members.get(beat.node)
        if seen is None or seen.member.guid != beat.guid:
            self._read(beat.node)
            return
        self._hear(now, seen, beat.vitals)

    def _hear(self, now: float, seen: _Seen, vitals: Vitals | None) -> None:
        seen.heard = now
        seen.mute = False
        if vitals is not None:
            seen.vitals = vitals
            seen.free = vitals.free
            self.on_vitals(now, seen.member.node, vitals)

    def on_lost(self, now: float, endpoint: str) -> None:
        """The connection to this endpoint broke. A greeting makes a new one, if somebody is there."""
        if self._epoch is None:
            return
        for node, seen in self._members.items():
            if seen.member.address.rpartition("/")[0] == endpoint:
                seen.mute = True
                if now >= self._hello_due(seen):
                    self._hello(now, seen)
                else:  # it was greeted just now: what breaks every connection is not to keep us busy
                    self._look_at = earliest(self._look_at, self._hello_due(seen))
                for key, entry in list(self._open.items()):
                    if node in entry.waiting:  # what it answers now has no way back here
                        entry.waiting.discard(node)
                        entry.late.add(node)
                        if not entry.waiting:
                            self._answer(key)

    def _silent(self, now: float, seen: _Seen) -> bool:
        heard = seen.heard if seen.heard is not None else seen.since
        return seen.mute or now - heard > self._settings.silent_after_s

    # --- calls ---------------------------------------------------------------------------------------------------

    def on_call(self, now: float, caller: str, call: RackCall) -> None:
        if self._epoch is None:
            self._out.send(caller, RackAnswer(call.call, self._identity.rack, False))
            return
        if not self.ready:
            # Just elected: whoever is not known yet must not be called absent. The caller repeats what is not kept.
            if len(self._early) < MAX_OPEN_CALLS:
                self._early.append((now + call.wait_ms / 1000, caller, call))
            return
        assert self._listed is not None
        commands: dict[str, Command] = {entry.node: entry.command for entry in call.commands}
        if call.everyone is not None:
            for node in self._members:
                commands.setdefault(node, call.everyone)
        key = (call.call, caller)
        entry = self._open.get(key)
        if entry is not None:  # a repeat: ask again those that have not answered
            for node in sorted(entry.waiting | entry.late):
                if node in self._members and node in commands:
                    self._ask(entry, node, commands[node])
            return
        if len(self._open) >= MAX_OPEN_CALLS:
            self._out.note("warning", f"{MAX_OPEN_CALLS} calls are open; one more from {caller} is left unanswered")
            return
        present = {node: self._members[node] for node in commands if node in self._members}
        late = {node for node, seen in present.items() if self._silent(now, seen)}
        absent = tuple(sorted(set(commands) - self._listed))
        late |= set(commands) - set(present) - set(absent)  # there, but its record can't be read
        self._serial += 1
        node_call = f"{self._call_prefix}{self._serial}"
        entry = _Open(call, caller, now + call.wait_ms / 1000, set(present) - late, late, absent)
        self._open[key] = entry
        self._by_call[node_call] = key
        entry.call = RackCall(node_call, call.wait_ms)  # only its id is needed from here on
        if isinstance(call.everyone, AskOffer) and call.everyone.best:
            self._answer_for(entry, present, call.everyone)
        for node in sorted(entry.waiting | entry.late):
            if node in present:
                self._ask(entry, node, commands[node])
        if not entry.waiting:
            self._answer(key)

    def _answer_for(self, entry: _Open, present: Mapping[str, _Seen], ask: AskOffer) -> None:
        """Those that have told what they have need not be asked; nor those that are silent."""
        entry.late.clear()
        known: list[Known] = []
        for node in tuple(entry.waiting):
            seen = present[node]
            if seen.vitals is None:
                continue
            entry.waiting.discard(node)
            if not seen.vitals.cordoned:
                known.append(Known(node, seen.free, seen.member.total, seen.registered))
        entry.results.update(best_of(ask, known))

    def _ask(self, entry: _Open, node: str, command: Command) -> None:
        entry.sent += 1
        if isinstance(command, Reserve):  # two that are asked for offers at once are not to be offered the same
            seen = self._members[node]
            seen.free = seen.free.minus(command.resources.times(len(parse_ordinals(command.ordinals))))
        self._out.send(self._members[node].member.address, NodeCall(entry.call.call, command))

    def on_answer(self, now: float, answer: NodeAnswer) -> None:
        seen = self._members.get(answer.node)
        if seen is not None and answer.call.startswith(self._call_prefix):  # also when it comes too late for its call
            self._hear(now, seen, answer.vitals)
        key = self._by_call.get(answer.call)
        if key is None:
            return
        entry = self._open[key]
        if answer.node not in entry.waiting and answer.node not in entry.late:
            return
        entry.waiting.discard(answer.node)
        entry.late.discard(answer.node)
        entry.results[answer.node] = answer.answer
        if seen is not None and isinstance(answer.answer, Reserved) and seen.vitals is not None:
            seen.free = seen.vitals.free  # also when it refused, and so has no news
        if not entry.waiting:
            self._answer(key)

    def _answer(self, key: tuple[str, str]) -> None:
        entry = self._open.pop(key)
        self._by_call.pop(entry.call.call, None)
        for node in entry.waiting:
            seen = self._members.get(node)
            if seen is not None:
                seen.mute = True
                self._look_at = earliest(self._look_at, self._hello_due(seen))
        self._out.send(
            entry.caller,
            RackAnswer(
                key[0],
                self._identity.rack,
                True,
                tuple(NodeResult(node, entry.results[node]) for node in sorted(entry.results)),
                tuple(sorted(entry.waiting | entry.late)),
                entry.absent,
                entry.sent + 1,
            ),
        )

    def on_status_call(
        self, now: float, caller: str, call: RackStatusCall, lacking: int = 0, lost: int = 0
    ) -> None:
        """`lacking`, `lost`: of images, by a storage leader's `repair`."""
        one = self._identity
        nodes = tuple(self._status(now, self._members[name]) for name in sorted(self._members))
        self._out.send(
            caller,
            RackStatus(call.call, one.rack, one.layer, self.leads, one.node, self._epoch or 0, nodes, lacking, lost),
        )

    def _status(self, now: float, seen: _Seen) -> NodeStatus:
        member, vitals = seen.member, seen.vitals
        return NodeStatus(
            node=member.node,
            rack=member.rack,
            layer=member.layer,
            address=member.address,
            data_endpoint=member.data_endpoint,
            total=member.total,
            free=vitals.free if vitals else member.total,
            cordoned=vitals.cordoned if vitals else False,
            instances=vitals.instances if vitals else 0,
            reserved=vitals.reserved if vitals else 0,
            heard_ms=int((now - seen.heard) * 1000) if seen.heard is not None else -1,
            silent=self._silent(now, seen),
            driver=member.driver,
            host=member.host,
            pid=member.pid,
            images=vitals.images if vitals else 0,
            free_bytes=vitals.free_bytes if vitals else 0,
            managent=member.managent,
        )

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        if self._epoch is None:
            return
        for key, entry in list(self._open.items()):
            if now >= entry.deadline and key in self._open:
                self._answer(key)
        if self._list_again_at is not None and now >= self._list_again_at:
            self._list_again_at = None
            self._list()
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            for node, seen in self._members.items():
                if now >= self._hello_due(seen):
                    self._hello(now, seen)
                    if seen.heard is None or self._silent(now, seen):
                        self._read(node)  # it may have started anew under the same name
                self._look_at = earliest(self._look_at, self._hello_due(seen))

    def _hello_due(self, seen: _Seen) -> float:
        """Hello is repeated to whom has not been heard of for two heartbeats; and soon to whom has never been, or not
        since its connection broke or it left a call without an answer: it says that it lives as soon as it hears it."""
        if seen.heard is None or seen.mute:
            return seen.hello_at + self._settings.retry_max_s
        return max(seen.hello_at, seen.heard) + 2 * self._settings.heartbeat_interval_s

    @property
    def next_deadline(self) -> float | None:
        if self._epoch is None:
            return None
        calls = min((entry.deadline for entry in self._open.values()), default=None) if self._open else None
        return earliest(calls, self._look_at, self._list_again_at)

    def _list(self) -> None:
        self._out.tree(PREFIX, Children(self._list_path, watch=True))

    def _read(self, node: str) -> None:
        self._out.tree(PREFIX + node, Get(f"{self._list_path}/{node}"))
