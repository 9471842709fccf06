"""Bringing children to where they should be: one command at a time for each, `parallel` of them at once.

`consider` is the whole of it: it looks at what is known of a child, at what is wanted of it, and does the next thing,
if there is one that can be done now. It is called whenever something about the child may have changed, and may be
called at any time. A child's outcome is *pending* until its goal is reached (*done*) or it is given up: refused or
failed after `retries`, or at once when the boot stub says that trying again is of no use.

Commands of operators (`order`) go to a child between two such commands, never into the middle of a reinstallation.
What they bring about stays: see Child.want.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial

from deploy.initiator.calls import Answer, Call, Calls
from deploy.initiator.house import House
from deploy.initiator.keeping import Keeper
from deploy.initiator.kid import Kid
from deploy.initiator.steps import RUNS, Goal, Step, next_step, rework
from deploy.initiator.stubs import Stubs
from deploy.initiator.subtrees import Subtrees
from deploy.messages import BipAnswer, BipCall, InspectAnswer, InspectCall
from deploy.records import MAX_STEPS, Outcome
from deploy.states import LifeState, Verb

PASSIVE = "its initiator is deactivated: activate that one, and it goes on"
ORPHANS = (
    "it is described as no initiator any more, but was replaced before what is below it could be removed: describe it "
    "as an initiator, apply, and then change it"
)
WITH_CHARGE: frozenset[Step] = frozenset({"deploy", "configure-env", "configure-managent"})
AFTER_INTENT: frozenset[Step] = frozenset({"deploy", "uninstall", "configure-managent"})
NEW_INCARNATION: frozenset[Step] = frozenset({"deploy", "start", "restart"})
LEAVES: dict[Verb, LifeState] = {
    "deploy": "active",
    "start": "active",
    "restart": "active",
    "activate": "active",
    "deactivate": "passive",
    "shutdown": "configured",
    "configure-managent": "configured",
    "configure-env": "non-existent",
    "uninstall": "non-existent",
}
"""What an order makes a managent want to be."""

Ordered = Callable[[float, Outcome, str], None]
"""(now, what came of it, reason)."""


class Bringing:
    def __init__(
        self,
        house: House,
        stubs: Stubs,
        calls: Calls,
        keeper: Keeper,
        subtrees: Subtrees,
        strand: Callable[[float, Kid], None],
    ) -> None:
        self._house = house
        self._stubs = stubs
        self._calls = calls
        self._keeper = keeper
        self._subtrees = subtrees
        self._strand = strand
        self._slots = 0
        self._queue: list[tuple[int, str]] = []
        self._orders: dict[str, list[tuple[str, Verb, Ordered]]] = {}

    # --- what is wanted ----------------------------------------------------------------------------------------------

    def removing(self, kid: Kid) -> bool:
        rollout = self._house.rollout
        return kid.covered and rollout is not None and (kid.place is None or rollout.remove_all)

    def _goal(self, kid: Kid) -> Goal | None:
        """None: nothing is wanted of it now."""
        rollout = self._house.rollout
        if self.removing(kid):
            clear = kid.initiator and not kid.subtree.cleared and kid.want != "non-existent"
            return Goal("non-existent", clear=clear, unsure=kid.unsure, restart=kid.restart)
        if kid.covered and rollout is not None:
            check = not kid.checked and not kid.rework and (kid.generation != rollout.generation or rollout.recheck)
            clear = kid.leaf_next and not kid.subtree.cleared
            return Goal(kid.want, check, kid.rework, kid.restart, clear)
        if not kid.generation:
            return None  # it was never brought up, and no rollout reaches it
        return Goal(kid.want, rework=kid.rework, restart=kid.restart)

    # --- the next thing ----------------------------------------------------------------------------------------------

    def consider(self, now: float, kid: Kid) -> None:
        house = self._house
        if kid.call is not None or not house.epoch or house.kids.get(kid.name) is not kid:
            return
        if not kid.slot and self._next_order(now, kid):
            return
        goal = None if kid.given_up else self._goal(kid)
        step = None if goal is None else next_step(kid.env, kid.life, goal)
        if goal is None or (step is None and kid.given_up):
            self._release(kid)
        elif self.removing(kid) and (step is None or (self._stubs.is_gone(kid.stub) and not goal.clear)):
            self._removed(now, kid)
        elif self._stubs.is_lost(kid.stub):
            self._release(kid)
            self._strand(now, kid)
        elif step is None and self._stubs.is_ready(kid.stub):
            self._arrived(now, kid)
        elif step is None:  # so it was when the table was written; its boot stub is asked
            self._release(kid)
            self.conclude(now, kid, "pending", "")
        elif not house.active:
            self._release(kid)
            self.conclude(now, kid, "refused", PASSIVE)
        else:
            self.conclude(now, kid, "pending", "")
            self._go_on(now, kid, step)

    def _go_on(self, now: float, kid: Kid, step: Step) -> None:
        if now < kid.not_before:
            self._release(kid)
            self._house.agenda.by(("kid", kid.name), kid.not_before)
        elif not self._stubs.is_ready(kid.stub):
            self._release(kid)  # it comes again when the boot stub is adopted, or lost
        elif step == "clear" and kid.orphans:
            self.give_up(now, kid, "failed", ORPHANS)
        elif step == "clear":
            self._release(kid)
            self._subtrees.clear(now, kid)
        elif step in AFTER_INTENT and self._keeper.saved < kid.intent:
            self._keeper.wait(kid)
        elif kid.slot:
            self._do(now, kid, step)
        elif self._slots < self._house.charge.role.parallel:
            self._slots += 1
            kid.slot = True
            self._do(now, kid, step)
        elif not kid.queued:
            kid.queued = True
            heapq.heappush(self._queue, (kid.index, kid.name))

    def pump(self, now: float) -> None:
        """At the end of an input: those who wait for a slot, in their order."""
        while self._queue and self._slots < self._house.charge.role.parallel:
            kid = self._house.kids.get(heapq.heappop(self._queue)[1])
            if kid is not None and kid.queued:
                kid.queued = False
                self.consider(now, kid)

    def _do(self, now: float, kid: Kid, step: Step) -> None:
        house = self._house
        kid.commands += 1
        if kid.commands > house.settings.max_commands:
            self.give_up(now, kid, "failed", f"went round in circles: {kid.commands - 1} commands, next {step}")
            return
        self._send(now, kid, step, partial(self._answered, kid))

    def _send(self, now: float, kid: Kid, step: Step, done: Callable[[float, Call, Answer | None], None]) -> None:
        house = self._house
        self._stubs.contacted(now, kid.stub)
        if step == "deploy":
            if kid.deployed:  # on the same boot stub, of which the table tells: this need not be saved first
                kid.attempt = house.next_attempt()
            kid.deployed = True
        elif step == "uninstall":  # the next deployment is another; and a late call of this one will be stale
            kid.attempt, kid.deployed = house.next_attempt(), True
        kid.sent = True
        charge = house.charge_of(kid, self._stubs.where(kid.stub)) if step in WITH_CHARGE or step == "inspect" else None
        message: BipCall | InspectCall
        if step == "inspect":
            assert charge is not None
            message = InspectCall(house.call_id(), kid.path, house.me, charge)
        else:
            assert step != "clear"
            message = BipCall(house.call_id(), step, kid.path, house.epoch, kid.attempt, house.me, charge)
        kid.call = self._calls.send(now, kid.stub, message, done, kid.subtree.epoch)

    # --- what came of it ---------------------------------------------------------------------------------------------

    def _answered(self, kid: Kid, now: float, call: Call, answer: Answer | None) -> None:
        if kid.call != call.id:
            return
        kid.call, kid.answered_at = None, now
        if answer is None:
            kid.unsure = True
            self._failed(now, kid, "unreachable", call.why, False)
        elif isinstance(answer, InspectAnswer):
            assert call.message.charge is not None
            self._inspected(now, kid, call.message.charge.generation, answer)
        else:
            assert isinstance(call.message, BipCall)
            self._obeyed(now, kid, call, call.message.verb, answer)
        self.consider(now, kid)

    def _inspected(self, now: float, kid: Kid, generation: str, answer: InspectAnswer) -> None:
        kid.env, kid.life, kid.prints, kid.row = answer.env, answer.life, answer.have, None
        if answer.error:
            self._failed(now, kid, "failed", answer.error, answer.final)
            return
        kid.tries = 0
        rollout = self._house.rollout
        if rollout is None or rollout.generation != generation:
            return  # the description has changed since: it is inspected again
        kid.checked = True
        kid.rework = rework(answer.have, answer.want)
        kid.leaf_next = kid.initiator and not answer.initiator and bool(kid.rework)
        if kid.initiator and not answer.initiator and (kid.orphans or not kid.rework):
            self.give_up(now, kid, "failed", ORPHANS)
        elif kid.leaf_next and not rollout.prune:
            self._failed(
                now, kid, "failed", "it will not be an initiator any more, but its children are to be kept", True
            )
        else:
            kid.generation = "" if kid.rework else generation
            self._keeper.touch(now, kid)

    def _obeyed(self, now: float, kid: Kid, call: Call, verb: Verb, answer: BipAnswer) -> None:
        self._took(now, kid, verb, answer)
        if answer.outcome == "done":
            kid.tries = 0
            if verb in NEW_INCARNATION:
                self._subtrees.new_incarnation(kid, call.epoch)
            if verb in ("restart", "start"):
                kid.restart = False
            if verb in ("deploy", "configure-managent"):
                self._renewed(kid, call)
                kid.orphans = kid.initiator and not answer.initiator
                if kid.orphans:
                    self.give_up(now, kid, "failed", ORPHANS)
            if verb == "deploy":
                own = tuple((span.step, span.ms) for span in answer.spans)
                kid.steps = (*own, (7, max(0, int((now - call.began) * 1000))))[-MAX_STEPS:]
            if not self.removing(kid):
                self._keeper.touch(now, kid)
        elif answer.outcome == "refused":
            goal = self._goal(kid)
            if goal is None or next_step(kid.env, kid.life, goal) == verb:
                self._failed(now, kid, "refused", answer.reason, answer.final)
        elif answer.outcome == "failed":
            reason = " | ".join((answer.reason, *answer.tail))
            self._failed(now, kid, "failed", reason, answer.final)
        elif answer.outcome == "stale":
            self._keeper.verify()
            self._failed(now, kid, "failed", f"boot stub {kid.stub} obeys another initiator: {answer.reason}", False)

    def _renewed(self, kid: Kid, call: Call) -> None:
        """It is by the description that the call was made under, which may be the one before the last by now."""
        assert call.message.charge is not None
        kid.generation, kid.rework = call.message.charge.generation, ""
        kid.checked = kid.generation == self._house.charge.charge.generation
        kid.leaf_next = kid.restart = False
        kid.subtree.has_charge = kid.checked and kid.place is not None and kid.place.slice == call.message.charge.domain

    def is_initiator(self, now: float, kid: Kid, yes: bool) -> None:
        """The table must say so before it is uninstalled: else a successor would not know of its subtree."""
        if kid.initiator != yes:
            kid.initiator = yes
            kid.intent = self._keeper.touch(now, kid)

    def is_cleared(self, now: float, kid: Kid) -> None:
        """Its subtree is gone, and the table says so before it is changed itself."""
        kid.subtree.cleared, kid.given_up = True, False
        kid.intent = self._keeper.touch(now, kid)
        self.consider(now, kid)

    def _took(self, now: float, kid: Kid, verb: Verb, answer: BipAnswer) -> None:
        """The state that an answer tells."""
        kid.row = None
        if answer.outcome == "stale":
            return
        kid.unsure = False
        if answer.outcome == "unknown":
            kid.env = kid.life = "non-existent"
            return
        kid.env, kid.life, kid.prints = answer.env, answer.life, answer.prints
        if answer.env == "installed" and answer.life != "non-existent":
            made = answer.outcome == "done" and verb in ("deploy", "configure-managent")
            if answer.initiator or (made and kid.subtree.cleared):
                self.is_initiator(now, kid, answer.initiator)

    def _failed(self, now: float, kid: Kid, outcome: Outcome, reason: str, final: bool) -> None:
        """Again later, or given up."""
        house, settings = self._house, self._house.settings
        kid.tries += 1
        self._release(kid)
        if not final and kid.tries <= house.charge.role.retries:
            kid.not_before = now + min(settings.retry_min_s * 2 ** (kid.tries - 1), settings.retry_max_s)
            return
        self.give_up(now, kid, outcome, reason)

    def give_up(self, now: float, kid: Kid, outcome: Outcome, reason: str) -> None:
        """Until another rollout, or an order, takes it up again."""
        kid.given_up = True
        if kid.covered and self._house.rollout is not None:
            kid.tried = self._house.rollout.generation
        self._house.warn(f"{kid.path} on boot stub {kid.stub}: {outcome}: {reason}"[:1000])
        self.conclude(now, kid, outcome, reason)
        self._release(kid)

    def _arrived(self, now: float, kid: Kid) -> None:
        house = self._house
        self._release(kid)
        if kid.covered and house.rollout is not None and kid.want in RUNS:
            if kid.generation != house.rollout.generation:
                kid.generation = house.rollout.generation
                self._keeper.touch(now, kid)
        kid.tries = kid.commands = 0
        self.conclude(now, kid, "done", "")
        if kid.initiator and kid.covered:
            self._subtrees.tell(now, kid)

    def _removed(self, now: float, kid: Kid) -> None:
        self._release(kid)
        left = [ref.name for ref in kid.left if not self._stubs.is_gone(ref.name)]
        if left:
            names = ", ".join(left)
            self.conclude(now, kid, "unreachable", f"an older deployment may still be on boot stub {names}")
        else:
            self.forget(now, kid)

    def forget(self, now: float, kid: Kid) -> None:
        """It is gone, and so is its row."""
        self._release(kid)
        kid.covered = False
        self._house.recount(kid)
        self._stubs.drop_kid(kid)
        del self._house.kids[kid.name]
        for what in ("kid", "tell", "watch"):
            self._house.agenda.drop((what, kid.name))
        self._keeper.touch(now)

    def conclude(self, now: float, kid: Kid, outcome: Outcome, reason: str) -> None:
        if (kid.outcome, kid.reason) != (outcome, reason[:500]):
            kid.outcome, kid.reason, kid.row = outcome, reason[:500], None
            if outcome != "pending":
                self._keeper.touch(now, kid)
            self._house.recount(kid)

    def _release(self, kid: Kid) -> None:
        if kid.slot:
            kid.slot = False
            self._slots -= 1

    def interrupt(self, kid: Kid) -> None:
        """Its boot stub is lost: nothing of it is under way any more."""
        kid.unsure = kid.unsure or kid.call is not None
        kid.call = None
        kid.queued = False
        self._release(kid)

    # --- orders ------------------------------------------------------------------------------------------------------

    def order(self, now: float, kid: Kid, call: str, verb: Verb, done: Ordered) -> None:
        """One command of an operator, when the child is between two of ours. `call`: whose it is."""
        self._orders.setdefault(kid.name, []).append((call, verb, done))
        self.consider(now, kid)

    def abandon_order(self, kid: Kid, call: str) -> None:
        """Nobody waits for it any more."""
        left = [one for one in self._orders.pop(kid.name, ()) if one[0] != call]
        if left:
            self._orders[kid.name] = left

    def _next_order(self, now: float, kid: Kid) -> bool:
        """An order was sent."""
        waiting = self._orders.get(kid.name)
        if not waiting:
            return False
        if self._stubs.is_lost(kid.stub):
            for *_, done in self._orders.pop(kid.name):
                done(now, "unreachable", kid.reason or f"boot stub {kid.stub} does not answer")
            return False
        if not self._stubs.is_ready(kid.stub):
            return False
        _, verb, done = waiting.pop(0)
        if not waiting:
            del self._orders[kid.name]
        self._send(now, kid, verb, partial(self._order_answered, kid, verb, done))
        return True

    def _order_answered(
        self, kid: Kid, verb: Verb, done: Ordered, now: float, call: Call, answer: Answer | None
    ) -> None:
        if kid.call == call.id:
            kid.call, kid.answered_at = None, now
        if answer is None:
            done(now, "unreachable", call.why)
        else:
            assert isinstance(answer, BipAnswer)
            outcome: Outcome = "failed"
            if answer.outcome in ("done", "refused"):
                outcome = "done" if answer.outcome == "done" else "refused"
            self._took(now, kid, verb, answer)
            if outcome == "done":
                if verb in NEW_INCARNATION:
                    self._subtrees.new_incarnation(kid, call.epoch)
                kid.want, kid.tries, kid.restart = LEAVES[verb], 0, False
                kid.given_up = kid.given_up and kid.orphans
                if verb in ("deploy", "configure-managent"):
                    self._renewed(kid, call)
                self._keeper.touch(now, kid)
            reason = " | ".join((answer.reason, *answer.tail)) if outcome != "done" else ""
            if answer.outcome == "unknown":
                reason = f"no such managent on boot stub {kid.stub}"
            self._house.recount(kid)
            done(now, outcome, reason[:500])
        self.consider(now, kid)
