"""Calls to many racks: what is repeated, and when not."""

from __future__ import annotations

from fabric.commands import Cancel
from fabric.effects import Send
from fabric.messages import RackCall
from fabric.records import Leader
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.leaders import LeaderDirectory, Seen
from fabric.roles.outbox import Outbox


class Scene:
    """A caller who knows the leaders of two racks."""

    def __init__(self) -> None:
        self.out = Outbox()
        directory = LeaderDirectory("compute", self.out)
        for rack in ("r1", "r2"):
            leader = Leader(f"{rack}c01", rack, "0123456789abcdef", f"tcp://{rack}:1/0123456789abcdef")
            directory.leaders[rack] = Seen(leader, 7)
        self.calls = RackCalls(self.out, directory, "c-", 0.3)
        self.ended: list[Gathered] = []

    def gather(self) -> None:
        self.calls.gather(0.0, "key", 2.0, lambda now, gathered: self.ended.append(gathered), Cancel("d-000001", 1, 1))

    def asked(self) -> list[str]:
        sent = [effect for effect in self.out.take() if isinstance(effect, Send)]
        assert all(isinstance(effect.message, RackCall) for effect in sent)
        return [effect.to.split(":")[1].strip("/") for effect in sent]


def test_who_has_not_answered_by_half_of_the_wait_is_asked_once_more() -> None:
    scene = Scene()
    scene.gather()
    assert scene.asked() == ["r1", "r2"]
    assert scene.calls.next_deadline == 1.0
    scene.calls.tick(1.0)
    assert scene.asked() == ["r1", "r2"]
    scene.calls.tick(1.5)
    assert scene.asked() == []
    scene.calls.tick(2.0)
    assert scene.ended[0].silent_racks == ("r1", "r2")


def test_nothing_is_repeated_while_held_and_the_wait_ends_all_the_same() -> None:
    """Found by the simulator: a coordinator whose session was SUSPENDED sent its orders a second time."""
    scene = Scene()
    scene.gather()
    assert scene.asked() == ["r1", "r2"]
    scene.calls.held = True
    scene.calls.tick(1.0)
    assert scene.asked() == []
    assert scene.calls.next_deadline == 2.0
    scene.calls.tick(2.0)
    assert scene.ended[0].silent_racks == ("r1", "r2")
