"""Who commands the managents of a boot stub: beats to them, and leases that they keep alive.

Theory of operation. A *bond* is one parent, as (path, address), with its managents here. It gets a whole beat every
`beat_s`, and `change_s` after a change a beat of what changed. What an answer tells the parent is not told again. A
parent is heard by everything it sends; a managent whose `lease_s` passes without a word from it is to be shut down.
A bond without managents is forgotten.

A boot stub that was away for a while must not give a lease out anew: the parent counts on its end, and may have placed
the managent elsewhere. So with every whole beat it is written down when each parent was heard last (`Marks`), by the
machine's clock, which goes on while the boot stub does not run; after a reboot, or without a mark, every lease is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from deploy.messages import ManagentBeat, Parent, StubBeat
from deploy.records import StubRef
from deploy.states import ALIVE
from deploy.stub.effects import Send
from deploy.stub.managent import Managent
from fabric.effects import Persist

MAX_BEAT_BYTES = 3 * 1024 * 1024
"""About; a frame takes 4 MiB."""
ENTRY_BYTES = 64
LAPSE_RETRY_S = 1.0
MARKS = "leases"
NEVER = float("-inf")

_Key = tuple[str, str]


class Marks(msgspec.Struct, frozen=True):
    """In the journal. `boot`: of the machine, as its clock begins anew with each. `heard`: (path, address, when)."""

    boot: str
    heard: tuple[tuple[str, str, float], ...]


def marks_of(journal: Mapping[str, bytes], boot: str) -> dict[_Key, float]:
    """When each parent was heard last, in this boot of the machine. What can't be read counts as never."""
    try:
        marks = msgspec.json.decode(journal.get(MARKS, b""), type=Marks)
    except msgspec.DecodeError:
        return {}
    return {(path, address): at for path, address, at in marks.heard} if marks.boot == boot else {}


@dataclass(slots=True)
class _Bond:
    parent: Parent
    heard: float
    managents: dict[str, Managent] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    lengths: Counter[float] = field(default_factory=Counter)
    """Of these leases, which are few different ones: every word of the parent looks for the shortest."""
    changed: set[str] = field(default_factory=set)
    lapse_at: float | None = None
    marked: float = NEVER


class Parents:
    def __init__(self, ref: StubRef, guid: str, boot: str, beat_s: float, change_s: float, now: float) -> None:
        self._ref, self._guid, self._boot = ref, guid, boot
        self._beat_s, self._change_s = beat_s, change_s
        self._bonds: dict[_Key, _Bond] = {}
        self._of: dict[str, _Key] = {}
        self._beat_at = now + beat_s
        self._change_at: float | None = None

    def resume(self, managent: Managent, now: float, heard: Mapping[_Key, float]) -> bool:
        """`join`, after a restart of the boot stub. Whether its lease was over by then."""
        key = (managent.parent.path, managent.parent.address)
        self.join(managent, heard.get(key, NEVER))
        bond = self._bonds[key]
        lease_s = bond.leases.get(managent.path)
        if lease_s is None:
            return False
        bond.lapse_at = max(now, bond.heard + min(bond.lengths))
        return now >= bond.heard + lease_s

    def join(self, managent: Managent, now: float) -> None:
        """Note the managent's parent and lease, as they are now."""
        key = (managent.parent.path, managent.parent.address)
        if self._of.get(managent.path) not in (None, key):
            self.leave(managent.path)
        bond = self._bonds.get(key)
        if bond is None:
            bond = self._bonds[key] = _Bond(managent.parent, now)
        self._of[managent.path] = key
        bond.managents[managent.path] = managent
        lease_s = managent.charge.lease_s if managent.charge is not None and managent.life in ALIVE else 0.0
        if bond.leases.get(managent.path, 0.0) != lease_s:
            self._unlease(bond, managent.path)
            if lease_s:
                bond.leases[managent.path] = lease_s
                bond.lengths[lease_s] += 1
            self._set_lapse(bond)

    def leave(self, path: str) -> None:
        key = self._of.pop(path, None)
        if key is not None:
            bond = self._bonds[key]
            del bond.managents[path]
            bond.changed.discard(path)
            if self._unlease(bond, path):
                self._set_lapse(bond)
            if not bond.managents:
                del self._bonds[key]

    def heard(self, parent: Parent, now: float) -> None:
        bond = self._bonds.get((parent.path, parent.address))
        if bond is not None:
            bond.heard = now
            self._set_lapse(bond)

    def marks(self, again: bool) -> list[Persist]:
        """What is to be written down of when parents were heard; `again`: also of those of whom there is a mark."""
        leased = [bond for bond in self._bonds.values() if bond.leases]
        if not any(bond.marked < bond.heard and (again or bond.marked == NEVER) for bond in leased):
            return []
        for bond in leased:
            bond.marked = bond.heard
        heard = tuple((bond.parent.path, bond.parent.address, bond.heard) for bond in leased)
        return [Persist(((MARKS, msgspec.json.encode(Marks(self._boot, heard))),), ())]

    def soon(self, now: float) -> None:
        """A whole beat to every parent, `change_s` from now: it is a new incarnation of the boot stub that speaks."""
        self._beat_at = now + self._change_s

    def changed(self, managent: Managent, now: float) -> None:
        """Tell its parent soon. The managent has joined."""
        self._bonds[self._of[managent.path]].changed.add(managent.path)
        if self._change_at is None:
            self._change_at = now + self._change_s

    def whole(self, parent: Parent, to: str) -> list[Send]:
        """All that parents of this path have here, whatever the address: who asks may be a new incarnation."""
        mine = [one for key, bond in self._bonds.items() if key[0] == parent.path for one in bond.managents.values()]
        return self._beats(parent.path, to, mine, whole=True)

    def next_deadline(self) -> float:
        change_at = self._beat_at if self._change_at is None else self._change_at
        lapses = (bond.lapse_at for bond in self._bonds.values() if bond.lapse_at is not None)
        return min(self._beat_at, change_at, *lapses)

    def tick(self, now: float) -> tuple[list[Send | Persist], list[Managent]]:
        """(beats that are due, managents whose lease has lapsed)."""
        sends: list[Send | Persist] = []
        if now >= self._beat_at:
            sends += self.marks(again=True)
            self._beat_at = now + self._beat_s
            self._change_at = None
            for bond in self._bonds.values():
                bond.changed.clear()
                sends += self._beats(bond.parent.path, bond.parent.address, bond.managents.values(), whole=True)
        elif self._change_at is not None and now >= self._change_at:
            self._change_at = None
            for bond in self._bonds.values():
                if bond.changed:
                    some = [bond.managents[path] for path in sorted(bond.changed)]
                    bond.changed.clear()
                    sends += self._beats(bond.parent.path, bond.parent.address, some, whole=False)
        lapsed: list[Managent] = []
        for bond in self._bonds.values():
            if bond.lapse_at is not None and now >= bond.lapse_at:
                over = [path for path, lease_s in bond.leases.items() if now >= bond.heard + lease_s]
                lapsed += [bond.managents[path] for path in over]
                bond.lapse_at = now + LAPSE_RETRY_S
        return sends, lapsed

    def _unlease(self, bond: _Bond, path: str) -> bool:
        """Whether it had a lease."""
        lease_s = bond.leases.pop(path, 0.0)
        if lease_s:
            bond.lengths[lease_s] -= 1
            if not bond.lengths[lease_s]:
                del bond.lengths[lease_s]
        return bool(lease_s)

    def _set_lapse(self, bond: _Bond) -> None:
        bond.lapse_at = bond.heard + min(bond.lengths) if bond.lengths else None

    def _beats(self, path: str, to: str, managents: Iterable[Managent], whole: bool) -> list[Send]:
        """One message; without reasons, when it would be too large for one with them: a parent can do without these,
        and not without a whole beat. Should it be too large even so, then several, none of them whole."""
        # without those who are being deployed, or about to be forgotten
        beats = [managent.beat() for managent in managents if managent.env != "non-existent"]
        if sum(map(_size, beats)) > MAX_BEAT_BYTES:
            beats = [msgspec.structs.replace(beat, reason="") if beat.reason else beat for beat in beats]
        portions: list[list[ManagentBeat]] = [[]]
        size = 0
        for beat in beats:
            size += _size(beat)
            if size > MAX_BEAT_BYTES and portions[-1]:
                portions.append([])
                size = _size(beat)
            portions[-1].append(beat)
        whole = whole and len(portions) == 1
        return [Send(to, StubBeat(path, self._ref, self._guid, whole, tuple(beats))) for beats in portions]


def _size(beat: ManagentBeat) -> int:
    """Bytes on the wire, about."""
    return ENTRY_BYTES + len(beat.path) + 4 * len(beat.reason)
