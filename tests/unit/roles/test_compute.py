"""A compute agent's answers, as effects: fences, idempotence, the journal before the answer."""

from __future__ import annotations

import random

import pytest

from fabric import effects as fx
from fabric.commands import (
    AskOffer,
    Cancel,
    Confirm,
    Describe,
    HasImage,
    Held,
    Holder,
    Offer,
    Progress,
    ReadLog,
    Reserve,
    Reserved,
    Stale,
    Stop,
    Unable,
    Verify,
    Verifying,
)
from fabric.messages import NodeAnswer
from fabric.records import Deployment, Share, Spec, encode
from fabric.resources import Resources
from fabric.roles.beats import Beats
from fabric.roles.compute import Compute
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Get, Got, NoNode, Stat

DEPLOYMENT = "d-abcdef12"
DIGEST = "b3:" + "cd" * 32
NEED = Resources(4, 8192, 40960)
SPEC = Spec(image="web", digest=DIGEST, flavor="Large", resources=NEED, environment={"X": "1"}, restart="always")
IDENTITY = Identity("n1", "r1", "compute", "ab12cd34", "tcp://n1/ab12cd34", Resources(16, 65536, 409600), "t", "h", 1)


class Bench:
    """One compute role and the answers it gives."""

    def __init__(self, journal: dict[str, bytes] | None = None, registered: int | None = 1) -> None:
        self.out = Outbox()
        beats = Beats(IDENTITY, random.Random(1), self.out)
        self.role = beats.worker = Compute(IDENTITY, Settings(), random.Random(1), self.out, beats, journal or {})
        self.role.registered = registered
        self.journal = dict(journal or {})
        self.effects: list[fx.Effect] = []

    def ask(self, command, now: float = 1.0):
        """The answer, if need be as it is when nothing has happened for so long as it waits."""
        self.role.command(now, "route:1", "call", command)
        self.effects = self.out.take()
        if not any(isinstance(effect, fx.Send) for effect in self.effects):
            self.role.tick(now + Settings().answer_linger_s)
            self.effects += self.out.take()
        for effect in self.effects:
            if isinstance(effect, fx.Persist):
                self.journal.update(dict(effect.puts))
                for key in effect.deletes:
                    self.journal.pop(key, None)
        answers = [e.message for e in self.effects if isinstance(e, fx.Send) and isinstance(e.message, NodeAnswer)]
        return answers[-1].answer

    def reserve(self, epoch: int, step: int, ordinals: str, now: float = 1.0):
        return self.ask(Reserve(DEPLOYMENT, epoch, step, 7, NEED, ordinals, 20_000), now)

    def confirm(self, epoch: int, step: int, ordinals: str, now: float = 1.0):
        return self.ask(Confirm(DEPLOYMENT, epoch, step, SPEC, ordinals, "tcp://c/1"), now)


def test_an_offer_says_how_many_fit_and_what_limits():
    bench = Bench()
    assert bench.reserve(5, 1, "0-2") == Reserved("0-2", 1, 0, 0, IDENTITY.total.minus(NEED.times(3)), ())
    offer = bench.ask(AskOffer("d-other1", NEED, 10, 9))
    assert isinstance(offer, Offer)
    assert (offer.count, offer.held, offer.oldest, offer.capacity, offer.short) == (1, 3, 7, 4, "vcpus")
    assert offer.holders == (Holder(DEPLOYMENT, NEED.times(3)),)
    assert bench.ask(AskOffer(DEPLOYMENT, NEED, 10, 9)).holders == ()


def test_a_node_names_a_bounded_number_of_holders_the_oldest_first():
    bench = Bench()
    need = Resources(1, 512, 0)
    for ticket in range(12, 0, -1):
        bench.ask(Reserve(f"d-other{ticket:02d}", 5, 1, ticket, need, "0", 20_000))
    offer = bench.ask(AskOffer(DEPLOYMENT, need, 10, 99))
    assert [holder.deployment for holder in offer.holders] == [f"d-other{ticket:02d}" for ticket in range(1, 9)]


def test_a_reservation_runs_out_by_itself():
    bench = Bench()
    bench.reserve(5, 1, "0-3", now=1.0)
    assert bench.role.next_deadline == 21.0
    bench.role.tick(21.0)
    assert bench.role.ledger.free == IDENTITY.total


def test_more_than_fits_is_granted_in_part():
    assert Bench().reserve(5, 1, "0-9") == Reserved("0-3", 0, 0, 0, IDENTITY.total.minus(NEED.times(4)), ())


def test_what_is_confirmed_is_in_the_journal_before_the_answer_leaves():
    bench = Bench()
    bench.reserve(5, 1, "0-1")
    answer = bench.confirm(5, 2, "0-1")
    assert isinstance(answer, Progress)
    assert answer.waiting == "0-1"
    kinds = [type(effect).__name__ for effect in bench.effects]
    assert kinds.index("Persist") < kinds.index("Send")
    assert fx.FetchImage(DIGEST, ()) in bench.effects
    again = Bench(bench.journal)
    assert again.role.ledger.placed_count == 2


def test_a_repeated_confirm_changes_nothing_and_tells_how_it_is():
    bench = Bench()
    bench.confirm(5, 2, "0-1")
    bench.confirm(5, 2, "0-1")
    assert not [effect for effect in bench.effects if isinstance(effect, fx.Persist | fx.FetchImage)]
    assert bench.role.ledger.placed_count == 2


def test_a_confirm_without_room_is_refused_by_ordinal():
    bench = Bench()
    answer = bench.confirm(5, 2, "0-5")
    assert (answer.waiting, answer.refused) == ("0-3", "4-5")


@pytest.mark.parametrize(("epoch", "step"), [(4, 9), (5, 1)])
def test_earlier_orders_are_refused_whatever_they_are(epoch: int, step: int):
    bench = Bench()
    bench.confirm(5, 2, "0-1")
    for command in (
        Reserve(DEPLOYMENT, epoch, step, 7, NEED, "5", 1000),
        Confirm(DEPLOYMENT, epoch, step, SPEC, "5", "tcp://c/1"),
        Cancel(DEPLOYMENT, epoch, step),
        Stop(DEPLOYMENT, epoch, step, "", True),
    ):
        assert bench.ask(command) == Stale(5, 2)
        assert not [effect for effect in bench.effects if not isinstance(effect, fx.Send)]
    assert bench.role.ledger.placed_count == 2


def test_after_a_restart_nothing_new_comes_under_a_claim_from_before():
    """Its successor may have placed the same ordinals elsewhere, and nobody would have told this node."""
    bench = Bench()
    bench.confirm(5, 2, "0")
    bench.ask(Stop(DEPLOYMENT, 5, 3, "", True))
    bench.role.instances.on_gone(2.0, fx.InstanceGone(f"{DEPLOYMENT}.0"))
    assert any(isinstance(e, fx.Persist) and f"w/{DEPLOYMENT}" in e.deletes for e in bench.out.take())
    again = Bench(registered=6)  # of all this nothing is in the journal any more
    assert again.confirm(5, 2, "0").refused == "0"
    assert again.reserve(5, 2, "1").granted == ""
    assert again.reserve(7, 1, "0-1").granted == "0-1"
    assert again.confirm(7, 2, "0-1").waiting == "0-1"


def test_who_is_not_registered_takes_nothing_new_but_keeps_what_it_has():
    bench = Bench()
    bench.confirm(5, 2, "0")
    bench.reserve(5, 3, "1")
    bench.role.departed(1.0)
    assert (bench.role.ledger.reserved_count, bench.role.ledger.placed_count) == (0, 1)
    assert bench.reserve(5, 4, "1").granted == ""
    assert bench.confirm(5, 4, "0-1") == Progress("", "0", "", "1", (), 0, 0, None, 0, 0, 2, 0)
    assert bench.ask(AskOffer("d-other1", NEED, 10, 9)).count == 0


def test_stopping_is_journaled_and_repeated_without_harm():
    bench = Bench()
    bench.confirm(5, 2, "0-1")
    answer = bench.ask(Stop(DEPLOYMENT, 5, 3, "1"))
    assert (answer.waiting, answer.stopping) == ("0", "1")
    assert [e.instance for e in bench.effects if isinstance(e, fx.StopInstance)] == [f"{DEPLOYMENT}.1"]
    bench.ask(Stop(DEPLOYMENT, 5, 3, "1"))
    assert not [e for e in bench.effects if isinstance(e, fx.StopInstance | fx.Persist)]


def test_a_cordoned_node_offers_and_grants_nothing_but_keeps_what_it_has():
    bench = Bench()
    bench.confirm(5, 2, "0")
    bench.role.cordoned = True
    offer = bench.ask(AskOffer("d-other1", NEED, 10, 9))
    assert (offer.count, offer.cordoned, offer.free.holds(NEED)) == (0, True, 3)
    assert bench.reserve(5, 3, "1").granted == ""
    assert bench.confirm(5, 3, "0").waiting == "0"


def test_a_command_for_another_layer_gets_a_reason():
    bench = Bench()
    bench.confirm(5, 2, "0")
    assert isinstance(bench.ask(HasImage(DIGEST)), Unable)
    assert bench.role.ledger.placed_count == 1


def restarted(policy: str, event: fx.InstanceExited) -> tuple[str, list[fx.Effect]]:
    bench = Bench()
    spec = Spec(image="web", digest=DIGEST, flavor="Large", resources=NEED, environment={}, restart=policy)
    bench.ask(Confirm(DEPLOYMENT, 5, 2, spec, "0", "tcp://c/1"))
    instances = bench.role.instances
    instances.on_ready(1.0, fx.ImageReady(DIGEST, (), (), 10, 1, 1, False))
    instances.on_started(1.0, fx.InstanceStarted(f"{DEPLOYMENT}.0", 1, 77, 1000, "/d"))
    instances.on_exited(2.0, event)
    state = bench.ask(Describe("", 10)).instances[0].state
    bench.out.take()
    bench.role.tick(2.5)
    return state, bench.out.take()


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [("always", 0, True), ("always", 1, True), ("on-failure", 0, False), ("on-failure", 1, True), ("never", 1, False)],
)
def test_restart_policies(policy: str, code: int, again: bool):
    event = fx.InstanceExited(f"{DEPLOYMENT}.0", 1, code, None, False, "bye")
    state, effects = restarted(policy, event)
    assert state == ("backoff" if again else "exited")
    assert [e.attempt for e in effects if isinstance(e, fx.StartInstance)] == ([2] if again else [])


def test_an_unknown_instance_is_an_orphan_and_is_stopped():
    bench = Bench()
    bench.role.instances.on_started(1.0, fx.InstanceStarted("d-unknown1.3", 1, 77, 1, "/d", adopted=True))
    assert [e.instance for e in bench.out.take() if isinstance(e, fx.StopInstance)] == ["d-unknown1.3"]


def test_log_reads_are_answered_when_the_world_answers():
    bench = Bench()
    bench.role.command(1.0, "route:1", "call-9", ReadLog(f"{DEPLOYMENT}.0", 100))
    assert bench.out.take() == [fx.FetchLog("call-9", f"{DEPLOYMENT}.0", 100)]
    bench.role.on_log(1.0, fx.LogFetched("call-9", True, b"hello"))
    (sent,) = bench.out.take()
    assert sent.message.answer.data == b"hello"


def test_what_is_reserved_is_described_with_the_time_that_it_has_left():
    bench = Bench()
    bench.reserve(5, 1, "0-2")
    assert bench.ask(Describe("", 10), now=3.0).reserved == (Held(DEPLOYMENT, "0-2", 18_000),)
    assert bench.ask(Describe("d-other1", 10)).reserved == ()
    bench.confirm(5, 2, "0-1")
    assert bench.ask(Describe(DEPLOYMENT, 10)).reserved == (Held(DEPLOYMENT, "2", 20_000),)


def asked_to_verify(bench: Bench) -> str:
    """The token of the read that a Verify leads to."""
    assert bench.ask(Verify(DEPLOYMENT)) == Verifying(True)
    (read,) = (effect for effect in bench.effects if isinstance(effect, fx.CallTree))
    assert read.op == Get(paths.deployment(DEPLOYMENT))
    return read.token


def test_asked_to_verify_it_stops_what_the_record_does_not_give_it_and_nothing_else():
    bench = Bench()
    bench.confirm(5, 2, "0-1")
    token = asked_to_verify(bench)
    plan = (Share("n1", "r1", "1"), Share("n2", "r1", "0"))
    record = Deployment(DEPLOYMENT, "web", SPEC, 2, 2, "spread", 1, 1, state="running", epoch=5, step=2, plan=plan)
    bench.role.verifier.on_tree(2.0, token, Got(encode(record), Stat(1, 1, 1, 0, 0, 1, 1)))
    assert [e.instance for e in bench.out.take() if isinstance(e, fx.StopInstance)] == [f"{DEPLOYMENT}.0"]
    bench.role.verifier.on_tree(3.0, asked_to_verify(bench), NoNode(paths.deployment(DEPLOYMENT)))
    assert [e.instance for e in bench.out.take() if isinstance(e, fx.StopInstance)] == [f"{DEPLOYMENT}.1"]


def test_asked_to_verify_what_it_does_not_have_it_reads_nothing():
    bench = Bench()
    assert bench.ask(Verify("d-other1")) == Verifying(False)
    assert [effect for effect in bench.effects if not isinstance(effect, fx.Send)] == []
