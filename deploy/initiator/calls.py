"""Calls to boot stubs that wait for their answer: each repeated with the same id, with back-off, until it is answered
or given up.

"running" is no answer, but it is a sign of life: it starts the patience again, up to `run_limit_s` for the whole call.
A boot stub that is lost answers nothing: whoever notices cancels its calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from deploy.initiator.house import House
from deploy.messages import BipAnswer, BipCall, InspectAnswer, InspectCall
from deploy.records import StubRef

Answer = BipAnswer | InspectAnswer
Done = Callable[[float, "Call", Answer | None], None]
"""`Answer` None: given up; `Call.why` says why."""


class Addresses(Protocol):
    def where(self, stub: str) -> StubRef: ...


@dataclass(slots=True, eq=False)
class Call:
    id: str
    stub: str
    message: BipCall | InspectCall
    done: Done
    began: float
    heard_at: float
    wait_s: float
    epoch: int = 0
    """Of the initiator that the managent was when the call was sent."""
    why: str = ""


class Calls:
    def __init__(self, house: House, addresses: Addresses) -> None:
        self._house = house
        self._addresses = addresses
        self._open: dict[str, Call] = {}
        self._by_stub: dict[str, dict[str, Call]] = {}

    def send(self, now: float, stub: str, message: BipCall | InspectCall, done: Done, epoch: int = 0) -> str:
        """Returns the call's id."""
        call = Call(message.call, stub, message, done, now, now, self._house.settings.command_repeat_s, epoch)
        self._open[call.id] = call
        self._by_stub.setdefault(stub, {})[call.id] = call
        self._house.send(self._addresses.where(stub).address, message)
        self._house.agenda.set(("call", call.id), now + call.wait_s)
        return call.id

    def on_answer(self, now: float, answer: Answer) -> None:
        call = self._open.get(answer.call)
        if call is None or call.message.managent != answer.managent:
            return  # late, or repeated
        if isinstance(answer, BipAnswer) and answer.outcome == "running":
            call.heard_at = now
            call.wait_s = self._house.settings.command_repeat_max_s
            self._house.agenda.set(("call", call.id), now + call.wait_s)
            return
        self._forget(call)
        call.done(now, call, answer)

    def waits(self, stub: str) -> bool:
        """Calls to this boot stub are open."""
        return bool(self._by_stub.get(stub))

    def cancel(self, now: float, stub: str, why: str) -> None:
        """Give up all calls to this boot stub."""
        for call in list(self._by_stub.get(stub, {}).values()):
            self._give_up(now, call, why)

    def on_time(self, now: float, call_id: str) -> None:
        call = self._open[call_id]
        settings = self._house.settings
        verb = call.message.verb if isinstance(call.message, BipCall) else "inspect"
        if now - call.began >= settings.run_limit_s:
            self._give_up(now, call, f"{verb} still runs on boot stub {call.stub} after {settings.run_limit_s:g} s")
        elif now - call.heard_at >= settings.give_up_s:
            self._give_up(now, call, f"boot stub {call.stub} did not answer {verb} for {settings.give_up_s:g} s")
        else:
            call.wait_s = min(call.wait_s * 2, settings.command_repeat_max_s)
            self._house.send(self._addresses.where(call.stub).address, call.message)
            self._house.agenda.set(("call", call.id), now + call.wait_s)

    def _give_up(self, now: float, call: Call, why: str) -> None:
        self._forget(call)
        call.why = why
        call.done(now, call, None)

    def _forget(self, call: Call) -> None:
        del self._open[call.id]
        at_stub = self._by_stub[call.stub]
        del at_stub[call.id]
        if not at_stub:
            del self._by_stub[call.stub]
        self._house.agenda.drop(("call", call.id))
