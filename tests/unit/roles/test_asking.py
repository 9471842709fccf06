"""Who holds an image: many askers at once cost one question to all storage agents, and meet at the same few leaders."""

from __future__ import annotations

import random

from fabric import effects as fx
from fabric.commands import HasImage, ImageHeld
from fabric.messages import AnyMessage, FindHolders, Holders, NodeResult, RackAnswer, RackCall
from fabric.records import Leader, encode
from fabric.resources import ZERO
from fabric.roles.finder import MEETING_LEADERS, HolderFinder
from fabric.roles.leaders import looks_after, nearest
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from fabric.roles.storage import StorageLeading
from zk import paths
from zk.tree import Get, Got, Listed, SessionChanged, SessionState, Stat

DIGEST = "b3:" + "aa" * 32
RACKS = ("r1", "r2")
FRESH_S = Settings().holders_fresh_s


def identity(node: str, rack: str) -> Identity:
    return Identity(node, rack, "storage", "0a" * 4, f"tcp://{node}:1/0a0a0a0a", ZERO, "none", "localhost", 1)


class Leading:
    """A storage leader that knows those of two racks, and whose questions are looked at."""

    def __init__(self) -> None:
        self.out = Outbox()
        self.role = StorageLeading(identity("s1", "r1"), Settings(), random.Random(1), self.out)
        self.role.on_session(0.0, SessionChanged(SessionState.CONNECTED, 1))
        self.role.begin(0.0)
        self.role.on_tree(0.0, "leaders:storage:", Listed(RACKS))
        for rack in RACKS:
            record = encode(Leader(f"s-{rack}", rack, "0b" * 4, f"tcp://s-{rack}:1/0b0b0b0b", 0))
            self.role.on_tree(0.0, f"leaders:storage:{rack}", Got(record, Stat(1, 1, 0, 0, 1, 0, 0)))
        self.out.take()

    def ask(self, now: float, number: int, exclude: tuple[str, ...] = (), anew: bool = False) -> None:
        self.role.on_ask(now, f"route:{number}", FindHolders(f"f-{number}", DIGEST, 2, exclude, f"c{number}", anew))

    def sent(self) -> list[tuple[str, AnyMessage]]:
        return [(effect.to, effect.message) for effect in self.out.take() if isinstance(effect, fx.Send)]

    def questions(self) -> list[RackCall]:
        """To everyone."""
        found = [message for _, message in self.sent() if isinstance(message, RackCall)]
        assert all(isinstance(one.everyone, HasImage) for one in found)
        return found

    def checks(self) -> list[RackCall]:
        """To some nodes: each is asked whether it still holds the image."""
        found = [message for _, message in self.sent() if isinstance(message, RackCall)]
        for one in found:
            assert one.everyone is None
            assert all(entry.command == HasImage(DIGEST) for entry in one.commands)
        return found

    def answer(self, now: float, call: str, silent: tuple[str, ...] = ()) -> list[tuple[str, Holders]]:
        """Both racks do: one holder in each. Returns who is told what."""
        for rack in RACKS:
            held = NodeResult(f"s-{rack}", ImageHeld(True, f"tcp://data-{rack}", 100, 0))
            self.role.calls.on_answer(now, RackAnswer(call, rack, True, (held,), silent, (), 2))
        return [(to, message) for to, message in self.sent() if isinstance(message, Holders)]


def test_who_asks_while_it_is_being_asked_waits_for_the_same_answers():
    one = Leading()
    one.ask(1.0, 1)
    first = one.questions()
    assert [call.call for call in first] == [first[0].call] * len(RACKS)
    one.ask(1.1, 2)
    one.ask(1.2, 3, exclude=("s-r1",))
    assert one.questions() == []
    told = dict(one.answer(1.3, first[0].call))
    assert [message.call for message in told.values()] == ["f-1", "f-2", "f-3"]
    assert {ref.node for ref in told["route:2"].chosen} == {"s-r1", "s-r2"}
    assert [ref.node for ref in told["route:3"].chosen] == ["s-r2"], "each is told what it can use"
    assert [message.messages for message in told.values()] == [7, 1, 1], "a search is counted once"


def test_what_was_found_is_told_again_for_a_moment():
    one = Leading()
    one.ask(1.0, 1)
    one.answer(1.1, one.questions()[0].call)
    one.ask(1.1 + FRESH_S / 2, 2)
    ((to, told),) = one.sent()
    assert isinstance(told, Holders)
    assert (to, told.call, len(told.chosen)) == ("route:2", "f-2", 2)


def found_before() -> Leading:
    """A search over all was at 1.1."""
    one = Leading()
    one.ask(1.0, 1)
    one.answer(1.1, one.questions()[0].call)
    return one


def test_later_only_those_who_were_found_are_asked_whether_they_still_hold_it():
    one = found_before()
    one.ask(1.2 + FRESH_S, 2)
    checks = one.checks()
    assert [[entry.node for entry in check.commands] for check in checks] == [["s-r1"], ["s-r2"]]
    ((to, told),) = one.answer(1.3 + FRESH_S, checks[0].call)
    assert (to, {ref.node for ref in told.chosen}) == ("route:2", {"s-r1", "s-r2"})
    one.ask(1.4 + FRESH_S, 3)
    assert [type(message) for _, message in one.sent()] == [Holders], "fresh again"


def test_when_one_of_them_holds_it_no_more_all_are_asked():
    one = found_before()
    one.ask(1.2 + FRESH_S, 2)
    checks = one.checks()
    one.ask(1.2 + FRESH_S, 3)
    for rack in RACKS:
        held = NodeResult(f"s-{rack}", ImageHeld(rack != "r1", f"tcp://data-{rack}", 100, 0))
        one.role.calls.on_answer(1.3 + FRESH_S, RackAnswer(checks[0].call, rack, True, (held,), (), (), 2))
    questions = one.questions()
    assert len(questions) == len(RACKS), "nobody is told before all were asked"
    told = dict(one.answer(1.4 + FRESH_S, questions[0].call))
    assert list(told) == ["route:2", "route:3"]
    assert told["route:2"].messages == 13, "both rounds are counted"


def test_when_who_comes_meanwhile_was_failed_by_one_of_them_all_are_asked():
    one = found_before()
    one.ask(1.2 + FRESH_S, 2)
    checks = one.checks()
    one.ask(1.2 + FRESH_S, 3, exclude=("s-r1",))
    for rack in RACKS:
        held = NodeResult(f"s-{rack}", ImageHeld(True, f"tcp://data-{rack}", 100, 0))
        one.role.calls.on_answer(1.3 + FRESH_S, RackAnswer(checks[0].call, rack, True, (held,), (), (), 2))
    assert len(one.questions()) == len(RACKS), "a third holder may be there by now"


def test_when_one_of_them_is_silent_all_are_asked_while_the_askers_still_wait():
    one = found_before()
    asked_at = 1.2 + FRESH_S
    one.ask(asked_at, 2)
    assert one.checks()
    questions: list[RackCall] = []
    while not questions:
        due = one.role.calls.next_deadline
        assert due is not None
        assert due < asked_at + Settings().command_wait_s
        one.role.calls.tick(due)
        calls = [message for _, message in one.sent() if isinstance(message, RackCall)]
        questions = [call for call in calls if call.everyone is not None]  # the others: a check is repeated once
    told = one.answer(due, questions[0].call)
    assert [to for to, _ in told] == ["route:2"]


def test_after_a_while_all_are_asked_again():
    one = found_before()
    one.ask(1.2 + Settings().holders_known_s, 2)
    assert len(one.questions()) == len(RACKS)


def test_who_says_that_holders_failed_is_not_told_what_was_found_before():
    one = Leading()
    one.ask(1.0, 1)
    one.answer(1.1, one.questions()[0].call)
    one.ask(1.2, 2, exclude=("s-r1",))
    assert len(one.questions()) == len(RACKS)


def test_who_wants_all_to_be_asked_anew_is_told_nothing_of_before():
    """The API, after a push: what was found before it may have been dropped, and so may what is being asked about."""
    one = Leading()
    one.ask(1.0, 1)
    one.answer(1.1, one.questions()[0].call)
    one.ask(1.2, 2, anew=True)
    anew = one.questions()
    assert len(anew) == len(RACKS)
    one.ask(1.2, 3, anew=True)
    other = one.questions()
    assert len(other) == len(RACKS), "not even what is being asked already"
    assert [to for to, _ in one.answer(1.3, anew[0].call)] == ["route:2"]
    assert [to for to, _ in one.answer(1.3, other[0].call)] == ["route:3"]
    assert one.role.load == 0


def test_what_was_found_while_somebody_was_silent_is_not_told_again():
    one = Leading()
    one.ask(1.0, 1)
    one.answer(1.1, one.questions()[0].call, silent=("s9",))
    one.ask(1.2, 2)
    assert len(one.questions()) == len(RACKS)


def test_a_leader_that_is_elected_anew_knows_nothing_of_before():
    one = Leading()
    one.ask(1.0, 1)
    one.answer(1.1, one.questions()[0].call)
    one.role.end()
    one.role.begin(1.2)
    one.ask(1.3, 2)
    ((_, told),) = one.sent()
    assert isinstance(told, Holders)
    assert not told.leads, "the other leaders are not read yet"


def asked_racks(askers: int, digest: str, racks: tuple[str, ...]) -> set[str]:
    """Whose leader znode they read, when they want this image."""
    found: set[str] = set()
    for number in range(askers):
        out = Outbox()
        rng = random.Random(number)
        one = HolderFinder(identity(f"c{number}", "r1"), Settings(), rng, out, lambda now, found: None)
        one.search(0.0, digest, ())
        (listing,) = out.take()
        assert isinstance(listing, fx.CallTree)
        one.on_tree(0.0, listing.token, Listed(racks))
        (reading,) = out.take()
        assert isinstance(reading, fx.CallTree)
        assert isinstance(reading.op, Get)
        found.add(reading.op.path)
    return found


def test_askers_of_one_image_meet_at_the_same_few_leaders():
    racks = tuple(f"r{number}" for number in range(50))
    met = asked_racks(40, DIGEST, racks)
    assert met == {paths.leader("storage", rack) for rack in nearest(DIGEST, racks, MEETING_LEADERS)}
    everywhere: set[str] = set()
    for number in range(60):
        everywhere |= asked_racks(2, f"b3:{number:064x}", racks)
    assert len(everywhere) > 40, "different images are asked for at different leaders"


def test_one_rack_looks_after_each_key_and_it_is_the_nearest():
    racks = [f"r{number}" for number in range(20)]
    for number in range(100):
        assert [rack for rack in racks if looks_after(rack, f"d-{number}", racks)] == nearest(f"d-{number}", racks, 1)
    assert looks_after("r1", "d-1", ()), "who knows of nobody else does"
