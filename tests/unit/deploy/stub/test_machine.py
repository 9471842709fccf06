"""The boot stub's state machine: commands, answers, memory. Effects are compared; nothing is done for real."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from deploy.configuration import Configuration, ProgramRole
from deploy.messages import AdoptCall, BipAnswer, BipCall, InspectAnswer, InspectCall, Parent, Span, deploy_codec
from deploy.records import Prints, StubRef
from deploy.states import ALIVE, COMMANDS, ENV_STATES, LIFE_STATES, VERBS, refusal
from deploy.stub.effects import (
    Adopt,
    Charged,
    CloseInitiator,
    Code,
    Ended,
    HostInitiator,
    Install,
    Installed,
    Load,
    Resolve,
    Run,
    Send,
    Start,
    StepFailed,
    Stop,
    Switch,
    SwitchInitiator,
    Undone,
    Uninstall,
)
from deploy.stub.limits import StubSettings
from deploy.stub.managent import Managent
from fabric.effects import Persist
from fabric.wire import BadFrame
from tests.unit.deploy.stub.scene import (
    CHARGE,
    HEIR,
    INITIATOR,
    PARENT,
    Scene,
    failing,
    obliging,
    prints,
    resolved,
)

RUN = Run("process", "./agent.sh", 77, 1000, "boot")
POSSIBLE = [
    (env, life)
    for env, life in itertools.product(ENV_STATES, LIFE_STATES)
    if (env == "installed") == (life != "non-existent") and env != "non-existent"
]


def put(scene: Scene, env: Any, life: Any, managent: Configuration | None = None, path: str = "/site/a") -> Managent:
    """A managent in these states."""
    one = Managent(path, 1, 1, PARENT, CHARGE, env, life, prints=prints(), managent=managent or Configuration())
    one.complete = env == "installed"
    one.run = RUN if life in ALIVE else None
    scene.stub.managents[path] = one
    scene.stub._parents.join(one, scene.now)
    return one


# --- Table 1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("env", "life"), POSSIBLE)
def test_every_command_in_every_pair_of_states_that_can_be(verb: Any, env: Any, life: Any) -> None:
    scene = Scene()
    put(scene, env, life)
    answer = scene.command(verb)
    reason = refusal(verb, env, life)
    if reason is not None:
        assert (answer.outcome, answer.reason, answer.env, answer.life) == ("refused", reason, env, life)
        assert scene.works == []
        assert scene.disk == {}
    else:
        row = COMMANDS[verb]
        assert (answer.outcome, answer.reason) == ("done", "")
        assert (answer.env, answer.life) == (row.env_after or env, row.life_after or life)


@pytest.mark.parametrize("verb", VERBS)
def test_commands_for_a_managent_that_is_not_here(verb: Any) -> None:
    answer = Scene().command(verb, "/site/nobody")
    if verb == "deploy":
        assert answer.outcome == "done"
    elif verb == "uninstall":  # its condition is none, and what it is to bring about is so already
        assert (answer.outcome, answer.env, answer.life) == ("done", "non-existent", "non-existent")
    else:
        assert answer.outcome == "unknown"
        assert answer.reason.startswith("no such managent on boot stub s1; ")
        assert "found the environment non-existent and the managent non-existent" in answer.reason


def test_a_deployment_makes_its_steps_in_order_and_answers_when_it_is_on_the_disk() -> None:
    scene = Scene()
    answer = scene.command("deploy")
    assert [type(work) for work in scene.works] == [Resolve, Load, Install, Start]
    assert scene.done(Load)[0].fresh
    assert answer == BipAnswer(
        call="c1",
        to="/site",
        managent="/site/a",
        stub="s1",
        outcome="done",
        env="installed",
        life="active",
        prints=prints(),
        spans=(Span(2, 5), Span(3, 0), Span(4, 0), Span(3, 5), Span(5, 5), Span(6, 5)),
    )
    last = [effect for effect in scene.effects if isinstance(effect, Persist | Send)]
    assert [type(effect) for effect in last] == [Persist, Send]


def test_the_resolvers_own_times_are_told() -> None:
    scene = Scene(lambda work: resolved(ms=(1, 2, 3)) if isinstance(work, Resolve) else obliging(work))
    spans = scene.command("deploy").spans
    assert spans[:3] == (Span(2, 1), Span(3, 2), Span(4, 3))


def test_a_deployment_that_fails_half_way_leaves_what_was_reached_and_may_be_tried_again() -> None:
    failed = StepFailed("exit status 3", ("no disk",), undo=(Code("agent.sh"),))
    scene = Scene(failing(Install, failed))
    answer = scene.command("deploy")
    assert (answer.outcome, answer.reason, answer.tail) == ("failed", "exit status 3", ("no disk",))
    assert (answer.env, answer.life) == ("configured", "non-existent")
    scene.works.clear()
    scene.world = obliging
    assert scene.command("deploy").outcome == "done"
    assert [type(work) for work in scene.works] == [Resolve, Uninstall, Load, Install, Start]
    assert scene.done(Uninstall)[0].installed.undo == (Code("agent.sh"),)
    assert scene.done(Load)[0].fresh


def test_a_repository_that_does_not_answer_leaves_nothing() -> None:
    scene = Scene(failing(Resolve, StepFailed("no answer")))
    answer = scene.command("deploy")
    assert (answer.outcome, answer.reason, answer.env) == ("failed", "no answer", "non-existent")
    assert not answer.final
    assert scene.stub.managents == {}


def test_a_start_that_fails_leaves_it_configured() -> None:
    scene = Scene(failing(Start, StepFailed("no such file")))
    answer = scene.command("deploy")
    assert (answer.outcome, answer.env, answer.life) == ("failed", "installed", "configured")
    scene.world = obliging
    assert scene.command("start").life == "active"


def test_no_match_at_all() -> None:
    scene = Scene(lambda work: resolved(Configuration(), code=()) if isinstance(work, Resolve) else obliging(work))
    answer = scene.command("deploy")
    assert answer.outcome == "failed"
    assert "no match at all: http://repository/ has no code for managent /site/a" in answer.reason
    assert answer.final


def test_start_commands_that_contradict_each_other() -> None:
    scene = Scene()
    answer = scene.command("deploy", charge=msgspec.structs.replace(CHARGE, start="./other"))
    assert answer.outcome == "failed"
    assert "the initiator tells './other', the configuration says './agent.sh'" in answer.reason


def test_the_initiators_start_command_is_passed_on() -> None:
    world = lambda work: resolved(Configuration()) if isinstance(work, Resolve) else obliging(work)  # noqa: E731
    scene = Scene(world)
    scene.command("deploy", charge=msgspec.structs.replace(CHARGE, start="./told --fast"))
    assert (scene.done(Install)[0].told, scene.done(Start)[0].told) == ("./told --fast", "./told --fast")


@pytest.mark.parametrize("verb", ["deploy", "configure-env", "configure-managent"])
def test_a_command_without_the_charge_it_needs(verb: Any) -> None:
    scene = Scene()
    put(scene, *(("installed", "configured") if verb == "configure-managent" else ("configured", "non-existent")))
    answer = scene.command(verb, charge=None)
    assert (answer.outcome, "expected a charge" in answer.reason) == ("refused", True)


def test_configuring_the_managent_is_used_by_the_next_start() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.command("shutdown")
    new = Configuration(env={"A": "1"}, program=ProgramRole(start="./new"))
    scene.world = lambda work: (
        resolved(new, prints=prints("d", "e", "f")) if isinstance(work, Resolve) else obliging(work)
    )
    answer = scene.command("configure-managent")
    assert answer.prints == prints("c", "a", "f"), "code and installation are what they were"
    scene.command("start")
    assert scene.done(Start)[-1].managent == new
    assert scene.done(Start)[-1].told == "./new"


def test_configuring_the_environment_removes_the_managent_and_is_followed_by_a_deployment() -> None:
    scene = Scene()
    scene.command("deploy")
    assert scene.command("configure-env").outcome == "refused", "it runs"
    scene.command("shutdown")
    answer = scene.command("configure-env")
    assert (answer.env, answer.life, answer.prints) == ("configured", "non-existent", prints("c", "a", ""))
    scene.command("deploy")
    assert not scene.done(Load)[-1].fresh, "the installation code is run again, over what it made"


def test_uninstalling_is_written_down_before_it_begins_and_after() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.command("shutdown")
    scene.effects.clear()
    answer = scene.command("uninstall")
    assert (answer.outcome, answer.env, answer.life) == ("done", "non-existent", "non-existent")
    kinds = [type(effect).__name__ for effect in scene.effects if type(effect).__name__ != "Note"]
    assert kinds == ["Persist", "Step", "Persist", "Send"]
    assert [key[:2] for key in scene.disk] == ["f/"]


def test_what_the_uninstallation_complained_of_is_told() -> None:
    scene = Scene(lambda work: Undone("exit status 1", ("hm",)) if isinstance(work, Uninstall) else obliging(work))
    scene.command("deploy")
    scene.command("shutdown")
    answer = scene.command("uninstall")
    assert (answer.outcome, answer.env, answer.reason, answer.tail) == (
        "done",
        "non-existent",
        "exit status 1",
        ("hm",),
    )


def test_a_folder_that_can_not_be_removed_is_no_installation_any_more() -> None:
    scene = Scene(failing(Uninstall, StepFailed("can't be removed")))
    scene.command("deploy")
    scene.command("shutdown")
    answer = scene.command("uninstall")
    assert (answer.outcome, answer.env, answer.life) == ("failed", "configured", "non-existent")
    scene.restart()
    assert scene.stub.managents["/site/a"].env == "configured", "what failed is not tried again by itself"
    scene.world = obliging
    assert scene.command("deploy").outcome == "done"
    assert scene.done(Load)[-1].fresh


# --- whose word counts, and repeated calls -------------------------------------------------------------------------


def test_an_older_pair_is_stale() -> None:
    scene = Scene()
    scene.command("deploy", epoch=5, attempt=2)
    for pair in ((4, 9), (5, 1)):
        answer = scene.command("shutdown", epoch=pair[0], attempt=pair[1])
        assert (answer.outcome, answer.life) == ("stale", "active")
        assert answer.reason == f"expected at least epoch and attempt 5, 2, found {pair[0]}, {pair[1]}"
    assert scene.command("shutdown", epoch=5, attempt=2).outcome == "done"


def test_the_pair_of_a_managent_that_is_gone_is_remembered_over_a_restart() -> None:
    scene = Scene()
    scene.command("deploy", epoch=5)
    scene.command("shutdown", epoch=5)
    scene.command("uninstall", epoch=6)
    scene.restart()
    assert scene.command("deploy", epoch=5).outcome == "stale"
    assert scene.command("deploy", epoch=6).outcome == "done"


def test_a_call_that_is_repeated_is_carried_out_once() -> None:
    scene = Scene()
    first = scene.command("deploy", call="x")
    assert scene.command("deploy", call="x") == first
    assert len(scene.done(Install)) == 1


def test_a_call_that_is_repeated_while_it_is_carried_out_is_running_and_answered_on_the_latest_way() -> None:
    scene = Scene(world=None)
    scene.start("deploy", call="x")
    assert scene.command("deploy", call="x", sender="route:2").outcome == "running"
    assert scene.command("deploy", call="y", sender="route:3").reason == "under way: deploy"
    for result in (resolved(), None, Installed(), RUN):
        scene.finish(result)
    assert (scene.sent[-1].to, scene.answers[-1].call, scene.answers[-1].outcome) == ("route:2", "x", "done")


def test_an_answer_that_was_lost_in_a_crash_is_given_again() -> None:
    scene = Scene()
    first = scene.command("deploy", call="x")
    scene.restart()
    assert scene.command("deploy", call="x") == first
    scene.command("shutdown")
    gone = scene.command("uninstall", call="z")
    scene.restart()
    assert scene.command("uninstall", call="z") == gone


def test_the_number_of_kept_answers_and_of_forgotten_managents_is_bounded() -> None:
    scene = Scene(settings=StubSettings(kept_answers=2, kept_forgotten=3))
    for number in range(5):
        path = f"/site/n{number}"
        for verb in ("deploy", "shutdown", "start", "shutdown", "uninstall"):
            scene.command(verb, path)
    assert len(scene.disk) == 3
    assert len(scene.stub._forgotten) == 3
    assert all(len(one.answers) == 2 for one in scene.stub._forgotten.values())


def test_what_comes_too_late_changes_nothing() -> None:
    scene = Scene(world=None)
    scene.start("deploy")
    step = scene.open[0]
    scene.finish(StepFailed("no"))
    before = len(scene.sent)
    scene.open.append(step)
    scene.finish(resolved())
    assert len(scene.sent) == before


def test_a_boot_stub_takes_so_many_managents_and_so_many_commands_at_once() -> None:
    scene = Scene(settings=StubSettings(max_managents=1))
    scene.command("deploy", "/site/a")
    assert "expected at most 1 managents on boot stub s1" in scene.command("deploy", "/site/b").reason
    busy = Scene(world=None, settings=StubSettings(max_calls=1))
    busy.start("deploy", "/site/a")
    assert busy.command("deploy", "/site/b").outcome == "running"
    assert "/site/b" not in busy.stub.managents


@pytest.mark.parametrize("path", ["/site/..", "/site//a", "site/a", "/site/a/", "/", "", "/si te", "/a" * 17])
def test_identifiers_that_can_not_be_do_not_even_decode(path: str) -> None:
    codec = deploy_codec(None)
    call = BipCall("c", "deploy", path, 1, 1, PARENT, CHARGE)
    with pytest.raises(BadFrame):
        codec.decode(codec.encode(call, ""))


def test_nobody_but_its_parent_commands_or_adopts_a_managent() -> None:
    scene = Scene()
    scene.command("deploy")
    stranger = Parent("/other", "tcp://127.0.0.1:5002/00000000000000cc")
    answer = scene.command("shutdown", parent=stranger, epoch=9)
    assert (answer.outcome, answer.life) == ("refused", "active")
    assert answer.reason == "expected a command of /site, its parent, found one of /other"
    scene.send(AdoptCall("a", stranger, 9, ("/site/a", "/site/b")))
    assert scene.stub.managents["/site/a"].pair == (1, 1)
    assert scene.command("deploy", "/site/b").outcome == "done", "nor is one that is not here taken away"
    answer = scene.command("deploy", "/first", parent=stranger)
    assert answer.reason == "expected a command of the top, its parent, found one of /other"


def test_a_message_without_the_clusters_key_does_not_decode() -> None:
    call = BipCall("c", "deploy", "/site/a", 1, 1, PARENT, CHARGE)
    with pytest.raises(BadFrame, match="seal"):
        deploy_codec(b"k" * 32).decode(deploy_codec(b"s" * 32).encode(call, ""))


# --- ends, adoption ------------------------------------------------------------------------------------------------


def test_a_program_that_ends_by_itself_is_configured_again_and_its_parent_hears_so() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.news(Ended("/site/a", RUN, "its program ended: exit status 1", ("boom",)))
    scene.pass_time(0.1)
    (beat,) = scene.beats[-1].managents
    assert not scene.beats[-1].whole
    assert (beat.life, beat.health, beat.reason) == ("configured", "crashed", "its program ended: exit status 1: boom")
    assert scene.command("start").life == "active"
    scene.pass_time(scene.settings.beat_s)
    assert scene.beats[-1].managents[0].health == "ok"


def test_news_of_an_earlier_run_is_old_news() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.news(Ended("/site/a", Run("process", "./agent.sh", 76, 900, "boot"), "its program ended"))
    assert scene.stub.managents["/site/a"].life == "active"


def test_a_program_that_ends_while_it_is_told_something() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.world = None
    scene.start("deactivate")
    scene.news(Ended("/site/a", RUN, "its program ended"))
    scene.finish(None)
    assert (scene.answers[-1].outcome, scene.answers[-1].life) == ("failed", "configured")
    assert "it ended meanwhile: its program ended" in scene.answers[-1].reason


def test_after_a_restart_programs_are_found_again_and_parents_get_everything() -> None:
    scene = Scene()
    scene.command("deploy", "/site/a")
    scene.command("deploy", "/site/b")
    scene.command("deactivate", "/site/b")
    scene.works.clear()
    scene.restart()
    assert [(work.path, work.run, work.active) for work in scene.done(Adopt)] == [
        ("/site/a", RUN, True),
        ("/site/b", RUN, False),
    ]
    scene.pass_time(0.1)
    assert {(beat.path, beat.life) for beat in scene.beats[-1].managents} == {
        ("/site/a", "active"),
        ("/site/b", "passive"),
    }
    assert scene.beats[-1].whole


def test_what_is_not_found_again_has_crashed() -> None:
    scene = Scene()
    scene.command("deploy")
    scene.world = failing(Adopt, StepFailed("its program ended while the boot stub was away"))
    scene.restart()
    scene.pass_time(0.1)
    (beat,) = scene.beats[-1].managents
    assert (beat.life, beat.health) == ("configured", "crashed")


def test_an_uninstallation_that_a_crash_cut_short_is_taken_from_its_beginning() -> None:
    """Nobody knows how far its code came, or whether it was run at all: what it did not reverse is still there."""
    code = Installed(undo=(Code("install"),))
    scene = Scene(lambda work: code if isinstance(work, Install) else obliging(work))
    scene.command("deploy")
    scene.command("shutdown")
    scene.world = None
    scene.start("uninstall")
    scene.world = obliging
    scene.works.clear()
    scene.restart()
    assert [work.installed for work in scene.done(Uninstall)] == [code]
    assert scene.stub.managents == {}
    assert [key[:2] for key in scene.disk] == ["f/"]


def test_a_charge_of_a_large_domain_survives() -> None:
    domain = tuple(StubRef(f"s{n}", f"tcp://host-{n:05}.example:7000/{n:016x}", "/site") for n in range(20_000))
    scene = Scene(lambda work: resolved(INITIATOR) if isinstance(work, Resolve) else obliging(work))
    charge = msgspec.structs.replace(CHARGE, domain=domain)
    scene.command("deploy", charge=charge)
    assert max(map(len, scene.disk.values())) <= 1024 * 1024
    scene.restart()
    assert scene.stub.managents["/site/a"].charge == charge


# --- initiators --------------------------------------------------------------------------------------------------


def initiating(work: Any) -> Any:
    return resolved(INITIATOR) if isinstance(work, Resolve) else obliging(work)


def test_an_initiator_is_hosted_told_and_closed() -> None:
    scene = Scene(initiating)
    answer = scene.command("deploy", epoch=3, attempt=4)
    assert answer.initiator
    charge = scene.done(HostInitiator)[0].charge
    assert (charge.path, charge.epoch, charge.attempt, charge.parent, charge.charge) == (
        "/site/a",
        3,
        4,
        PARENT,
        CHARGE,
    )
    scene.works.clear()
    for verb in ("deactivate", "activate", "shutdown"):
        assert scene.command(verb, epoch=3, attempt=4).outcome == "done"
    assert scene.works == [
        SwitchInitiator("/site/a", False),
        Switch("/site/a", False),
        Switch("/site/a", True),
        SwitchInitiator("/site/a", True),
        CloseInitiator("/site/a"),
        Stop("/site/a", 10.0),
    ]


def test_an_initiator_alone_has_no_program() -> None:
    scene = Scene(lambda work: Run("none") if isinstance(work, Start) else initiating(work))
    scene.command("deploy")
    scene.command("deactivate")
    scene.command("shutdown")
    assert not scene.done(Stop)
    assert not scene.done(Switch)


def test_a_program_goes_with_its_initiator_and_the_other_way_round() -> None:
    scene = Scene(initiating)
    scene.command("deploy")
    scene.works.clear()
    scene.news(Ended("/site/a", None, "its initiator failed"))
    assert scene.works == [CloseInitiator("/site/a"), Stop("/site/a", 10.0)]
    assert scene.command("start").outcome == "done"


def test_an_initiator_that_can_not_be_made_takes_its_program_along() -> None:
    scene = Scene(failing(HostInitiator, StepFailed("hosts none"), initiating))
    answer = scene.command("deploy")
    assert (answer.outcome, answer.life) == ("failed", "configured")
    assert len(scene.done(Stop)) == 1


def test_an_initiator_that_can_not_be_made_again_after_a_restart_takes_its_program_along() -> None:
    """Else it would run on unknown to anybody, and the next start would make a second one."""
    scene = Scene(initiating)
    scene.command("deploy")
    scene.world = failing(HostInitiator, StepFailed("hosts none"), initiating)
    scene.restart()
    scene.pass_time(0.1)
    assert scene.works[-1] == Stop("/site/a", 10.0)
    (beat,) = scene.beats[-1].managents
    assert (beat.life, beat.health, beat.reason) == ("configured", "crashed", "hosts none")


def test_an_initiator_that_can_not_settle_goes_on() -> None:
    scene = Scene(failing(Switch, StepFailed("no answer", silent=True), initiating))
    scene.command("deploy")
    answer = scene.command("deactivate")
    assert (answer.outcome, answer.life) == ("failed", "active")
    assert scene.works[-1] == SwitchInitiator("/site/a", True)
    scene.pass_time(scene.settings.beat_s)
    assert scene.beats[-1].managents[0].health == "silent"


def test_a_hosted_initiator_hears_of_its_new_parent() -> None:
    scene = Scene(initiating)
    scene.command("deploy")
    scene.send(AdoptCall("a", HEIR, 7, ("/site/a",)))
    (charged,) = [effect for effect in scene.effects if isinstance(effect, Charged)]
    assert (charged.charge.parent, charged.charge.epoch) == (HEIR, 7)


# --- inspection --------------------------------------------------------------------------------------------------


def test_inspecting_compares_and_changes_nothing() -> None:
    scene = Scene()
    scene.command("deploy")
    disk = dict(scene.disk)
    scene.world = lambda work: resolved(INITIATOR, prints=prints("c", "a", "f"))
    scene.send(InspectCall("i", "/site/a", PARENT, CHARGE))
    answer = scene.sent[-1].message
    assert isinstance(answer, InspectAnswer)
    assert (answer.have, answer.want, answer.initiator) == (prints(), prints("c", "a", "f"), True)
    assert scene.disk == disk


def test_inspecting_a_managent_that_is_not_here_and_a_repository_that_is_silent() -> None:
    scene = Scene(failing(Resolve, StepFailed("x" * 900, final=True)))
    scene.send(InspectCall("i", "/site/a", PARENT, CHARGE))
    answer = scene.sent[-1].message
    assert isinstance(answer, InspectAnswer)
    assert (answer.env, answer.have, answer.want, answer.error) == ("non-existent", Prints(), Prints(), "x" * 500)
    assert answer.final


def test_an_inspection_that_is_repeated_asks_once() -> None:
    scene = Scene(world=None, settings=StubSettings(max_inspections=1))
    scene.send(InspectCall("i", "/site/a", PARENT, CHARGE), "route:1")
    scene.send(InspectCall("i", "/site/a", PARENT, CHARGE), "route:2")
    scene.send(InspectCall("j", "/site/a", PARENT, CHARGE), "route:1")
    assert len(scene.open) == 1
    scene.finish(resolved())
    assert [one.to for one in scene.sent] == ["route:2"]
