"""Planted bugs, each a patch of the initiator: the seeds of chaos have to turn red for every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from deploy.initiator import bringing, subtrees
from deploy.initiator.bringing import Bringing
from deploy.initiator.calls import Calls
from deploy.initiator.covering import Covering
from deploy.initiator.gathers import Gathers
from deploy.initiator.house import House
from deploy.initiator.initiator import Initiator
from deploy.initiator.keeping import Keeper
from deploy.initiator.kid import Kid
from deploy.initiator.strays import Strays
from deploy.initiator.stubs import Stubs
from deploy.initiator.upkeep import Upkeep

Patches = list[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Mutation:
    """`promises`: one of them has to be found broken. `seed`: where that is so."""

    name: str
    promises: frozenset[str]
    seed: int
    patches: Callable[[], Patches] = field(repr=False)

    @contextmanager
    def planted(self) -> Iterator[None]:
        found = [patch.object(where, name, new, create=True) for where, name, new in self.patches()]
        for one in found:
            one.start()
        try:
            yield
        finally:
            for one in reversed(found):
                one.stop()


MUTATIONS: dict[str, Mutation] = {}


def mutation(*promises: str, seed: int = 0) -> Callable[[Callable[[], Patches]], Callable[[], Patches]]:
    def add(patches: Callable[[], Patches]) -> Callable[[], Patches]:
        MUTATIONS[patches.__name__] = Mutation(patches.__name__, frozenset(promises), seed, patches)
        return patches

    return add


def nothing(*_: object, **__: object) -> None:
    """Instead of what should be done."""


@mutation("intent", seed=1)
def deploys_are_sent_before_the_table_is_saved() -> Patches:
    return [(Keeper, "saved", property(lambda keeper: 1 << 60, nothing)), (Keeper, "is_saved", True)]


@mutation("fenced", seed=71)
def a_fenced_initiator_goes_on() -> Patches:
    def failed(self: Initiator, now: float, reason: str) -> None:
        self._keeper.on_failed(now)

    return [(Initiator, "_on_tree_failed", failed)]


@mutation("settles", "exact", "once", "tables", "entries", "counts", seed=50)
def what_a_table_says_is_not_adopted() -> Patches:
    def adopt(self: Stubs, now: float, stub: str) -> None:
        self._stubs[stub].state = "ok"

    return [(Stubs, "adopt", adopt)]


@mutation("settles", "exact", "counts", "entries", "tables", seed=3)
def rows_of_an_earlier_incarnation_are_forgotten() -> Patches:
    return [(Covering, "load", lambda self, now, table: [])]


@mutation("settles", "exact", "counts", "entries", "early", seed=150)
def a_report_on_an_earlier_seq_counts() -> Patches:
    return [(subtrees, "answers", lambda report, told: bool(report.rollout))]


@mutation("once", seed=197)
def children_are_placed_elsewhere_before_the_lease_is_over() -> Patches:
    return [(Upkeep, "_lease_over_s", lambda self: 0.0)]


@mutation("attempts")
def an_attempt_is_used_again() -> Patches:
    return [(House, "next_attempt", lambda self: max(1, self.attempts))]


@mutation("settles", "exact", seed=6)
def an_initiator_is_removed_before_its_subtree() -> Patches:
    goal = Bringing._goal

    def hasty(self: Bringing, kid: Kid) -> Any:
        kid.subtree.cleared = True
        return goal(self, kid)

    return [(Bringing, "_goal", hasty)]


@mutation("settles", "exact", "entries", seed=6)
def a_call_that_was_lost_is_not_repeated() -> Patches:
    return [(Calls, "on_time", nothing)]


@mutation("settles", "entries", seed=1)
def pages_that_were_lost_are_not_asked_for_again() -> Patches:
    return [(Gathers, "on_stream_time", nothing)]


@mutation("settles", "exact", "once", seed=13)
def what_a_lost_boot_stub_still_runs_is_left() -> Patches:
    return [(Strays, "found", nothing), (Stubs, "leave_kid", nothing)]


@mutation("settles", "exact", seed=41)
def what_changed_while_it_was_inspected_is_not_seen() -> Patches:
    renewed = Bringing._renewed

    def blind(self: Bringing, kid: Kid, call: Any) -> None:
        renewed(self, kid, call)
        kid.generation, kid.checked = self._house.charge.charge.generation, True

    return [(Bringing, "_renewed", blind)]


@mutation("settles", "exact")
def a_managent_that_differs_is_left_as_it_is() -> Patches:
    return [(bringing, "rework", lambda have, want: "")]


# --- what the seeds found once ---------------------------------------------------------------------------------------


@mutation("settles", "tables", seed=439)
def a_table_is_taken_for_dropped_when_it_was_only_saved() -> Patches:
    done = Keeper.on_done

    def hasty(self: Keeper, now: float) -> None:
        self._drops = self._dropping
        done(self, now)

    return [(Keeper, "on_done", hasty)]


@mutation("settles", "exact", "once", seed=505)
def a_child_whose_deploy_is_under_way_to_a_lost_boot_stub_was_never_deployed() -> Patches:
    interrupt = Bringing.interrupt

    def sure(self: Bringing, kid: Kid) -> None:
        interrupt(self, kid)
        kid.unsure = False

    return [(Bringing, "interrupt", sure)]


@mutation("settles", "exact", seed=627)
def a_child_that_is_being_reinstalled_is_forgotten_by_a_successor() -> Patches:
    absent = Upkeep._on_absence

    def forgetful(self: Upkeep, now: float, kid: Kid, adopted: bool) -> None:
        kid.found = kid.found or (not kid.generation and kid.outcome == "pending")
        absent(self, now, kid, adopted)

    return [(Upkeep, "_on_absence", forgetful)]


@mutation("settles", "exact", seed=614)
def a_table_does_not_say_that_a_child_is_an_initiator() -> Patches:
    as_row = Kid.as_row

    def silent(self: Kid, stub: Any) -> Any:
        is_one, self.initiator = self.initiator, False
        try:
            return as_row(self, stub)
        finally:
            self.initiator = is_one

    return [(Kid, "as_row", silent)]
