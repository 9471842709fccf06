"""When what is sent from one endpoint to another arrives, under the verdict of the moment. Pure: time and chance are
arguments.

A `Lane` is one direction of one pair. What waits in it is bounded: a link that is too narrow for what is sent loses the
rest, as a full queue of a router does.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fabric.net.rules import Verdict

QUEUE_S = 2.0
"""A narrow link holds what it carries in so long, and at least QUEUE_LEAST_BYTES; the rest is lost."""
QUEUE_LEAST_BYTES = 64 * 1024


@dataclass(slots=True)
class Lane:
    """`sent_at`: when the last byte so far will have left the narrow link; `arrives_at`: when the last piece arrives.
    Seconds of the caller's clock."""

    sent_at: float = 0.0
    arrives_at: float = 0.0

    def send(self, verdict: Verdict, size: int, now: float, chance: Random) -> float | None:
        """When these `size` bytes arrive; None: they are lost. Order is kept."""
        if verdict.drop and chance.random() < verdict.drop:
            return None
        leaves = now
        if verdict.bytes_per_s:
            begin = max(now, self.sent_at)
            room = max(QUEUE_LEAST_BYTES, verdict.bytes_per_s * QUEUE_S)
            if (begin - now) * verdict.bytes_per_s + size > room:
                return None
            leaves = self.sent_at = begin + size / verdict.bytes_per_s
        late_s = (verdict.delay_ms + verdict.jitter_ms * chance.random()) / 1000
        self.arrives_at = max(self.arrives_at, leaves + late_s)
        return self.arrives_at
