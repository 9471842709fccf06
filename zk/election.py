"""Who leads a rack: ZooKeeper's leader-election recipe, as a pure function and a sans-I/O state machine.

Theory of operation. The recipe is "Leader Election" of ZooKeeper's "Recipes and Solutions": every candidate creates an
ephemeral, sequential znode; the one with the lowest sequence number leads; every other one watches **only its
predecessor**, so that a death wakes one candidate and not the herd. Ours has three additions.

1. *The name carries who made it.* A candidate is `{guid}.{session}-{sequence}`. When the reply to a create is lost, the
   candidate lists the children and finds its own name before it creates again; more than one of its own (a repeated
   create) are tidied away, all but the first. The session in the name keeps it from taking what an earlier session of
   the same agent left behind for its own; that is tidied away too.
2. *The leader znode.* The first candidate creates the ephemeral `/leaders/{layer}/{rack}`, by which others find the
   leader. Holding this znode is leading: one name, so one leader. Its creation zxid is the leader's **epoch**, which
   ZooKeeper hands out and which only grows. If the znode is there already (the session of a leader that died is not
   over yet) it is watched, and created when it is gone.
3. *Leading is not enough to award.* While the session is SUSPENDED the leader may be dead in the eyes of the others:
   `leads` stays, `may_award` does not. LOST drops everything; a new session stands anew.

The flow, one operation in flight at any time:

        CONNECTED ──> sweep (Exists leader: mine? Delete)
                        │
                        v
             ┌──────> look (Children) ──none of mine──> stand (Create) ───────> look
             │          │ └─not first──> watch predecessor (Exists) ──gone────> look
             │          └─first──> take (Create leader) ──> LEADS ──> update (Set)
             │                       └─NodeExists──> whose (Exists, watch) ──mine──> LEADS
             └─────── any watch fires, or anything goes wrong ────────────────────┘

Whatever goes wrong (ConnectionLost, Overloaded, an error that nobody foresaw) the answer is the same: look again, at
once when the session is CONNECTED again, else after a bounded back-off that `on_tick` drives. So a lost reply needs no
case of its own: looking finds what happened. A new session sweeps before it looks: what was asked for in the last one
may have been submitted so late that it was done in this one; a leader znode that its owner does not know of would block
the rack for as long as that session lives.

How to embed it (methods take one input and return the operations to submit, in order; no I/O, no clock, no randomness):

        candidacy = Candidacy("compute", "rack-1", guid=guid, data=record)
        requests = candidacy.on_session(event)            # every SessionChanged, the first CONNECTED included
        requests = candidacy.on_watch(path)               # every WatchFired: paths of others are ignored
        requests = candidacy.on_outcome(token, outcome)   # the outcome of a Request: foreign, old tokens are ignored
        requests = candidacy.on_tick(now)                 # when candidacy.next_deadline has come
        requests = candidacy.update(data)                 # new contents for the leader znode, now or when it leads
        requests = candidacy.resign()                     # withdraw, for good
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zk import paths
from zk.paths import Layer
from zk.tree import (
    Check,
    Children,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Existed,
    Exists,
    Listed,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    Op,
    Outcome,
    SessionChanged,
    SessionState,
    Set,
)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
"""The back-off between attempts while connected: doubled from the first to the most, reset by any success."""

TOKEN_PREFIX = "elect:"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one candidate stands among the children of a candidates znode. All are child names.

    `mine`: the lowest of the candidate's own, None when it has none. `leads`: nothing stands before it.
    `predecessor`: the one to watch, None if it leads or does not stand. `extras`: its own beyond the first, left by
    creates that were repeated: delete them."""

    mine: str | None
    leads: bool
    predecessor: str | None
    extras: tuple[str, ...] = ()


def standing(children: Iterable[str], guid: str) -> Standing:
    """Order candidates by sequence number (never by name: a guid says nothing about turns); ignore malformed names."""
    queue: list[tuple[int, str, bool]] = []
    for name in children:
        maker, sequence = _parts(name)
        if maker:
            queue.append((int(sequence), name, maker == guid))
    queue.sort()
    own = [position for position, (_, _, is_mine) in enumerate(queue) if is_mine]
    if not own:
        return Standing(mine=None, leads=False, predecessor=None)
    first = own[0]
    return Standing(
        mine=queue[first][1],
        leads=first == 0,
        predecessor=queue[first - 1][1] if first > 0 else None,
        extras=tuple(queue[position][1] for position in own[1:]),
    )


def _parts(name: str) -> tuple[str, str]:
    """(who made it, its sequence number) of a candidate's name; ("", "") of one that is malformed. By hand, as every
    candidate reads the names of its whole rack."""
    maker, _, sequence = name.rpartition("-")
    if len(sequence) == 10 and sequence.isascii() and sequence.isdigit():
        return maker, sequence
    return "", ""


@dataclass(frozen=True, slots=True)
class Request:
    """One operation for the tree; hand its outcome back to `Candidacy.on_outcome` under the same token."""

    token: str
    op: Op


_Then = Callable[[Outcome], list[Request]]


class Candidacy:
    """One agent's standing for leader of one rack of one layer. See the module's docstring for the flow.

    `guid` names the agent, and nobody else in the rack: candidates of this name are its own to delete. `data` is what
    the leader znode shall hold. The znodes of zk.paths.ROOTS must exist; the rack's below them is made."""

    def __init__(self, layer: Layer, rack: str, guid: str, data: bytes) -> None:
        for what, word in (("rack", rack), ("guid", guid)):
            if not word or "/" in word:
                raise ValueError(f"{what}: expected a non-empty name without '/', found {word!r}")
        self._layer: Layer = layer
        self._rack = rack
        self._guid = guid
        self._data = data
        self._directory = paths.candidates(layer, rack)
        self._leader = paths.leader(layer, rack)
        self._serial = 0
        self._resigning = False
        self._session = 0
        self._connected = False
        self._forget()

    def _forget(self) -> None:
        """What is known of one session, and ends with it."""
        self._token: str | None = None
        self._then: _Then = self._looked
        self._candidate = ""
        self._epoch: int | None = None
        self._written: bytes | None = None
        self._watched: str | None = None
        self._stale = False
        self._swept = False
        self._withdrawn = False
        self._retrying = False
        self._retry_at: float | None = None
        self._delay_s = RETRY_FIRST_S

    # --- what the embedding role reads ----------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Holds the leader znode, as far as it knows."""
        return self._epoch is not None and not self._resigning

    @property
    def may_award(self) -> bool:
        """Leads, in a session that is connected now: only then may it hand out work."""
        return self.leads and self._connected

    @property
    def epoch(self) -> int | None:
        """The creation zxid of its leader znode: larger than that of every leader before. None unless it leads."""
        return self._epoch if self.leads else None

    @property
    def resigned(self) -> bool:
        """It resigned, and nothing of it is left in the tree (or its session, which owned all, is over)."""
        return self._resigning and (self._withdrawn or self._session == 0)

    @property
    def next_deadline(self) -> float | None:
        """When to call `on_tick`: None means not at all, a time in the past (0.0 too) means now."""
        if not self._retrying or not self._connected:
            return None
        return 0.0 if self._retry_at is None else self._retry_at

    # --- inputs ---------------------------------------------------------------------------------------------------

    def on_session(self, event: SessionChanged) -> list[Request]:
        """The session changed. A CONNECTED with another session id means: start over, with a new candidate."""
        if event.state is SessionState.SUSPENDED:
            self._connected = False
            return []
        if event.state is SessionState.LOST:
            self._connected = False
            self._session = 0
            self._forget()
            return []
        self._connected = True
        if event.session_id != self._session:
            self._session = event.session_id
            self._forget()
            return self._proceed()
        if self._token is None and (self._retrying or self._stale):
            return self._proceed()
        return []

    def on_watch(self, path: str) -> list[Request]:
        """A watch fired: if it is the one this candidacy waits for, look again."""
        if path != self._watched:
            return []
        self._watched = None
        return self._nudged()

    def on_outcome(self, token: str, outcome: Outcome) -> list[Request]:
        """The outcome of one of its requests. Those of an earlier session, and foreign tokens, are ignored."""
        if token != self._token:
            return []
        self._token = None
        requests = self._then(outcome)
        if requests or self._token is not None or not self._connected:
            return requests
        return self._proceed() if self._stale else []

    def on_tick(self, now: float) -> list[Request]:
        """Time passed (seconds, any monotonic clock): try again what failed, when its back-off is over."""
        if not self._retrying or not self._connected:
            return []
        if self._retry_at is None:
            self._retry_at = now + self._delay_s
        if now < self._retry_at:
            return []
        self._delay_s = min(self._delay_s * 2, RETRY_MAX_S)
        return self._proceed()

    def update(self, data: bytes) -> list[Request]:
        """Let the leader znode hold `data` (a new load hint). Kept for later while it does not lead; of many updates
        during one write only the last is written."""
        self._data = data
        return self._nudged() if self.leads and not self._retrying else []

    def resign(self) -> list[Request]:
        """Step down: not leader from this moment; leader znode and candidates are deleted. It does not stand again."""
        self._resigning = True
        self._swept = False
        return self._nudged()

    # --- the flow: each step asks for one operation and names what follows -----------------------------------------

    def _nudged(self) -> list[Request]:
        """There is something to look at, or to do: now, or when what keeps from it is over."""
        if self._token is not None or not self._connected:
            self._stale = True
            return []
        return self._proceed()

    def _proceed(self) -> list[Request]:
        """Go on from what is known for certain: the one place that every event and every trouble leads back to."""
        self._stale = False
        self._retrying = False
        self._retry_at = None
        if self._withdrawn:
            return []
        if not self._swept:
            return self._ask(Exists(self._leader), self._leader_found)
        return self._look() if self._epoch is None else self._write()

    def _ask(self, op: Op, then: _Then) -> list[Request]:
        self._serial += 1
        self._token = f"{TOKEN_PREFIX}{self._serial}"
        self._then = then
        return [Request(self._token, op)]

    def _leader_found(self, outcome: Outcome) -> list[Request]:
        """Before standing, and when resigning: no leader znode of mine may be there."""
        if not isinstance(outcome, Existed):
            return self._trouble()
        if outcome.stat is not None and outcome.stat.owner == self._session:
            return self._ask(Delete(self._leader), self._go_on(Deleted, NoNode))
        self._epoch = None
        self._swept = True
        return self._proceed()

    def _look(self) -> list[Request]:
        self._watched = None  # whom to watch is settled anew
        return self._ask(Children(self._directory), self._looked)

    def _looked(self, outcome: Outcome) -> list[Request]:
        if isinstance(outcome, NoNode) and not self._resigning:
            return self._ask(Create(self._directory), self._go_on(Created, NodeExists))
        if isinstance(outcome, NoNode):
            outcome = Listed(())
        if not isinstance(outcome, Listed):
            return self._trouble()
        if not self._swept:  # resigned meanwhile
            return self._proceed()
        place = standing(outcome.names, self._name)
        unwanted = [*place.extras, *self._leftovers(outcome.names)]
        if self._resigning and place.mine is not None:
            unwanted.append(place.mine)
        if unwanted:
            return self._ask(Delete(f"{self._directory}/{unwanted[0]}"), self._go_on(Deleted, NoNode))
        if self._resigning:
            self._withdrawn = True
            return self._settled()
        if place.mine is None:
            return self._stand()
        self._candidate = f"{self._directory}/{place.mine}"
        if place.predecessor is None:
            return self._take()
        self._watched = f"{self._directory}/{place.predecessor}"
        return self._ask(Exists(self._watched, watch=True), self._predecessor_seen)

    def _stand(self) -> list[Request]:
        prefix = paths.candidate_prefix(self._layer, self._rack, self._name)
        return self._ask(Create(prefix, ephemeral=True, sequence=True), self._go_on(Created))

    def _predecessor_seen(self, outcome: Outcome) -> list[Request]:
        if not isinstance(outcome, Existed):
            return self._trouble()
        if outcome.stat is None or self._resigning:
            return self._proceed()  # gone meanwhile; a list read after this answer is no older: looking makes progress
        return self._settled()

    def _take(self) -> list[Request]:
        self._written = self._data
        return self._ask(Create(self._leader, self._data, ephemeral=True), self._taken)

    def _taken(self, outcome: Outcome) -> list[Request]:
        if isinstance(outcome, Created) and outcome.stat is not None:
            self._epoch = outcome.stat.czxid
            return self._proceed()
        if isinstance(outcome, Created | NodeExists):
            self._watched = self._leader
            return self._ask(Exists(self._leader, watch=True), self._leader_seen)
        return self._trouble()

    def _leader_seen(self, outcome: Outcome) -> list[Request]:
        """Someone's leader znode is there. Mine, if the reply to my create was lost; else its session is dying."""
        if not isinstance(outcome, Existed):
            return self._trouble()
        if outcome.stat is None or self._resigning:
            return self._proceed()
        if outcome.stat.owner == self._session:
            self._watched = None
            self._epoch = outcome.stat.czxid
            self._written = None  # which create it was, and so which data it wrote, is not known: write again
            return self._proceed()
        return self._settled()

    def _write(self) -> list[Request]:
        if self._written == self._data:
            return self._settled()
        data = self._data

        def written(outcome: Outcome) -> list[Request]:
            self._written = data if isinstance(outcome, Done) else None
            if isinstance(outcome, MultiFailed):  # someone deleted one of them by hand: stand anew
                self._epoch = None
                self._swept = False
            return self._proceed() if isinstance(outcome, Done | MultiFailed) else self._trouble()

        # Only while my candidate is there, so never in another session, into the znode of another leader.
        return self._ask(Multi((Check(self._candidate, 0), Set(self._leader, data))), written)

    # --- helpers --------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return f"{self._guid}.{self._session & 0xFFFF_FFFF_FFFF_FFFF:016x}"

    def _leftovers(self, names: Iterable[str]) -> list[str]:
        """Candidates of this agent's earlier sessions."""
        own = [name for name in names if name.startswith(f"{self._guid}.")]
        made_by = {name: _parts(name)[0] for name in own}
        return [n for n, by in made_by.items() if by != self._name and by.rpartition(".")[0] == self._guid]

    def _go_on(self, *after: type[Outcome]) -> _Then:
        """Proceed after one of these outcomes; any other is trouble."""
        return lambda outcome: self._proceed() if isinstance(outcome, after) else self._trouble()

    def _trouble(self) -> list[Request]:
        """No answer, or not one to go on from: try again when CONNECTED comes, or after the back-off."""
        self._retrying = True
        self._retry_at = None
        return []

    def _settled(self) -> list[Request]:
        """Nothing to do until something happens: it waits for its turn, leads, or has withdrawn."""
        self._delay_s = RETRY_FIRST_S
        return []
