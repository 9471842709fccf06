"""`InspectCall`s under way: what is there is compared with what the repository would give; nothing changes.

A call that is repeated while its repository is being asked is answered once, on the way by which it came last. There is
a bound on how many are under way; one more is dropped, and its sender asks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from deploy.messages import InspectAnswer, InspectCall
from deploy.records import Prints
from deploy.stub.effects import Resolve, Send, Step, StepFailed
from deploy.stub.managent import Managent

if TYPE_CHECKING:
    from deploy.resolved import Resolved

MAX_ERROR_CHARS = 500


@dataclass(slots=True)
class _Inspection:
    call: InspectCall
    sender: str


class Inspections:
    """`stub`: the boot stub's name."""

    def __init__(self, stub: str, most: int) -> None:
        self._stub, self._most = stub, most
        self._open: dict[int, _Inspection] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._open

    def begin(self, number: int, sender: str, call: InspectCall) -> list[Step]:
        for inspection in self._open.values():
            if inspection.call.call == call.call:
                inspection.sender = sender
                return []
        if len(self._open) >= self._most:
            return []
        self._open[number] = _Inspection(call, sender)
        return [Step(number, Resolve(call.managent, call.charge))]

    def end(self, number: int, result: object, managents: Mapping[str, Managent]) -> Send:
        """`result`: a Resolved, or a StepFailed."""
        inspection = self._open.pop(number)
        call = inspection.call
        managent = managents.get(call.managent)
        failed = result if isinstance(result, StepFailed) else None
        resolved = None if failed else cast("Resolved", result)
        answer = InspectAnswer(
            call=call.call,
            to=call.parent.path,
            managent=call.managent,
            stub=self._stub,
            env=managent.env if managent else "non-existent",
            life=managent.life if managent else "non-existent",
            have=managent.prints if managent else Prints(),
            want=resolved.prints if resolved else Prints(),
            initiator=resolved.managent.initiator is not None if resolved else False,
            error=failed.reason[:MAX_ERROR_CHARS] if failed else "",
            final=failed.final if failed else False,
        )
        return Send(inspection.sender, answer)
