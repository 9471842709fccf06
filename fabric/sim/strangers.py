"""Promise 7: what is malformed, oversized, replayed, stale or unauthenticated changes nothing, and is counted.

A stranger's frame is handed to an agent's bus in one moment; the role's state before and after must be the same, and
one of the bus's counters must have grown. A replayed order of an older epoch is a frame like any other: there the
agent's fence has to refuse it, and the state of its node must be the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from fabric.commands import Cancel, Confirm, Reserve, Stop
from fabric.messages import NodeCall
from fabric.sim.checkers.base import Violation
from fabric.sim.digest import digest
from fabric.sim.host import Process
from fabric.wire import MAX_FRAME_BYTES, BadFrame, Codec

if TYPE_CHECKING:
    from fabric.sim.world import World

HUGE = bytes(MAX_FRAME_BYTES + 1)


class Strangers:
    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self._rng = rng
        self._wrong = Codec(rng.randbytes(32))
        self._frames: dict[str, Callable[[Process], bytes | tuple[bytes, ...]]] = {
            "random bytes": lambda _: rng.randbytes(rng.randint(1, 200)),
            "nothing": lambda _: b"",
            "a truncated frame": self._truncated,
            "a frame with one bit wrong": self._flipped,
            "a huge frame": lambda _: HUGE,
            "two parts": lambda _: (b"one", b"two"),
            "a frame under another key": self._sealed,
            "a frame for an earlier incarnation": self._for_another,
        }

    def strike(self) -> str:
        """What was done, or ""."""
        running = [one.process for one in self.world.machines.values() if one.process is not None]
        ready = [one for one in running if one.bus is not None and one.agent is not None and not one.paused]
        if not ready:
            return ""
        process = self._rng.choice(ready)
        if self._rng.random() < 0.4:
            return self._replay(process)
        what = self._rng.choice(list(self._frames))
        frame = self._frames[what](process)
        if frame != b"" or what == "nothing":
            self._strike(process, frame, what)
            return f"{process.machine.name} gets {what}"
        return ""

    def _strike(self, process: Process, frame: bytes | tuple[bytes, ...], what: str) -> None:
        assert process.bus is not None
        before, counted = digest(process.agent), _counted(process)
        process.bus.hear("route:ffff", frame)
        if digest(process.agent) != before:
            self._fail(f"{process.machine.name}: {what} changed the role's state")
        if _counted(process) == counted:
            self._fail(f"{process.machine.name}: {what} was not counted")

    def _replay(self, process: Process) -> str:
        """An order of an epoch that the node has seen the end of."""
        compute = process.agent._compute if process.agent is not None else None
        if compute is None or process.bus is None:
            return ""
        for endpoint, frame in list(self.world.network.recent):
            if endpoint != process.bus.address.rpartition("/")[0]:
                continue
            try:
                to, message = self.world.codec.decode(frame)
            except BadFrame:
                continue
            order = message.command if isinstance(message, NodeCall) and to == process.guid else None
            if not isinstance(order, Reserve | Confirm | Stop | Cancel):
                continue
            if (order.epoch, order.step) < compute._fences.get(order.deployment, (0, 0)):
                before = digest((compute.ledger, compute.instances.works, compute._fences))
                process.bus.hear("route:ffff", frame)
                if digest((compute.ledger, compute.instances.works, compute._fences)) != before:
                    self._fail(f"{process.machine.name}: an old {type(order).__name__} changed what it has")
                return f"{process.machine.name} gets an old {type(order).__name__} of {order.deployment} again"
        return ""

    def _fail(self, found: str) -> None:
        if "strangers" in self.world.promises:
            raise Violation("strangers", found)

    # --- frames ------------------------------------------------------------------------------------------------------

    def _genuine(self, process: Process) -> bytes:
        frames = [frame for _, frame in self.world.network.recent]
        return self._rng.choice(frames) if frames else b""

    def _truncated(self, process: Process) -> bytes:
        frame = self._genuine(process)
        return frame[: self._rng.randrange(1, len(frame))] if frame else b""

    def _flipped(self, process: Process) -> bytes:
        frame = bytearray(self._genuine(process))
        if frame:
            frame[self._rng.randrange(len(frame))] ^= 1 << self._rng.randrange(8)
        return bytes(frame)

    def _sealed(self, process: Process) -> bytes:
        frame = self._genuine(process)
        if not frame:
            return b""
        _, message = self.world.codec.decode(frame)
        return self._wrong.encode(message, process.guid)

    def _for_another(self, process: Process) -> bytes:
        frame = self._genuine(process)
        if not frame:
            return b""
        to, message = self.world.codec.decode(frame)
        return frame if to != process.guid else self.world.codec.encode(message, "0" * 16)


def _counted(process: Process) -> int:
    assert process.bus is not None
    return sum(process.bus.counters.bad.values()) + process.bus.counters.stale
