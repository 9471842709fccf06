"""The initiator: a state machine that deploys the children of one path, and keeps them (HPL-2001-321, 2.4 and 5).

Theory of operation. It claims its table, which gives it an epoch, and adopts what the table says is there. When its
parent (or, at the top, its owner) tells it a rollout, it finds out which children there should be (placement,
covering), and brings each of them where it should be, command by command (bringing, steps), many at a time. Children
that turn out to be initiators are told the same rollout for their part of the tree (subtrees), so all branches go on
in parallel. What they report is added up and goes upward (reporting). What does not stay as it was is mended (upkeep,
stubs, strays). Commands of operators go down and their answers up on the same way (gathers).

Nothing is lost with an initiator: its children run on, and the next incarnation finds them by the table. Two
incarnations of one path do not harm each other: the one with the higher epoch is obeyed by boot stubs, and the other is
told that it is fenced by the next write of its table; then it does nothing for ever.

Everything is driven by `handle` and `tick` (see effects). Nothing here waits, and nothing takes longer for having
more children, except a rollout and the writing of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from deploy.hosting import InitiatorCharge
from deploy.initiator.bringing import Bringing
from deploy.initiator.calls import Calls
from deploy.initiator.covering import Covering
from deploy.initiator.effects import (
    Activate,
    Charged,
    Claimed,
    Deactivate,
    Effect,
    Input,
    Note,
    Order,
    Received,
    Roll,
    Saved,
    StubsKnown,
    TreeFailed,
)
from deploy.initiator.gathers import Gathers, Matcher
from deploy.initiator.house import House
from deploy.initiator.keeping import Keeper
from deploy.initiator.kid import Kid
from deploy.initiator.reporting import Reporting
from deploy.initiator.strays import Strays
from deploy.initiator.stubs import Stubs
from deploy.initiator.subtrees import Subtrees
from deploy.initiator.upkeep import Upkeep
from deploy.messages import (
    AnyDeployMessage,
    BipAnswer,
    InspectAnswer,
    Parent,
    Rollout,
    RolloutCall,
    StubBeat,
    SubtreeReport,
    TreeCall,
    TreePage,
)
from deploy.settings import Settings

TOP_ASKER = Parent("", "")


class Initiator:
    """`address`, `guid`: of this incarnation. `matcher`: makes a pattern of a TreeCall, or raises ValueError."""

    def __init__(
        self,
        charge: InitiatorCharge,
        address: str,
        guid: str,
        settings: Settings,
        matcher: Callable[[str], Matcher],
    ) -> None:
        self._house = house = House(charge, address, guid, settings)
        self._upkeep = upkeep = Upkeep(house)
        self._stubs = stubs = Stubs(house, upkeep.on_lost, upkeep.back)
        self._calls = calls = Calls(house, stubs)
        self._keeper = Keeper(house, stubs, self._on_saved)
        self._subtrees = Subtrees(house, stubs, upkeep.ended)
        self._bringing = Bringing(house, stubs, calls, self._keeper, self._subtrees, upkeep.strand)
        self._subtrees.parenting = self._bringing
        self._covering = Covering(house, stubs, self._keeper)
        upkeep.wire(stubs, calls, self._keeper, self._bringing, Strays(house, calls, upkeep.clean))
        self._gathers = Gathers(house, stubs, self._bringing, self._keeper, matcher)
        self._reporting = Reporting(house)
        self._hosted = charge.charge
        self.fenced = False
        """Another incarnation owns the table; this one does nothing any more."""
        self._on_time: dict[str, Callable[[float, str], None]] = {
            "call": calls.on_time,
            "stub": stubs.on_time,
            "lease": stubs.on_lease,
            "move": upkeep.on_move_time,
            "kid": self._on_kid_time,
            "tell": self._subtrees.on_tell_time,
            "watch": self._subtrees.on_watch_time,
            "gather": self._gathers.on_time,
            "stream": self._gathers.on_stream_time,
            "page": self._gathers.on_page_time,
            "report": lambda now, _: self._reporting.on_time(),
            "save": lambda now, _: self._keeper.on_time(now),
            "again": lambda now, _: self._again(),
        }

    # --- the loop ----------------------------------------------------------------------------------------------------

    def handle(self, now: float, news: Input) -> list[Effect]:
        if self.fenced:
            return []
        match news:
            case Received(sender, message):
                self._on_message(now, sender, message)
            case Saved():
                self._keeper.on_done(now)
            case Activate():
                self._activate(now)
            case Deactivate():
                self._deactivate(now)
            case Claimed():
                self._on_claimed(now, news)
            case TreeFailed(reason):
                self._on_tree_failed(now, reason)
            case StubsKnown(refs, gone):
                self._stubs.learn(now, refs)
                for name in gone:
                    self._upkeep.on_gone(now, name)
            case Charged(charge):
                self._on_hosted(now, charge)
            case Roll(rollout):
                self._on_roll(now, rollout)
            case Order(call, pattern, what, wait_s):
                self._gathers.begin(now, call, pattern, what, wait_s, TOP_ASKER)
        return self._end(now)

    def tick(self, now: float) -> list[Effect]:
        if self.fenced:
            return []
        for what, name in self._house.agenda.due(now):
            self._on_time[what](now, name)
        return self._end(now)

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called, at the latest."""
        return None if self.fenced else self._house.agenda.next

    @property
    def settled(self) -> bool:
        """See SubtreeReport. Who is about to be removed has dropped its table by then; at the top, whose owner may end
        when it hears so, the table is saved."""
        house, keeper = self._house, self._keeper
        removing = house.rollout is not None and house.rollout.remove_all and not house.kids
        return house.settled and (keeper.dropped or not removing) and (bool(house.path) or keeper.is_saved)

    def _end(self, now: float) -> list[Effect]:
        house = self._house
        if self.fenced:
            house.take()
            return [Note("warning", f"initiator {house.path or '(top)'}: another incarnation owns its table; it ends")]
        self._bringing.pump(now)
        self._gathers.look(now)
        if house.settled and house.rollout is not None:
            if house.rollout.remove_all and not house.kids:
                self._keeper.drop()
            else:
                self._keeper.hurry()
        self._keeper.flush()
        self._reporting.flush(now, self.settled)
        return house.take()

    # --- its own life ------------------------------------------------------------------------------------------------

    def _activate(self, now: float) -> None:
        house = self._house
        house.active = house.changed = True
        if not house.epoch:
            self._begin(now)
            return
        self._keep_table()
        self._consider_all(now)
        self._upkeep.retry_stranded(now)

    def _deactivate(self, now: float) -> None:
        """Also what a passive incarnation begins with: it has children to answer for."""
        house = self._house
        house.active, house.changed = False, True
        if not house.epoch:
            self._begin(now)
            return
        self._consider_all(now)

    def _begin(self, now: float) -> None:
        self._keeper.claim()
        self._house.agenda.by(("report", ""), now + self._house.settings.beat_s)

    def _on_claimed(self, now: float, news: Claimed) -> None:
        house = self._house
        self._keeper.claimed()
        house.epoch, house.changed = news.epoch, True
        if news.table is not None and not house.kids:
            for stub in self._covering.load(now, news.table):
                self._stubs.adopt(now, stub)
            if house.kids:
                house.info(f"goes on with {len(house.kids)} children of an earlier incarnation, epoch {house.epoch}")
        self._cover(now, None)

    def _on_tree_failed(self, now: float, reason: str) -> None:
        if reason != "fenced":
            self._house.warn(f"its table could not be claimed or written: {reason}")
            self._keeper.on_failed(now)
            return
        self.fenced = True

    def _again(self) -> None:
        if not self._house.epoch:
            self._keeper.claim()

    def _on_hosted(self, now: float, charge: InitiatorCharge) -> None:
        """By its host, who knows the charge that it was deployed with; a parent may have told a later one since."""
        mine = self._house.charge
        if (charge.epoch, charge.attempt) < (mine.epoch, mine.attempt):
            return
        if charge.charge == self._hosted:
            charge = replace(charge, charge=mine.charge)
        else:
            self._hosted = charge.charge
        self._on_charged(now, charge)

    def _on_charged(self, now: float, charge: InitiatorCharge) -> None:
        house = self._house
        if charge.parent != house.charge.parent:
            self._reporting.now = True
        house.charge = charge
        self._stubs.learn(now, (*charge.charge.domain, *charge.charge.spare))
        self._upkeep.retry_stranded(now)

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def _on_roll(self, now: float, rollout: Rollout) -> None:
        """At the top. Before the table is claimed it has no epoch, by which one top's rollouts follow another's."""
        house = self._house
        if house.rollout is not None and rollout.seq <= house.rollout.seq:
            raise ValueError(f"rollout {rollout.id}: expected a seq above {house.rollout.seq}, found {rollout.seq}")
        charge = msgspec.structs.replace(house.charge.charge, rollout=rollout.id, generation=rollout.generation)
        house.charge = replace(house.charge, charge=charge)
        self._take_up(now, msgspec.structs.replace(rollout, epoch=house.epoch))

    def _on_rollout_call(self, now: float, call: RolloutCall) -> None:
        house = self._house
        mine = house.charge
        if (call.epoch, call.attempt) < (mine.epoch, mine.attempt):
            return  # of a parent that is not ours any more
        charge = call.charge
        if charge is None:
            rollout = call.rollout
            charge = msgspec.structs.replace(mine.charge, rollout=rollout.id, generation=rollout.generation)
        last = house.rollout
        newer = last is None or (call.rollout.epoch, call.rollout.seq) > (last.epoch, last.seq)
        self._reporting.now = True
        if newer:
            told = replace(mine, parent=call.parent, epoch=call.epoch, attempt=call.attempt, charge=charge)
            self._on_charged(now, told)
            self._take_up(now, call.rollout)
        elif call.parent != mine.parent:
            self._on_charged(now, replace(mine, parent=call.parent, epoch=call.epoch, attempt=call.attempt))

    def _take_up(self, now: float, rollout: Rollout) -> None:
        house = self._house
        last, house.rollout, house.changed = house.rollout, rollout, True
        self._keep_table()
        self._cover(now, last)

    def _keep_table(self) -> None:
        """The table goes when all children have. If there are to be children again, it does not, or is claimed anew."""
        house = self._house
        if house.rollout is None or house.rollout.remove_all:
            return
        self._keeper.keep()
        if self._keeper.dropped and house.active:
            house.epoch = 0
            self._keeper.claim()

    def _cover(self, now: float, last: Rollout | None) -> None:
        house = self._house
        if house.rollout is None or not house.epoch:
            return
        if not house.path and house.rollout.epoch != house.epoch:
            house.rollout = msgspec.structs.replace(house.rollout, epoch=house.epoch)
        for kid in self._covering.cover(now, last):
            self._bringing.consider(now, kid)
        for kid in list(house.kids.values()):
            if kid.initiator and kid.covered and kid.outcome == "done" and kid.call is None:
                self._bringing.consider(now, kid)  # a new watermark may be for it

    # --- messages ----------------------------------------------------------------------------------------------------

    def _on_message(self, now: float, sender: str, message: AnyDeployMessage) -> None:
        match message:
            case BipAnswer() | InspectAnswer():
                self._stubs.heard(now, message.stub)
                self._calls.on_answer(now, message)
            case StubBeat():
                if self._house.epoch:
                    self._upkeep.on_beat(now, message)
            case SubtreeReport():
                self._subtrees.on_report(now, message)
            case RolloutCall():
                self._on_rollout_call(now, message)
            case TreeCall():
                self._gathers.on_call(now, message)
            case TreePage():
                self._gathers.on_page(now, message)
            case _:
                pass  # a boot stub's, or a stranger's

    def _on_saved(self, now: float, kids: list[Kid]) -> None:
        self._keep_table()
        for kid in kids:
            self._bringing.consider(now, kid)
        self._gathers.on_saved(now)

    def _on_kid_time(self, now: float, name: str) -> None:
        kid = self._house.kids.get(name)
        if kid is not None:
            self._bringing.consider(now, kid)

    def _consider_all(self, now: float) -> None:
        for kid in list(self._house.kids.values()):
            self._bringing.consider(now, kid)
