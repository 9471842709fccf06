"""What runs where it should not: an older deployment of a child on a boot stub that came back.

A boot stub names it in a beat; it is shut down and uninstalled there, under our epoch and an attempt that is older than
none, so that it obeys. Nothing else depends on it: when the boot stub is lost meanwhile, the next beat begins anew.
If a stray is an initiator, its subtree is not its own any more, and stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from deploy.initiator.calls import Answer, Call, Calls
from deploy.initiator.house import House
from deploy.initiator.kid import Kid
from deploy.initiator.steps import Goal, next_step
from deploy.messages import BipAnswer, BipCall, ManagentBeat
from deploy.states import EnvState, LifeState

GONE = Goal("non-existent")
MAX_STRAYS = 20_000


class Strays:
    """`clean(now, kid, stub)`: nothing of it is left there."""

    def __init__(self, house: House, calls: Calls, clean: Callable[[float, Kid, str], None]) -> None:
        self._house = house
        self._calls = calls
        self._clean = clean
        self._open: dict[tuple[str, str], float] = {}
        """(boot stub, path) -> not before."""

    def found(self, now: float, stub: str, one: ManagentBeat) -> None:
        parent, _, _ = one.path.rpartition("/")
        key = (stub, one.path)
        if parent != self._house.path or not self._house.active or one.epoch > self._house.epoch:
            return
        if self._open.get(key, now) > now or not self._has_room(now, key):
            return
        self._house.info(f"{one.path} on boot stub {stub} should not be there: is removed")
        self._go_on(now, key, one.env, one.life)

    def _has_room(self, now: float, key: tuple[str, str]) -> bool:
        """Whoever may be tried again now need not be remembered."""
        if len(self._open) >= MAX_STRAYS:
            self._open = {one: not_before for one, not_before in self._open.items() if not_before > now}
        return key in self._open or len(self._open) < MAX_STRAYS

    def _go_on(self, now: float, key: tuple[str, str], env: EnvState, life: LifeState) -> None:
        stub, path = key
        kid = self._house.kid_at(path)
        if kid is not None and kid.stub == stub:
            self._open.pop(key, None)  # it has been placed here again
            return
        step = next_step(env, life, GONE)
        if step is None:
            self._open.pop(key, None)
            if kid is not None:
                self._clean(now, kid, stub)
            return
        assert step in ("shutdown", "uninstall")
        self._open[key] = float("inf")
        house = self._house
        message = BipCall(house.call_id(), step, path, house.epoch, house.attempts, house.me)
        self._calls.send(now, stub, message, partial(self._answered, key))

    def _answered(self, key: tuple[str, str], now: float, call: Call, answer: Answer | None) -> None:
        assert isinstance(call.message, BipCall)
        if isinstance(answer, BipAnswer) and answer.outcome in ("done", "unknown"):
            self._go_on(now, key, answer.env, answer.life)
        elif isinstance(answer, BipAnswer) and next_step(answer.env, answer.life, GONE) != call.message.verb:
            self._go_on(now, key, answer.env, answer.life)  # refused, as it is further than the beat said
        else:  # a beat will name it again
            self._open[key] = now + self._house.settings.retry_max_s
