"""Which open deployments a sweep takes, and when."""

from __future__ import annotations

import random
from collections.abc import Iterable

from fabric.effects import CallTree
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Settings
from fabric.roles.sweep import MAX_SWEPT, Sweep
from zk import paths
from zk.tree import Children, Existed, Exists, Listed, Op, Outcome, Stat

SESSION, OTHER = 7, 8
SETTINGS = Settings()
ONE = "d-open0001"


class Bench:
    def __init__(self) -> None:
        self.now = 100.0
        self.out = Outbox()
        self.mine: set[str] | None = None
        self.full = self.held = False
        self.taken: list[str] = []
        self.sweep = Sweep(
            SETTINGS,
            random.Random(5),
            self.out,
            is_mine=lambda name: name not in self.taken and (self.mine is None or name in self.mine),
            room=lambda: not self.full,
            take=lambda now, name: self.taken.append(name),
        )
        self.sweep.begin(self.now, SESSION)

    def asked(self) -> dict[str, Op]:
        return {effect.token: effect.op for effect in self.out.take() if isinstance(effect, CallTree)}

    def answer(self, token: str, outcome: Outcome) -> dict[str, Op]:
        assert self.sweep.on_tree(self.now, token, outcome, self.held)
        return self.asked()

    def until_asked(self) -> dict[str, Op]:
        """Goes on to the deadlines, one after the other, until something is asked."""
        for _ in range(10):
            due = self.sweep.next_deadline
            assert due is not None
            self.now = max(self.now, due)
            self.sweep.tick(self.now, self.held)
            if asked := self.asked():
                return asked
        raise AssertionError("nothing is asked")

    def lists(self, names: Iterable[str]) -> dict[str, Op]:
        """The next sweep finds these open. Answers with what it asks of them."""
        asked = self.until_asked()
        [(token, op)] = asked.items()
        assert op == Children(paths.OPEN)
        return self.answer(token, Listed(tuple(names)))


def owned_by(session: int) -> Existed:
    return Existed(Stat(1, 1, 0, 0, session, 0, 0))


NOBODY = Existed(None)


def test_one_that_has_no_owner_is_looked_at_once_more_before_it_is_taken():
    bench = Bench()
    [(token, op)] = bench.lists([ONE]).items()
    assert op == Exists(paths.owner(ONE))
    began = bench.now
    assert bench.answer(token, NOBODY) == {}
    assert bench.taken == []
    [(token, op)] = bench.until_asked().items()
    assert op == Exists(paths.owner(ONE))
    assert bench.now == began + SETTINGS.submit_wait_s
    bench.answer(token, NOBODY)
    assert bench.taken == [ONE]


def test_one_that_somebody_claims_in_between_is_his():
    bench = Bench()
    [token] = bench.lists([ONE])
    bench.answer(token, NOBODY)
    [token] = bench.until_asked()
    bench.answer(token, owned_by(OTHER))
    assert bench.taken == []


def test_one_that_was_submitted_here_in_between_is_not_taken_again():
    bench = Bench()
    [token] = bench.lists([ONE])
    bench.answer(token, NOBODY)
    [token] = bench.until_asked()
    bench.mine = set()
    bench.answer(token, NOBODY)
    assert bench.taken == []


def test_a_claim_of_our_own_session_that_is_nobodys_charge_is_a_leftover():
    bench = Bench()
    [token] = bench.lists([ONE])
    bench.answer(token, owned_by(SESSION))
    [token] = bench.until_asked()
    bench.answer(token, owned_by(SESSION))
    assert bench.taken == [ONE]


def test_without_room_or_while_held_it_is_left_to_the_next_sweep():
    bench = Bench()
    for hindrance in ("full", "held"):
        [token] = bench.lists([ONE])
        bench.answer(token, NOBODY)
        [token] = bench.until_asked()
        setattr(bench, hindrance, True)
        bench.answer(token, NOBODY)
        setattr(bench, hindrance, False)
        assert bench.taken == []
    [token] = bench.lists([ONE])
    bench.answer(token, NOBODY)
    [token] = bench.until_asked()
    bench.answer(token, NOBODY)
    assert bench.taken == [ONE]


def test_a_sweep_is_bounded_and_the_next_one_goes_on_behind_it():
    bench = Bench()
    names = [f"d-open{number:04}" for number in range(MAX_SWEPT + 10)]
    looked = {op.path for op in bench.lists(names).values() if isinstance(op, Exists)}
    assert looked == {paths.owner(name) for name in names[:MAX_SWEPT]}
    looked = {op.path for op in bench.lists(names).values() if isinstance(op, Exists)}
    assert {paths.owner(name) for name in names[MAX_SWEPT:]} < looked
    assert len(looked) == MAX_SWEPT


def test_after_its_end_nothing_comes_of_what_was_asked():
    bench = Bench()
    [token] = bench.lists([ONE])
    bench.sweep.end()
    bench.answer(token, NOBODY)
    assert bench.sweep.next_deadline is None
    assert not bench.sweep.on_tree(bench.now, "dep:d-open0001:1", NOBODY, held=False)
