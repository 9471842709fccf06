"""Planted bugs, each a patch of the code that the simulator runs: it has to turn red for every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec

from fabric.effects import Persist
from fabric.gate import Gate
from fabric.roles.agent import Agent
from fabric.roles.compute import Compute
from fabric.roles.instances import Instances
from fabric.roles.leading import Leading
from fabric.roles.ledger import Ledger
from fabric.roles.recordkeeper import RecordKeeper
from fabric.roles.repair import Repair
from fabric.roles.stopping import Stopping
from fabric.roles.sweep import Sweep
from fabric.roles.verify import Verifier
from fabric.roles.work import Work
from fabric.sim.fetches import Fetches
from zk.election import Candidacy
from zk.tree import Multi, SessionState, Set

Patches = list[tuple[type, str, Any]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """`promises`: one of them has to be found broken. `seed`: where that is so, for who does not want to search."""

    name: str
    promises: frozenset[str]
    seed: int
    patches: Callable[[], Patches] = field(repr=False)

    @contextmanager
    def planted(self) -> Iterator[None]:
        found = [patch.object(where, name, new) for where, name, new in self.patches()]
        for one in found:
            one.start()
        try:
            yield
        finally:
            for one in found:
                one.stop()


MUTATIONS: dict[str, Mutation] = {}


def mutation(*promises: str, seed: int = 0) -> Callable[[Callable[[], Patches]], Callable[[], Patches]]:
    def add(patches: Callable[[], Patches]) -> Callable[[], Patches]:
        name = patches.__name__
        MUTATIONS[name] = Mutation(name, frozenset(promises), seed, patches)
        return patches

    return add


def nothing(*_: object, **__: object) -> None:
    """Instead of what should be done."""


@mutation("strangers", "once", "returning", "orphans", "heal", "planned", seed=64)
def orders_of_any_epoch_are_obeyed() -> Patches:
    obey = Compute._obey

    def blind(self: Compute, now: float, command: Any) -> Any:
        self._fences.clear()
        return obey(self, now, command)

    return [(Compute, "_obey", blind)]


@mutation("capacity", seed=1)
def reserve_without_a_look_at_capacity() -> Patches:
    return [(Ledger, "fits", lambda self, need: 1000)]


@mutation("planned", seed=1)
def the_plan_is_written_after_the_confirmation() -> Patches:
    write = RecordKeeper.write

    def late(self: RecordKeeper, now: float, record: Any, then: Callable[[float], None]) -> None:
        self._record = record
        then(now)
        write(self, now, record, nothing)

    return [(RecordKeeper, "write", late)]


@mutation("orphans", seed=44)
def reservations_never_end() -> Patches:
    return [(Ledger, "expire", lambda self, now: []), (Ledger, "next_expiry", lambda self: None)]


@mutation("leading", seed=1)
def a_leader_goes_on_after_lost() -> Patches:
    drop, on_session = Agent._drop_leadership, Candidacy.on_session

    def keep(self: Agent, why: str, session_lives: bool = False) -> None:
        if session_lives:
            drop(self, why, session_lives)

    def deaf(self: Candidacy, event: Any) -> Any:
        return [] if event.state is SessionState.LOST else on_session(self, event)

    return [(Agent, "_drop_leadership", keep), (Agent, "_count_out", nothing), (Candidacy, "on_session", deaf)]


@mutation("heal", "orphans", "once", "returning", seed=40)
def the_journal_is_acknowledged_before_it_is_synced() -> Patches:
    def hasty(self: Gate[Any], effects: Any) -> None:
        for effect in effects:
            if self._closed:
                return
            if isinstance(effect, Persist):
                self._journal.append(effect.puts, effect.deletes, nothing)
            else:
                self._perform(effect)

    return [(Gate, "put", hasty)]


@mutation("rotten", seed=1)
def chunks_are_not_verified() -> Patches:
    return [(Fetches, "is_sound", staticmethod(lambda manifest, chunk, data: True))]


@mutation("outage", seed=2)
def a_suspended_coordinator_goes_on() -> Patches:
    return [(Leading, "hold", nothing)]


@mutation("once", "orphans", "returning", seed=5)
def stopped_is_said_before_it_is_so() -> Patches:
    progress = Work.progress

    def early(self: Work, refused: tuple[int, ...] = ()) -> Any:
        return msgspec.structs.replace(progress(self, refused), stopping="")

    return [(Work, "progress", early)]


@mutation("returning", "once", seed=13)
def a_node_registers_without_looking_at_the_records() -> Patches:
    return [(Verifier, "arrive", nothing), (Verifier, "checks", property(lambda self: ()))]


@mutation("epochs", seed=1)
def records_are_written_whatever_their_version() -> Patches:
    ask = RecordKeeper._ask

    def any_version(self: RecordKeeper, op: Any, then: Any) -> None:
        if isinstance(op, Set) and self.epoch:
            op = Set(op.path, op.data)
        elif isinstance(op, Multi) and self.epoch:
            op = Multi(tuple(Set(one.path, one.data) if isinstance(one, Set) else one for one in op.ops))
        ask(self, op, then)

    return [(RecordKeeper, "_ask", any_version)]


@mutation("ends", seed=70)
def nobody_looks_for_what_has_no_owner() -> Patches:
    return [(Sweep, "_unowned", nothing)]


@mutation("heal", "ends", seed=1)
def instances_that_exit_stay_down() -> Patches:
    return [(Instances, "_back_off", nothing)]


@mutation("once", "returning", seed=4)
def what_is_being_stopped_is_not_waited_for() -> Patches:
    def at_once(self: Stopping, now: float, gathered: Any) -> None:
        self._targets.clear()
        self._end(now)

    return [(Stopping, "_answered", at_once)]


@mutation("capacity", seed=123)
def confirm_without_a_look_at_capacity() -> Patches:
    def confirm(self: Ledger, slot: Any, need: Any) -> bool:
        self.cancel(slot)
        self.adopt(slot, need)
        return True

    return [(Ledger, "confirm", confirm)]


@mutation("capacity", seed=116)
def what_is_told_to_stop_gives_its_place_back_at_once() -> Patches:
    mark = Instances.mark_stopping

    def hasty(self: Instances, work: Work, ordinals: tuple[int, ...]) -> tuple[int, ...]:
        marked = mark(work, ordinals)
        for ordinal in marked:
            self._ledger.release((work.deployment, ordinal))
        return marked

    return [(Instances, "mark_stopping", hasty)]


@mutation("leading", seed=12)
def a_leader_out_of_touch_never_counts_itself_out() -> Patches:
    return [(Agent, "_count_out", nothing)]


@mutation("orphans", "returning", "once", seed=6)
def what_moved_elsewhere_runs_on() -> Patches:
    return [(Verifier, "_give_up", nothing)]


@mutation("repair", seed=1)
def redundancy_is_not_repaired() -> Patches:
    return [(Repair, "tick", nothing), (Repair, "next_deadline", property(nothing))]


