"""Children that do not stay as they were brought up: what beats tell, what ends by itself, boot stubs that are lost.

What ended by itself, or does not answer any more, is started again on the same boot stub: after a wait that doubles, at
most `max_restarts` times in `restart_window_s`, then it failed. Where the role says restart="never", it failed at once.

When a boot stub is lost, its children are unreachable, and taken up again when it is back. With failover="domain" they
are placed on another boot stub: after the lease, if there is one, counted from the moment at which we stopped talking
to the lost one; with another attempt; and the table is saved first. One that comes back, and still runs what was
placed elsewhere, is told to uninstall it (strays).
"""

from __future__ import annotations

import zlib

from deploy.initiator.bringing import PASSIVE, Bringing
from deploy.initiator.calls import Calls
from deploy.initiator.house import House
from deploy.initiator.keeping import Keeper
from deploy.initiator.kid import NO_PRINTS, Kid, Subtree
from deploy.initiator.placement import candidates
from deploy.initiator.steps import RUNS
from deploy.initiator.strays import Strays
from deploy.initiator.stubs import Stubs
from deploy.messages import ManagentBeat, StubBeat
from deploy.records import MAX_CHILDREN, StubRef

LEADERLESS = (
    'but what is below it may run elsewhere: describe it again, where it may be placed elsewhere (failover="domain"), '
    "apply, and then remove it"
)


class Upkeep:
    """It is made first, as others call it, and `wire`d to those whom it calls."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._sightings: dict[str, float] = {}
        """Children without a row -> when a beat told of them first."""

    def wire(self, stubs: Stubs, calls: Calls, keeper: Keeper, bringing: Bringing, strays: Strays) -> None:
        self._stubs = stubs
        self._calls = calls
        self._keeper = keeper
        self._bringing = bringing
        self._strays = strays

    # --- beats -------------------------------------------------------------------------------------------------------

    def on_beat(self, now: float, beat: StubBeat) -> None:
        news = self._stubs.on_beat(now, beat)
        if news == "doubtful":
            return
        told = set()
        for one in beat.managents:
            kid = self._house.kid_at(one.path) or self._remember(now, beat.stub, one)
            if kid is None:
                continue
            told.add(kid.name)
            # an incarnation that was cut off may have counted on; since the adoption, its attempts are under our epoch
            self._house.attempts = max(self._house.attempts, one.attempt)
            if kid.stub != beat.stub.name:
                self._strays.found(now, beat.stub.name, one)
                continue
            if one.epoch > self._house.epoch:
                self._keeper.verify()
            elif kid.call is None and (news == "adopted" or now - kid.answered_at >= self._house.settings.doubt_s):
                self._on_news(now, kid, one, news == "adopted")
        stub = self._stubs.get(beat.stub.name)
        if beat.whole and stub is not None:
            for kid in [kid for kid in stub.kids.values() if kid.name not in told]:
                self._on_absence(now, kid, news == "adopted")
            for kid in [kid for kid in stub.left.values() if kid.name not in told]:
                self.clean(now, kid, beat.stub.name)
        if news == "adopted" and stub is not None:
            for kid in list(stub.kids.values()):
                self._bringing.consider(now, kid)
            self.retry_stranded(now)

    def _on_news(self, now: float, kid: Kid, one: ManagentBeat, adopted: bool) -> None:
        if (one.epoch, one.attempt) < (self._house.epoch, kid.attempt) and not adopted:
            return  # of an older deployment, or from before it was adopted
        kid.attempt = max(kid.attempt, one.attempt)
        before = (kid.env, kid.life)
        kid.env, kid.life, kid.unsure = one.env, one.life, False
        kid.deployed = kid.deployed or one.env != "non-existent"
        if one.initiator and not kid.subtree.cleared:
            self._bringing.is_initiator(now, kid, True)
        kid.row = None
        if before != (kid.env, kid.life) and kid.outcome == "done":
            self._keeper.touch(now, kid)
            self._house.recount(kid)
        if one.health != "ok":
            if kid.want in RUNS and not kid.given_up and kid.not_before <= now and kid.generation:
                if one.health == "crashed" and self._house.charge.role.restart == "never":
                    self._bringing.give_up(now, kid, "failed", f"it ended by itself: {one.reason}")
                else:
                    self.ended(now, kid, f"{one.health}: {one.reason}")
        elif kid.outcome == "done" and kid.want in RUNS and kid.life not in RUNS and not adopted:
            self.ended(now, kid, f"its boot stub says that it is {kid.life}: {one.reason}")
        else:
            self._bringing.consider(now, kid)

    def _remember(self, now: float, ref: StubRef, one: ManagentBeat) -> Kid | None:
        """A child of ours of which there is no row (somebody lost the directory's content, or the beat is an old one):
        it gets one again when it is seen twice, and is removed like others that are not described: when a rollout says
        so."""
        house = self._house
        parent, _, name = one.path.rpartition("/")
        if parent != house.path or one.env == "non-existent" or len(house.kids) >= MAX_CHILDREN:
            return None
        seen_s = now - self._sightings.get(one.path, float("-inf"))
        if not house.settings.beat_s / 2 <= seen_s <= 3 * house.settings.beat_s:
            if seen_s > house.settings.beat_s:
                self._sight(now, one.path)
            return None  # perhaps of an old beat: wait for another one
        del self._sightings[one.path]
        house.info(f"{one.path} on boot stub {ref.name} has no row in the table: it gets one")
        kid = Kid(name, one.path, len(house.kids), None, ref.name, one.attempt, one.env, one.life, sent=True)
        kid.found, kid.covered = True, house.prunes
        house.kids[name] = kid
        self._stubs.house_kid(kid, ref)
        self._keeper.touch(now, kid)
        house.recount(kid)
        self._stubs.adopt(now, ref.name)
        return kid

    def _sight(self, now: float, path: str) -> None:
        if len(self._sightings) >= MAX_CHILDREN:
            fresh_s = 3 * self._house.settings.beat_s
            self._sightings = {one: at for one, at in self._sightings.items() if now - at <= fresh_s}
        if len(self._sightings) < MAX_CHILDREN:
            self._sightings[path] = now

    def _on_absence(self, now: float, kid: Kid, adopted: bool) -> None:
        """It is not in a whole beat."""
        if kid.call is not None or (not adopted and now - kid.answered_at < self._house.settings.doubt_s):
            return
        if not adopted and kid.env == "non-existent" and kid.life == "non-existent":
            return
        kid.unsure = kid.sent  # the beat may be an old one
        kid.env = kid.life = "non-existent"
        kid.row = None
        if kid.found and kid.place is None and not kid.covered:
            self._bringing.forget(now, kid)  # remembered by a beat that was late
            return
        self._house.recount(kid)
        self._bringing.consider(now, kid)

    def clean(self, now: float, kid: Kid, stub: str) -> None:
        """Nothing of it is left on a boot stub from which it was placed elsewhere."""
        if self._house.kids.get(kid.name) is kid:
            self._stubs.is_clean(kid, stub)
            self._keeper.touch(now, kid)
            self._bringing.consider(now, kid)

    # --- what ends by itself -----------------------------------------------------------------------------------------

    def ended(self, now: float, kid: Kid, reason: str) -> None:
        settings = self._house.settings
        if not self._house.active:
            self._bringing.conclude(now, kid, "refused", PASSIVE)
            return
        recent = tuple(at for at in kid.crashes if now - at < settings.restart_window_s)
        kid.crashes = (*recent, now)
        if len(recent) >= settings.max_restarts:
            window = f"{len(recent) + 1} times within {settings.restart_window_s:g} s"
            self._bringing.give_up(now, kid, "failed", f"ended by itself {window}: {reason}")
            return
        kid.restart = kid.life in RUNS
        kid.not_before = now + min(settings.restart_min_s * 2 ** len(recent), settings.restart_max_s)
        self._house.info(f"{kid.path} on boot stub {kid.stub}: {reason}; is started again")
        self._bringing.consider(now, kid)

    # --- lost boot stubs ---------------------------------------------------------------------------------------------

    def on_lost(self, now: float, name: str) -> None:
        stub = self._stubs.get(name)
        assert stub is not None
        for kid in list(stub.kids.values()):
            self._bringing.interrupt(kid)
        self._calls.cancel(now, name, f"boot stub {name} does not answer")
        for kid in list(stub.kids.values()):
            self._bringing.consider(now, kid)

    def strand(self, now: float, kid: Kid) -> None:
        """Its boot stub is lost."""
        stub = self._stubs.get(kid.stub)
        assert stub is not None
        reason = f"boot stub {kid.stub} at {stub.ref.address} does not answer"
        if stub.gone and self._bringing.removing(kid):
            reason = f"{reason}, and is not in the directory any more; {LEADERLESS}"
        if not self._may_move(kid) or not self._elsewhere(kid):
            kid.moving = False
            self._bringing.conclude(now, kid, "unreachable", reason)
            return
        lease_s = self._house.charge.role.lease_s
        self._bringing.conclude(now, kid, "pending", f"{reason}: is placed elsewhere")
        if not kid.sent or not lease_s:
            self._move(now, kid)
        elif not kid.moving:
            kid.moving = stub.quiet = True
            self._house.agenda.by(("move", kid.stub), now + self._lease_over_s())

    def _lease_over_s(self) -> float:
        """From our last word to a boot stub to the time at which it has surely stopped what it had of ours."""
        return self._house.charge.role.lease_s + self._house.settings.lease_margin_s

    def on_move_time(self, now: float, name: str) -> None:
        """The lease of a lost boot stub is over."""
        stub = self._stubs.get(name)
        assert stub is not None
        for kid in [kid for kid in stub.kids.values() if kid.moving]:
            kid.moving = False
            if self._stubs.is_lost(name):
                self._move(now, kid)
        self._stubs.speak(now, name)

    def on_gone(self, now: float, name: str) -> None:
        """The directory does not have this boot stub any more: who is to be removed is as good as gone from there. The
        others stay remembered, as such a machine may come back after all."""
        stub = self._stubs.get(name)
        if stub is None or stub.state != "lost":
            return
        stub.gone = True
        for kid in [*stub.left.values(), *stub.kids.values()]:
            self._bringing.consider(now, kid)

    def back(self, now: float, name: str) -> None:
        """A lost boot stub is heard again: nothing is moved from there."""
        stub = self._stubs.get(name)
        assert stub is not None
        self._house.agenda.drop(("move", name))
        for kid in stub.kids.values():
            kid.moving = False

    def retry_stranded(self, now: float) -> None:
        """Another boot stub is there, or we are active again."""
        for kid in [kid for stub in self._stubs.lost() for kid in stub.kids.values()]:
            if kid.outcome == "unreachable":
                self._bringing.consider(now, kid)

    def _may_move(self, kid: Kid) -> bool:
        house = self._house
        return (
            house.active
            and house.charge.role.failover == "domain"
            and kid.place is not None
            and not kid.given_up
            and kid.want in RUNS
            and not self._bringing.removing(kid)
        )

    def _elsewhere(self, kid: Kid) -> StubRef | None:
        """The boot stub that has the fewest of our children, of those that may take this one and are not lost; the
        nearer one in the order of candidates, and not the same one for all initiators."""
        charge = self._house.charge.charge
        assert kid.place is not None
        found = candidates(kid.place, charge.domain, charge.spare)
        living = [ref for ref in found if ref.name != kid.stub and not self._stubs.is_lost(ref.name)]
        if not living:
            return None
        return min(living, key=lambda ref: (self._stubs.load(ref.name), zlib.crc32(f"{kid.path} {ref.name}".encode())))

    def _move(self, now: float, kid: Kid) -> None:
        target = self._elsewhere(kid)
        if target is None:
            self._bringing.conclude(now, kid, "unreachable", f"boot stub {kid.stub} does not answer, nor any other")
            return
        self._house.warn(f"{kid.path} is placed on boot stub {target.name}, as {kid.stub} does not answer")
        if kid.sent:
            self._stubs.leave_kid(kid, self._stubs.where(kid.stub))
        self._stubs.house_kid(kid, target)
        kid.attempt = self._house.next_attempt()
        kid.env = kid.life = "non-existent"
        kid.prints, kid.rework, kid.restart = NO_PRINTS, "", False
        kid.sent = kid.deployed = kid.unsure = kid.moving = False
        kid.not_before, kid.tries = 0.0, 0
        kid.subtree = Subtree(least=max(kid.subtree.epoch + 1, kid.subtree.least), below=kid.subtree.below)
        kid.intent = self._keeper.touch(now, kid, urgent=True)
        self._house.recount(kid)
        self._bringing.consider(now, kid)
