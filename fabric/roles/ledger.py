"""A node's capacity: what it has, what is reserved, what runs. Pure, and the only authority: an over-commit is
impossible as long as every change goes through here (promise 1).

A *reservation* belongs to a deployment's ordinal and ends by itself (`expire`). A *placement* (a confirmed ordinal)
stays until it is released. Both hold `Resources`. An ordinal is in at most one of the two tables.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.resources import ZERO, Resources

Slot = tuple[str, int]
"""(deployment id, ordinal)."""


@dataclass(frozen=True, slots=True)
class Reservation:
    resources: Resources
    ticket: int
    expires_s: float


class Ledger:
    """`total` is what the node offers. What was confirmed before the node was made smaller stays; nothing new fits."""

    def __init__(self, total: Resources) -> None:
        self.total = total
        self.changes = 0
        """Grows with every change of what is free."""
        self._used = ZERO
        self._reserved: dict[Slot, Reservation] = {}
        self._placed: dict[Slot, Resources] = {}

    @property
    def free(self) -> Resources:
        return self.total.minus(self._used)

    @property
    def used(self) -> Resources:
        return self._used

    @property
    def reserved_count(self) -> int:
        return len(self._reserved)

    @property
    def placed_count(self) -> int:
        return len(self._placed)

    def fits(self, need: Resources) -> int:
        """How many more of `need` fit now."""
        return self.free.holds(need)

    def held_by_others(self, deployment: str, need: Resources) -> tuple[int, int]:
        """(how many more of `need` would fit without other deployments' reservations, the oldest of their tickets)."""
        others = [entry for (owner, _), entry in self._reserved.items() if owner != deployment]
        if not others:
            return 0, 0
        back = ZERO
        for entry in others:
            back = back + entry.resources
        more = self.total.minus(self._used_without(back)).holds(need) - self.fits(need)
        return max(0, more), min(entry.ticket for entry in others)

    def holders(self, deployment: str) -> tuple[tuple[str, Resources], ...]:
        """(another deployment that has reservations, what would be free more without them), the oldest first."""
        reserved: dict[str, Resources] = {}
        for (owner, _), entry in sorted(self._reserved.items(), key=lambda item: item[1].ticket):
            if owner != deployment:
                reserved[owner] = reserved.get(owner, ZERO) + entry.resources
        return tuple(
            (owner, self.total.minus(self._used_without(back)).minus(self.free)) for owner, back in reserved.items()
        )

    def _use(self, used: Resources) -> None:
        self._used = used
        self.changes += 1

    def _used_without(self, back: Resources) -> Resources:
        return self._used.minus(back)

    def reserve(self, slot: Slot, need: Resources, ticket: int, expires_s: float) -> bool:
        """True when `slot` is now set aside (again: with the later expiry) or placed already."""
        if slot in self._placed:
            return True
        entry = self._reserved.get(slot)
        if entry is not None and entry.resources == need:
            self._reserved[slot] = Reservation(need, ticket, max(expires_s, entry.expires_s))
            return True
        if entry is not None:
            self.cancel(slot)
        if self.fits(need) < 1:
            return False
        self._reserved[slot] = Reservation(need, ticket, expires_s)
        self._use(self._used + need)
        return True

    def confirm(self, slot: Slot, need: Resources) -> bool:
        """Turn a reservation into a placement; without one, place it if it fits. True when it is placed."""
        if slot in self._placed:
            return True
        self.cancel(slot)
        if self.fits(need) < 1:
            return False
        self.adopt(slot, need)
        return True

    def adopt(self, slot: Slot, need: Resources) -> None:
        """Place without asking whether it fits: for what the journal says is here already."""
        if slot not in self._placed:
            self._placed[slot] = need
            self._use(self._used + need)

    def cancel(self, slot: Slot) -> None:
        entry = self._reserved.pop(slot, None)
        if entry is not None:
            self._use(self._used.minus(entry.resources))

    def cancel_deployment(self, deployment: str) -> None:
        for slot in [slot for slot in self._reserved if slot[0] == deployment]:
            self.cancel(slot)

    def cancel_all(self) -> None:
        """Give every reservation back; what was confirmed stays."""
        for slot in list(self._reserved):
            self.cancel(slot)

    def release(self, slot: Slot) -> None:
        need = self._placed.pop(slot, None)
        if need is not None:
            self._use(self._used.minus(need))

    def expire(self, now: float) -> list[Slot]:
        """Give back what nobody confirmed in time; the slots that were."""
        over = [slot for slot, entry in self._reserved.items() if entry.expires_s <= now]
        for slot in over:
            self.cancel(slot)
        return over

    def next_expiry(self) -> float | None:
        if not self._reserved:
            return None
        return min(entry.expires_s for entry in self._reserved.values())
