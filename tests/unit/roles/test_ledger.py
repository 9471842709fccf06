"""The capacity ledger, driven at random: never more than there is, and everything comes back."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fabric.resources import ZERO, Resources
from fabric.roles.ledger import Ledger

NEEDS = [Resources(1, 512, 0), Resources(4, 8192, 100), Resources(8, 1024, 50)]
SLOTS = st.tuples(st.sampled_from(["d-a", "d-b"]), st.integers(0, 9))


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(Resources(32, 32768, 1000))
        self.reserved: dict = {}
        self.placed: dict = {}
        self.now = 0.0

    @rule(slot=SLOTS, need=st.sampled_from(NEEDS), ttl=st.floats(0.1, 5))
    def reserve(self, slot, need, ttl):
        if self.ledger.reserve(slot, need, 1, self.now + ttl) and slot not in self.placed:
            before = self.reserved.get(slot)
            expires = self.now + ttl
            if before and before[0] == need:
                expires = max(expires, before[1])
            self.reserved[slot] = (need, expires)
        elif slot not in self.placed:
            self.reserved.pop(slot, None)

    @rule(slot=SLOTS, need=st.sampled_from(NEEDS))
    def confirm(self, slot, need):
        placed = self.ledger.confirm(slot, need)
        self.reserved.pop(slot, None)
        if placed:
            self.placed.setdefault(slot, need)
        else:
            assert self.ledger.fits(need) == 0

    @rule(slot=SLOTS)
    def release(self, slot):
        self.ledger.release(slot)
        self.placed.pop(slot, None)

    @rule(deployment=st.sampled_from(["d-a", "d-b"]))
    def cancel(self, deployment):
        self.ledger.cancel_deployment(deployment)
        self.reserved = {slot: entry for slot, entry in self.reserved.items() if slot[0] != deployment}

    @rule(seconds=st.floats(0.1, 3))
    def pass_time(self, seconds):
        self.now += seconds
        self.ledger.expire(self.now)
        self.reserved = {slot: entry for slot, entry in self.reserved.items() if entry[1] > self.now}

    @invariant()
    def adds_up(self):
        total = ZERO
        for need, _ in self.reserved.values():
            total = total + need
        for need in self.placed.values():
            total = total + need
        assert self.ledger.used == total
        assert total.vcpus <= 32
        assert total.memory_mib <= 32768
        assert total.disk_mib <= 1000
        assert self.ledger.reserved_count == len(self.reserved)
        assert self.ledger.placed_count == len(self.placed)


TestLedger = LedgerMachine.TestCase


def test_what_others_hold_is_named_with_the_oldest_ticket():
    ledger = Ledger(Resources(16, 65536, 1000))
    need = NEEDS[1]
    assert ledger.reserve(("d-a", 0), need, 9, 5.0)
    assert ledger.reserve(("d-b", 0), need, 4, 5.0)
    assert ledger.held_by_others("d-a", need) == (1, 4)
    assert ledger.held_by_others("d-c", need) == (2, 4)
    ledger.expire(5.0)
    assert ledger.held_by_others("d-c", need) == (0, 0)
