"""Beats to parents, adoption by a new incarnation of one, and leases."""

from __future__ import annotations

import msgspec
import pytest

from deploy.messages import AdoptCall, Parent, StubBeat, StubPing
from deploy.records import StubRef
from deploy.stub import parents
from deploy.stub.effects import Stop
from deploy.stub.limits import StubSettings
from tests.unit.deploy.stub.scene import ADDRESS, CHARGE, GUID, HEIR, PARENT, Scene

OTHER = Parent("/site/x", "tcp://127.0.0.1:5002/00000000000000cc")
LEASED = msgspec.structs.replace(CHARGE, lease_s=12.0)


def beats_to(scene: Scene, address: str) -> list[StubBeat]:
    return [one.message for one in scene.sent if one.to == address and isinstance(one.message, StubBeat)]


def test_every_parent_hears_regularly_of_all_it_has_here() -> None:
    scene = Scene()
    scene.command("deploy", "/site/a")
    scene.command("deploy", "/site/b")
    scene.command("deploy", "/site/x/c", parent=OTHER)
    scene.pass_time(10.5)
    assert [len(beat.managents) for beat in beats_to(scene, PARENT.address)] == [2, 2]
    (beat, _) = beats_to(scene, OTHER.address)
    assert (beat.to, beat.stub, beat.guid, beat.whole) == ("/site/x", StubRef("s1", ADDRESS, "/site"), GUID, True)


def test_what_an_answer_tells_is_not_told_again() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.pass_time(1)
    assert scene.beats == []


def test_changes_close_together_are_one_beat() -> None:
    scene = Scene()
    for name in "ab":
        scene.command("deploy", f"/site/{name}", charge=LEASED)
    scene.pass_time(12.2)
    (change,) = [beat for beat in scene.beats if not beat.whole]
    assert [beat.path for beat in change.managents] == ["/site/a", "/site/b"]


def test_a_beat_that_would_be_too_large_is_several_that_are_not_whole(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(parents, "MAX_BEAT_BYTES", 150)
    scene = Scene()
    for name in "abc":
        scene.command("deploy", f"/site/{name}")
    scene.send(StubPing("p", PARENT))
    assert [(beat.whole, len(beat.managents)) for beat in scene.beats] == [(False, 2), (False, 1)]


def test_reasons_are_left_out_before_a_beat_is_not_whole(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Without a whole beat nobody could adopt what is there."""
    monkeypatch.setattr(parents, "MAX_BEAT_BYTES", 1000)
    scene = Scene()
    for name in "abc":
        scene.command("deploy", f"/site/{name}")
        scene.stub.managents[f"/site/{name}"].reason = "x" * 100
    scene.send(StubPing("p", PARENT))
    (beat,) = scene.beats
    assert beat.whole
    assert [one.reason for one in beat.managents] == ["", "", ""]


def test_a_ping_is_answered_on_its_way_with_everything() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.send(StubPing("p", PARENT), "route:9")
    (sent,) = [one for one in scene.sent if isinstance(one.message, StubBeat)]
    assert (sent.to, sent.message.whole, len(sent.message.managents)) == ("route:9", True, 1)
    scene.send(StubPing("p", OTHER), "route:9")
    assert scene.beats[-1].managents == ()


def test_a_new_incarnation_adopts_and_the_old_one_is_stale() -> None:
    scene = Scene()
    scene.command("deploy", epoch=3)
    scene.send(AdoptCall("a", HEIR, 7, ("/site/a", "/site/b")), "route:9")
    assert [(beat.path, beat.epoch) for beat in scene.beats[-1].managents] == [("/site/a", 7)]
    scene.pass_time(scene.settings.beat_s)
    assert beats_to(scene, PARENT.address) == []
    assert len(beats_to(scene, HEIR.address)) == 1
    assert scene.command("shutdown", epoch=3, attempt=9).outcome == "stale"
    assert scene.command("deploy", "/site/b", epoch=3).outcome == "stale", "what it said of others may not come true"
    scene.restart()
    assert scene.stub.managents["/site/a"].parent == HEIR
    assert scene.command("deploy", "/site/b", epoch=3).outcome == "stale"
    assert scene.command("deploy", "/site/b", epoch=7, attempt=1, parent=HEIR).outcome == "done"


def test_an_old_incarnation_does_not_take_back_what_was_adopted() -> None:
    scene = Scene()
    scene.command("deploy", epoch=7, parent=HEIR)
    disk = dict(scene.disk)
    scene.send(AdoptCall("a", PARENT, 3, ("/site/a",)))
    assert scene.stub.managents["/site/a"].parent == HEIR
    assert scene.disk == disk


def test_a_lease_that_nobody_keeps_alive_ends_in_a_shutdown() -> None:
    scene = Scene()
    scene.command("deploy", "/site/a", charge=LEASED)
    scene.command("deploy", "/site/b")
    scene.pass_time(11)
    assert not scene.done(Stop)
    scene.pass_time(2)
    assert [work.path for work in scene.done(Stop)] == ["/site/a"]
    beat = next(beat for beat in scene.beats if not beat.whole).managents[0]
    assert (beat.path, beat.life, beat.health) == ("/site/a", "configured", "ok")
    assert beat.reason == "shut down: no word from its initiator /site for 12 s, its lease"
    scene.pass_time(60)
    assert len(scene.done(Stop)) == 1


def test_any_word_from_its_parent_keeps_a_lease_and_of_no_other() -> None:
    scene = Scene()
    scene.command("deploy", charge=LEASED)
    for _ in range(5):
        scene.pass_time(9)
        scene.send(StubPing("p", PARENT))
    assert not scene.done(Stop)
    scene.pass_time(9)
    scene.send(StubPing("p", HEIR))
    scene.pass_time(4)
    assert len(scene.done(Stop)) == 1


def test_a_restarted_boot_stub_does_not_give_a_lease_out_anew() -> None:
    scene = Scene()
    scene.command("deploy", charge=LEASED)
    scene.pass_time(8)
    scene.restart()
    assert not scene.done(Stop)
    scene.pass_time(3.9)
    assert not scene.done(Stop)
    scene.pass_time(0.2)
    assert [work.path for work in scene.done(Stop)] == ["/site/a"]


def test_a_word_that_a_mark_was_made_of_counts_after_a_restart() -> None:
    scene = Scene()
    scene.command("deploy", charge=LEASED)
    scene.pass_time(9)
    scene.send(StubPing("p", PARENT))
    scene.pass_time(scene.settings.beat_s)
    scene.restart()
    scene.pass_time(6.9)
    assert not scene.done(Stop)
    scene.pass_time(0.2)
    assert len(scene.done(Stop)) == 1


@pytest.mark.parametrize(("away_s", "boot"), [(12, "boot-1"), (1, "boot-2")])
def test_a_boot_stub_that_was_away_for_a_lease_or_with_the_machine_ends_what_runs_at_once(
    away_s: float, boot: str
) -> None:
    scene = Scene()
    scene.command("deploy", charge=LEASED)
    scene.command("deploy", "/site/b")
    scene.now += away_s
    scene.boot = boot
    scene.restart()
    assert [work.path for work in scene.done(Stop)] == ["/site/a"]
    assert scene.stub.managents["/site/a"].life == "configured"
    assert scene.stub.managents["/site/a"].reason.endswith("its lease, while boot stub s1 did not run")
    assert scene.stub.managents["/site/b"].life == "active"


def test_a_lease_that_ends_while_a_command_is_under_way_is_looked_at_again() -> None:
    scene = Scene(settings=StubSettings(beat_s=1000))
    scene.command("deploy", charge=LEASED)
    scene.world = None
    scene.start("deactivate")
    scene.pass_time(13)
    assert not scene.done(Stop)
    scene.finish(None)
    scene.pass_time(13)
    assert len(scene.done(Stop)) == 1
