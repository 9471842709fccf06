"""The API's role, by comparing effects: whom it asks, what it does about silence, refusals, deaths and outages."""

from __future__ import annotations

import random
from typing import Any

from fabric.commands import Describe, Described
from fabric.effects import CallTree, Effect, Note, Received, Send, TreeDone
from fabric.messages import (
    FindHolders,
    HolderRef,
    Holders,
    NodeCommand,
    NodeResult,
    RackAnswer,
    RackCall,
    RackStatus,
    RackStatusCall,
    RecordNews,
    RecordSeen,
    Submit,
    Submitted,
)
from fabric.records import Leader, encode
from fabric.roles.client import Client, ClientLimits
from fabric.roles.leaders import coarse
from fabric.roles.settings import Settings
from zk.tree import (
    Children,
    ConnectionLost,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    NoNode,
    SessionChanged,
    SessionState,
    Stat,
    WatchFired,
)

SETTINGS = Settings(submit_wait_s=1.0, command_wait_s=2.0, hop_margin_s=0.3, retry_min_s=0.1, retry_max_s=2.0)
ID = "d-0000001abcd"
OTHER = "d-0000002abcd"
OWNER = f"/open/{ID}/owner"
CONNECTED = SessionChanged(SessionState.CONNECTED, 7)
HERE = Existed(Stat(5, 5, 0, 0, 9, 0, 0))
GONE = Existed(None)


def address(rack: str, layer: str = "compute") -> str:
    return f"tcp://{layer}-{rack}:1/00000000"


class Bench:
    """A client, and the two hands that its embedder would have: what it asked for is kept by kind."""

    def __init__(self, seed: int = 1, limits: ClientLimits | None = None) -> None:
        self.client = Client("0123456789abcdef", SETTINGS, random.Random(seed), limits)
        self.now = 100.0
        self.sent: list[Send] = []
        self.asked: list[CallTree] = []
        self.notes: list[Note] = []
        self.do(self.client.start(self.now))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.sent.append(effect)
                case CallTree():
                    self.asked.append(effect)
                case Note():
                    self.notes.append(effect)
                case _:
                    raise AssertionError(f"no effect of a client: {effect}")

    def take(self, event: Any) -> None:
        self.do(self.client.handle(self.now, event))

    def new_sends(self) -> list[Send]:
        found, self.sent = self.sent, []
        return found

    def new_asks(self) -> list[CallTree]:
        found, self.asked = self.asked, []
        return found

    def wait(self, seconds: float) -> None:
        """Time passes, deadline by deadline, as a loop would have it."""
        end = self.now + seconds
        for _ in range(1000):
            due = self.client.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.do(self.client.tick(self.now))
        else:
            raise AssertionError("its deadlines do not move on")
        self.now = end

    def connect(self, loads: dict[str, int] | None = None, storage: tuple[str, ...] = ("s1", "s2")) -> None:
        """CONNECTED, and both directories read: compute racks with these loads."""
        self.take(CONNECTED)
        self.lead("compute", {"r1": 0, "r2": 0} if loads is None else loads)
        self.lead("storage", dict.fromkeys(storage, 0))
        self.new_asks()

    def lead(self, layer: str, loads: dict[str, int], epoch: int = 10) -> None:
        self.take(TreeDone(f"leaders:{layer}:", Listed(tuple(sorted(loads)))))
        for rack, load in sorted(loads.items()):
            self.leader(layer, rack, load, epoch)

    def leader(self, layer: str, rack: str, load: int = 0, epoch: int = 10, to: str = "") -> None:
        record = Leader(f"{rack}-lead", rack, "00000000", to or address(rack, layer), load)
        self.take(TreeDone(f"leaders:{layer}:{rack}", Got(encode(record), Stat(epoch, epoch, 0, 0, 1, 0, 0))))

    def outcome(self, path: str, outcome: Any) -> None:
        """Answer the newest read of `path`."""
        [token] = [call.token for call in self.asked if isinstance(call.op, Exists | Get) and call.op.path == path]
        self.asked = [call for call in self.asked if call.token != token]
        self.take(TreeDone(token, outcome))

    def submit(self) -> Send:
        self.do(self.client.submit(self.now, ID, 123))
        [send] = self.new_sends()
        return send

    def take_charge(self) -> None:
        """A leader takes the deployment, and the first look at its owner is under way."""
        self.answer(submitted(self.submit(), True))
        self.wait(0.5)

    def answer(self, message: Any) -> None:
        self.take(Received("route:aa", message))


def submitted(send: Send, taken: bool, reason: str = "") -> Submitted:
    assert isinstance(send.message, Submit)
    return Submitted(send.message.call, taken, reason)


# --- who leads -------------------------------------------------------------------------------------------------------


def test_it_follows_the_leaders_of_both_layers_once_connected() -> None:
    bench = Bench()
    assert bench.new_asks() == []
    bench.take(CONNECTED)
    assert [call.op for call in bench.new_asks()] == [
        Children("/leaders/compute", watch=True),
        Children("/leaders/storage", watch=True),
    ]
    bench.lead("compute", {"r1": 3})
    assert bench.client.leaders("compute")["r1"].leader.load == 3
    bench.take(WatchFired("/leaders/compute/r1"))
    assert bench.new_asks()[-1].op == Get("/leaders/compute/r1", watch=True)


# --- submitting (steps 1 to 3) ---------------------------------------------------------------------------------------


def test_a_deployment_goes_to_the_less_loaded_of_two_leaders() -> None:
    bench = Bench()
    bench.connect({"r1": 5, "r2": 1})
    send = bench.submit()
    assert send.to == address("r2")
    assert send.message == Submit(send.message.call, ID, 123, considered=2, load=1)  # type: ignore[union-attr]


def test_news_that_it_is_at_rest_end_its_following_and_older_news_do_not() -> None:
    bench = Bench()
    bench.connect()
    written = RecordSeen(b"{}", 3, 10, 20)
    bench.client.submit(bench.now, ID, 123, written)
    assert bench.client.followed == 1
    for news in (
        RecordNews(ID, RecordSeen(b"{}", 2, 10, 19), True),
        RecordNews(ID, RecordSeen(b"{}", 4, 10, 21), False),
        RecordNews("d-another1", RecordSeen(b"{}", 4, 10, 21), True),
    ):
        bench.take(Received("route:1", news))
        assert bench.client.followed == 1
    bench.take(Received("route:1", RecordNews(ID, RecordSeen(b"{}", 5, 10, 22), True)))
    assert bench.client.followed == 0


def test_what_was_written_is_told_with_the_first_question_only() -> None:
    bench = Bench()
    bench.connect()
    written = RecordSeen(b"{}", 3, 10, 20)
    [first] = [one for one in bench.client.submit(bench.now, ID, 123, written) if isinstance(one, Send)]
    assert isinstance(first.message, Submit)
    assert first.message.seen == written
    bench.wait(1.1 * SETTINGS.submit_wait_s)
    [second] = bench.new_sends()
    assert isinstance(second.message, Submit)
    assert second.message.seen is None


def test_submits_are_spread_over_leaders_of_equal_load() -> None:
    targets = set()
    for seed in range(20):
        bench = Bench(seed)
        bench.connect({"r1": 0, "r2": 0, "r3": 0})
        targets.add(bench.submit().to)
    assert targets == {address("r1"), address("r2"), address("r3")}


def test_a_leader_that_does_not_answer_is_passed_over() -> None:
    bench = Bench()
    bench.connect()
    first = bench.submit()
    bench.wait(0.9 * SETTINGS.submit_wait_s)
    assert bench.new_sends() == []
    bench.wait(0.2 * SETTINGS.submit_wait_s)
    [second] = bench.new_sends()
    assert {first.to, second.to} == {address("r1"), address("r2")}
    assert Get(f"/leaders/compute/{first.to[14:16]}", watch=True) in [call.op for call in bench.new_asks()]


def test_a_refusal_leads_to_another_leader_after_a_pause() -> None:
    bench = Bench()
    bench.connect()
    first = bench.submit()
    bench.answer(submitted(first, False, "256 deployments are in its charge"))
    assert bench.new_sends() == []
    bench.wait(0.2)
    [second] = bench.new_sends()
    assert {first.to, second.to} == {address("r1"), address("r2")}


def test_refusals_are_not_met_with_a_storm() -> None:
    bench = Bench()
    bench.connect({"r1": 0})
    send = bench.submit()
    sends = 0
    for _ in range(200):
        bench.answer(submitted(send, False, "full"))
        bench.wait(0.05)
        again = bench.new_sends()
        sends += len(again)
        send = again[-1] if again else send
    assert 4 <= sends <= 20  # in 10 s, with pauses that grow from 0.1 to 2 s


def test_a_deployment_with_an_owner_is_left_to_it_until_the_watch_fires() -> None:
    bench = Bench()
    bench.connect()
    bench.take_charge()
    bench.outcome(OWNER, HERE)
    bench.wait(60)
    assert bench.new_sends() == []
    assert bench.new_asks() == []
    bench.take(WatchFired(OWNER))
    bench.outcome(OWNER, GONE)
    bench.outcome(f"/open/{ID}", GONE)
    assert bench.client.followed == 0


def test_it_is_submitted_again_when_its_owner_vanishes_before_the_end() -> None:
    bench = Bench()
    bench.connect()
    bench.take_charge()
    bench.outcome(OWNER, HERE)
    bench.take(WatchFired(OWNER))
    bench.outcome(OWNER, GONE)
    bench.outcome(f"/open/{ID}", HERE)
    [again] = bench.new_sends()
    assert isinstance(again.message, Submit)


def test_a_leader_that_took_it_gets_time_to_become_the_owner() -> None:
    bench = Bench()
    bench.connect()
    bench.take_charge()
    bench.outcome(OWNER, GONE)
    bench.outcome(f"/open/{ID}", HERE)
    bench.wait(0.7)
    assert bench.new_sends() == []
    bench.wait(0.6)
    bench.outcome(OWNER, GONE)
    bench.outcome(f"/open/{ID}", HERE)
    assert len(bench.new_sends()) == 1


def test_an_owner_that_is_seen_while_the_answer_is_lost_ends_the_asking() -> None:
    bench = Bench()
    bench.connect()
    bench.submit()
    bench.wait(1.3)
    bench.new_sends()
    bench.outcome(OWNER, HERE)
    bench.wait(30)
    assert bench.new_sends() == []


def test_without_any_leader_it_waits_for_one() -> None:
    bench = Bench()
    bench.connect({})
    bench.do(bench.client.submit(bench.now, ID, 1))
    bench.wait(3)
    assert bench.new_sends() == []
    bench.lead("compute", {"r9": 0})
    assert [send.to for send in bench.new_sends()] == [address("r9")]


def test_nothing_is_submitted_during_an_outage() -> None:
    bench = Bench()
    bench.connect()
    bench.submit()
    bench.take(SessionChanged(SessionState.SUSPENDED, 7))
    bench.do(bench.client.submit(bench.now, OTHER, 1))
    bench.wait(20)
    assert bench.new_sends() == []
    bench.new_asks()
    bench.take(CONNECTED)
    owners = [call.op for call in bench.asked if isinstance(call.op, Exists)]
    assert owners == [Exists(OWNER, watch=True), Exists(f"/open/{OTHER}/owner", watch=True)]
    bench.outcome(OWNER, GONE)
    bench.outcome(f"/open/{ID}", HERE)
    assert [send.message.deployment for send in bench.new_sends()] == [ID]  # type: ignore[union-attr]


def test_a_read_that_failed_is_repeated_with_a_pause() -> None:
    bench = Bench()
    bench.connect()
    bench.take_charge()
    bench.outcome(OWNER, ConnectionLost(OWNER))
    assert bench.new_asks() == []
    bench.wait(0.2)
    assert [call.op for call in bench.new_asks()] == [Exists(OWNER, watch=True)]


def test_following_has_a_bound_in_time_and_in_number() -> None:
    bench = Bench(limits=ClientLimits(follow_s=10, max_followed=1))
    bench.connect()
    bench.submit()
    bench.do(bench.client.submit(bench.now, OTHER, 1))
    assert bench.new_sends() == []
    assert bench.client.followed == 1
    bench.wait(11)
    assert bench.client.followed == 0
    assert bench.client.next_deadline() is None


def test_a_deployment_that_is_followed_already_is_not_submitted_twice() -> None:
    bench = Bench()
    bench.connect()
    bench.submit()
    bench.do(bench.client.submit(bench.now, ID, 123))
    assert bench.new_sends() == []


# --- calling racks ---------------------------------------------------------------------------------------------------


def rack_answer(send: Send, rack: str, **changes: Any) -> RackAnswer:
    assert isinstance(send.message, RackCall)
    return RackAnswer(send.message.call, rack, **{"leads": True, **changes})


def test_all_racks_are_called_and_their_answers_gathered() -> None:
    bench = Bench()
    bench.connect()
    done: list[Any] = []
    command = Describe("", 10)
    bench.do(bench.client.call(bench.now, "compute", 2.0, lambda _, found: done.append(found), command))
    sends = bench.new_sends()
    assert [send.to for send in sends] == [address("r1"), address("r2")]
    assert {send.message.everyone for send in sends} == {command}  # type: ignore[union-attr]
    said = (NodeResult("n1", Described((), False)),)
    bench.answer(rack_answer(sends[0], "r1", results=said))
    assert done == []
    bench.answer(rack_answer(sends[1], "r2", silent=("n9",)))
    assert [(reply.rack, len(reply.results), reply.silent) for reply in done[0].replies] == [
        ("r1", 1, ()),
        ("r2", 0, ("n9",)),
    ]
    assert done[0].silent_racks == ()


def test_named_nodes_are_called_by_their_rack() -> None:
    bench = Bench()
    bench.connect()
    commands = {"r2": (NodeCommand("n1", Describe("", 1)),)}
    bench.do(bench.client.call(bench.now, "compute", 2.0, lambda *_: None, commands=commands))
    [send] = bench.new_sends()
    assert send.to == address("r2")
    assert send.message.commands == commands["r2"]  # type: ignore[union-attr]


def test_a_rack_that_does_not_answer_is_asked_again_and_named_in_the_end() -> None:
    bench = Bench()
    bench.connect()
    done: list[Any] = []
    bench.do(bench.client.call(bench.now, "compute", 2.0, lambda _, found: done.append(found), Describe("", 1)))
    first = bench.new_sends()
    bench.answer(rack_answer(first[0], "r1"))
    bench.wait(1.1)
    assert [send.to for send in bench.new_sends()] == [address("r2")]
    bench.wait(1.0)
    assert done[0].silent_racks == ("r2",)


def test_the_successor_of_a_dead_leader_is_asked_as_soon_as_it_is_known() -> None:
    bench = Bench()
    bench.connect({"r1": 0})
    done: list[Any] = []
    bench.do(bench.client.call(bench.now, "compute", 2.0, lambda _, found: done.append(found), Describe("", 1)))
    [first] = bench.new_sends()
    bench.answer(rack_answer(first, "r1", leads=False))
    bench.outcome("/leaders/compute/r1", NoNode("/leaders/compute/r1"))
    bench.leader("compute", "r1", epoch=20, to="tcp://new:1/11111111")
    [second] = bench.new_sends()
    assert second.to == "tcp://new:1/11111111"
    bench.answer(rack_answer(second, "r1"))
    assert [reply.rack for reply in done[0].replies] == ["r1"]


def test_a_call_to_all_waits_until_every_leader_was_read() -> None:
    bench = Bench()
    bench.take(CONNECTED)
    bench.do(bench.client.call(bench.now, "compute", 2.0, lambda *_: None, Describe("", 1)))
    bench.take(TreeDone("leaders:compute:", Listed(("r1", "r2"))))
    bench.leader("compute", "r1")
    assert bench.new_sends() == []
    bench.leader("compute", "r2")
    assert [send.to for send in bench.new_sends()] == [address("r1"), address("r2")]


def test_a_call_ends_also_when_the_leaders_are_never_read() -> None:
    bench = Bench()
    done: list[Any] = []
    bench.do(bench.client.call(bench.now, "compute", 2.0, lambda _, found: done.append(found), Describe("", 1)))
    bench.wait(2.1)
    assert [found.replies for found in done] == [()]


# --- rack status, holders --------------------------------------------------------------------------------------------


def status(send: Send, rack: str, leads: bool = True) -> RackStatus:
    assert isinstance(send.message, RackStatusCall)
    return RackStatus(send.message.call, rack, "compute", leads, "n1", 10, ())


def test_statuses_of_all_racks_and_who_was_silent() -> None:
    bench = Bench()
    bench.connect({"r1": 0, "r2": 0, "r3": 0})
    done: list[Any] = []
    bench.do(bench.client.rack_status(bench.now, "compute", 2.0, lambda _, found: done.append(found)))
    sends = bench.new_sends()
    bench.answer(status(sends[2], "r3"))
    bench.answer(status(sends[0], "r1"))
    bench.wait(2.1)
    assert [one.rack for one in done[0].racks] == ["r1", "r3"]
    assert done[0].silent_racks == ("r2",)


def test_no_racks_have_no_status() -> None:
    bench = Bench()
    bench.connect({})
    done: list[Any] = []
    bench.do(bench.client.rack_status(bench.now, "compute", 2.0, lambda _, found: done.append(found)))
    assert [(found.racks, found.silent_racks) for found in done] == [((), ())]


def holders(send: Send, leads: bool = True) -> Holders:
    assert isinstance(send.message, FindHolders)
    chosen = (HolderRef("n1", "s1", "tcp://a:1"),) if leads else ()
    return Holders(send.message.call, "", leads, chosen, ("n1",) if leads else (), (), 4)


def test_holders_are_asked_of_one_storage_leader() -> None:
    bench = Bench()
    bench.connect()
    done: list[Any] = []
    digest = "b3:" + "0" * 64
    bench.do(bench.client.find_holders(bench.now, digest, 2, 5.0, lambda _, found: done.append(found)))
    [send] = bench.new_sends()
    assert send.to in (address("s1", "storage"), address("s2", "storage"))
    assert send.message == FindHolders(send.message.call, digest, 2, (), "", True)  # type: ignore[union-attr]
    bench.answer(holders(send))
    assert done[0].answer == holders(send)
    assert bench.client.next_deadline() is None


def test_a_storage_leader_that_leads_no_more_is_replaced_by_another() -> None:
    bench = Bench()
    bench.connect()
    done: list[Any] = []
    bench.do(bench.client.find_holders(bench.now, "b3:" + "0" * 64, 2, 5.0, lambda _, found: done.append(found)))
    [first] = bench.new_sends()
    bench.answer(holders(first, leads=False))
    bench.wait(0.2)
    [second] = bench.new_sends()
    assert {first.to, second.to} == {address("s1", "storage"), address("s2", "storage")}
    bench.answer(holders(second))
    assert done[0].answer is not None


def test_a_late_answer_of_a_leader_that_was_given_up_counts() -> None:
    bench = Bench()
    bench.connect()
    done: list[Any] = []
    bench.do(bench.client.find_holders(bench.now, "b3:" + "0" * 64, 2, 5.0, lambda _, found: done.append(found)))
    [first] = bench.new_sends()
    bench.wait(2.4)
    assert len(bench.new_sends()) == 1
    bench.answer(holders(first))
    bench.answer(holders(first))
    assert len(done) == 1


def test_nobody_to_ask_ends_with_the_reason() -> None:
    bench = Bench()
    bench.connect(storage=())
    done: list[Any] = []
    bench.do(bench.client.pick_stores(bench.now, 1000, 2, 1.0, lambda _, found: done.append(found)))
    bench.wait(1.1)
    assert done[0].answer is None
    assert done[0].reason == "no rack has a storage leader now"


def test_silence_ends_with_the_reason() -> None:
    bench = Bench()
    bench.connect(storage=("s1",))
    done: list[Any] = []
    bench.do(bench.client.pick_stores(bench.now, 1000, 2, 1.0, lambda _, found: done.append(found)))
    bench.wait(1.1)
    assert done[0].reason == "the leader of rack s1 did not answer"


def test_a_few_more_or_less_under_way_change_no_hint() -> None:
    assert {coarse(load) for load in range(16)} == {0}
    assert [coarse(load) for load in (16, 31, 32, 100, 255, 256)] == [16, 16, 32, 64, 128, 256]
