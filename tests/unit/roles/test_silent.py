"""A rack leader does not wait for agents that are most likely dead: it learns that from their connections."""

from __future__ import annotations

from fabric import effects as fx
from fabric.commands import AskOffer, Describe
from fabric.messages import LeaderHello, NodeAnswer, RackAnswer, RackCall, RackStatus, RackStatusCall
from tests.unit.roles.world import LARGE, Host, World

CALLER = "tcp://caller/0"


class Rack(World):
    """One rack whose leader is asked by the test, and what it sends."""

    def __init__(self) -> None:
        super().__init__(racks=1, compute=4, storage=1)
        self.sent: list[tuple[str, object]] = []
        self.mute: set[str] = set()
        """Nodes whose answers are lost."""
        self.run(lambda: bool(self.leaders("r1")), 30, "a leader")
        self.pass_time(5.0)
        self.lead = self.leader("r1")
        self.others = [h for h in self.hosts.values() if h.identity.layer == "compute" and h is not self.lead]

    def _send(self, sender, to, message) -> None:
        if isinstance(message, NodeAnswer) and message.node in self.mute:
            return
        self.sent.append((to, message))
        super()._send(sender, to, message)

    def call(self, call: str, wait_ms: int = 700) -> None:
        self.give(self.lead, fx.Received(CALLER, RackCall(call, wait_ms, Describe("", 10))), 0.0)

    def answer(self, call: str) -> RackAnswer | None:
        found = [m for to, m in self.sent if to == CALLER and isinstance(m, RackAnswer) and m.call == call]
        return found[0] if found else None

    def asked(self, call: str) -> float:
        """How long its answer takes."""
        self.call(call)
        return self.run(lambda: self.answer(call) is not None, 5.0, f"the answer to {call}")


def endpoint_of(host: Host) -> str:
    return host.identity.address.rpartition("/")[0]


def test_a_broken_connection_ends_the_wait_for_its_agent() -> None:
    rack = Rack()
    victim = rack.others[0]
    rack.cut.add(victim.identity.node)
    rack.call("one")
    rack.give(rack.lead, fx.PeerLost(endpoint_of(victim)), 0.05)
    took_s = rack.run(lambda: rack.answer("one") is not None, 5.0, "the answer")
    assert took_s < 0.1
    answer = rack.answer("one")
    assert answer is not None
    assert answer.silent == (victim.identity.node,)
    assert rack.asked("two") < 0.1, "nor is it waited for when asked again"


def test_who_lost_its_connection_and_lives_is_greeted_and_heard_again() -> None:
    rack = Rack()
    victim = rack.others[0]
    rack.sent.clear()
    rack.give(rack.lead, fx.PeerLost(endpoint_of(victim)), 0.0)
    rack.pass_time(0.1)
    hellos = [to for to, message in rack.sent if isinstance(message, LeaderHello)]
    assert hellos == [victim.identity.address]
    rack.asked("one")
    answer = rack.answer("one")
    assert answer is not None
    assert answer.silent == ()
    assert victim.identity.node in {result.node for result in answer.results}


def test_a_connection_that_breaks_again_and_again_costs_a_greeting_now_and_then() -> None:
    rack = Rack()
    victim = rack.others[0]
    rack.cut.add(victim.identity.node)
    rack.sent.clear()
    for number in range(100):
        rack.give(rack.lead, fx.PeerLost(endpoint_of(victim)), number * 0.05)
    rack.pass_time(6.0)
    hellos = [to for to, message in rack.sent if isinstance(message, LeaderHello)]
    assert 2 <= len(hellos) <= 8, "two every 2 s: one at once, one when its record was read again"


def test_who_left_a_call_without_an_answer_is_not_waited_for_the_next_time() -> None:
    rack = Rack()
    victim = rack.others[0]
    rack.mute.add(victim.identity.node)
    assert rack.asked("one") > 0.5
    assert rack.asked("two") < 0.1
    rack.mute.clear()
    assert rack.asked("three") < 0.1
    rack.pass_time(0.1)  # its answer came late, and says that it lives
    rack.asked("four")
    answer = rack.answer("four")
    assert answer is not None
    assert answer.silent == ()


def test_who_was_mute_and_lives_is_heard_again_without_being_asked() -> None:
    rack = Rack()
    victim = rack.others[0]
    rack.mute.add(victim.identity.node)
    rack.asked("one")
    rack.mute.clear()
    rack.pass_time(2 * rack.settings.retry_max_s)
    rack.give(rack.lead, fx.Received(CALLER, RackStatusCall("status")), 0.0)
    rack.pass_time(0.05)
    (status,) = [message for _, message in rack.sent if isinstance(message, RackStatus)]
    assert [node.node for node in status.nodes if node.silent] == []


def test_the_lost_are_shown_as_silent_and_offered_no_more() -> None:
    rack = Rack()
    victim = rack.others[0]
    rack.cut.add(victim.identity.node)
    rack.give(rack.lead, fx.PeerLost(endpoint_of(victim)), 0.0)
    rack.pass_time(0.05)
    rack.give(rack.lead, fx.Received(CALLER, RackStatusCall("status")), 0.0)
    ask = AskOffer("d-abcdef01", LARGE, 50, 1, best=10)
    rack.give(rack.lead, fx.Received(CALLER, RackCall("offers", 700, ask)), 0.0)
    rack.pass_time(0.05)
    (status,) = [message for _, message in rack.sent if isinstance(message, RackStatus)]
    assert {node.node for node in status.nodes if node.silent} == {victim.identity.node}
    answer = rack.answer("offers")
    assert answer is not None
    assert len(answer.results) == 3
    assert victim.identity.node not in {result.node for result in answer.results}


def test_an_idle_agent_beats_rarely() -> None:
    rack = Rack()
    rack.sent.clear()
    rack.pass_time(10 * rack.settings.heartbeat_interval_s)
    beats = [message for _, message in rack.sent if type(message).__name__ == "Heartbeat"]
    assert len(beats) <= 5 * 12, "five agents, and a tenth of jitter"
