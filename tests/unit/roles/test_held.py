"""Answers to confirm and stop wait a moment for the instances, and nothing is acknowledged that is not on the disk."""

from __future__ import annotations

import random

import msgspec

from fabric import effects as fx
from fabric.commands import Answer, Command, Confirm, Progress, Reserve, Stop
from fabric.messages import LeaderHello, NodeAnswer, NodeReport
from fabric.records import Spec
from fabric.resources import Resources
from fabric.roles.beats import Beats
from fabric.roles.compute import Compute
from fabric.roles.held import MAX_HELD
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity, Settings
from fabric.roles.work import WorkRecord

DEPLOYMENT, DIGEST = "d-abcdef01", "b3:" + "12" * 32
NEED = Resources(1, 1024, 1024)
SPEC = Spec("web", DIGEST, "Small", NEED, {}, "always")
ME = Identity("n1", "r1", "compute", "ab12cd34", "tcp://n1/ab12cd34", Resources(16, 65536, 409600), "t", "h", 1)
LINGER_S = Settings().answer_linger_s


class Agent:
    """A compute role with its journal: what it answers, and what it tells its leader beside that."""

    def __init__(self, greeted_by: str = "") -> None:
        self.out = Outbox()
        self.beats = Beats(ME, random.Random(1), self.out)
        self.role = self.beats.worker = Compute(ME, Settings(), random.Random(1), self.out, self.beats, {})
        self.role.registered = 1
        self.journal: dict[str, bytes] = {}
        self.writes = 0
        self.answers: list[tuple[str, Answer]] = []
        self.told: list[object] = []
        self.started: list[fx.StartInstance] = []
        if greeted_by:
            self.beats.on_hello(0.0, greeted_by, LeaderHello("r1", "compute", 5, "tcp://l/1", 10_000))
        self._after(0.0)

    def ask(self, command: Command, now: float = 1.0, call: str = "c1", sender: str = "route:1") -> None:
        self.role.command(now, sender, call, command)
        self._after(now)

    def confirm(self, ordinals: str = "0-1", now: float = 1.0, call: str = "confirm") -> None:
        self.ask(Reserve(DEPLOYMENT, 5, 1, 7, NEED, ordinals, 20_000), now, "reserve")
        self.answers.clear()
        self.ask(Confirm(DEPLOYMENT, 5, 2, SPEC, ordinals, "tcp://c/1"), now, call)

    def run(self, now: float = 1.1) -> None:
        """The image is there, and all start."""
        self.role.instances.on_ready(now, fx.ImageReady(DIGEST, (), (), 1, 1, 1, True))
        self._after(now)
        for one in self.started:
            self.role.instances.on_started(now, fx.InstanceStarted(one.instance, one.attempt, 7, 1, "/"))
        self._after(now)

    def stop(self, now: float = 2.0, call: str = "stop") -> None:
        self.ask(Stop(DEPLOYMENT, 5, 3, "", True), now, call)

    def gone(self, ordinal: int, now: float = 2.1) -> None:
        self.role.instances.on_gone(now, fx.InstanceGone(f"{DEPLOYMENT}.{ordinal}"))
        self._after(now)

    def tick(self, now: float) -> None:
        self.role.tick(now)
        self._after(now)

    def _after(self, now: float) -> None:
        self.role.instances.flush(now)
        self.beats.beat(now)
        for effect in self.out.take():
            if isinstance(effect, fx.Persist):
                self.writes += 1
                self.journal.update(dict(effect.puts))
                for key in effect.deletes:
                    self.journal.pop(key, None)
            elif isinstance(effect, fx.StartInstance):
                self.started.append(effect)
            elif isinstance(effect, fx.Send) and isinstance(effect.message, NodeAnswer):
                self.answers.append((effect.message.call, effect.message.answer))
                self.told.append(effect.message.vitals)
            elif isinstance(effect, fx.Send):
                self.told.append(effect.message)

    def states(self) -> list[tuple[int, bool]]:
        """(ordinal, told to stop), by the journal."""
        record = msgspec.json.decode(self.journal[f"w/{DEPLOYMENT}"], type=WorkRecord)
        return [(entry.ordinal, entry.stopping) for entry in record.entries]


def test_a_confirm_is_answered_once_when_all_run_and_nothing_is_reported() -> None:
    agent = Agent()
    agent.confirm()
    assert agent.answers == []
    agent.run()
    assert agent.states() == [(0, False), (1, False)]
    assert agent.writes == 1
    ((call, answer),) = agent.answers
    assert isinstance(answer, Progress)
    assert (call, answer.running, answer.waiting) == ("confirm", "0-1", "")
    agent.tick(1.0 + LINGER_S)
    assert len(agent.answers) == 1
    assert not any(isinstance(one, NodeReport) for one in agent.told)


def test_a_start_that_takes_long_is_answered_as_it_is_and_reported_later() -> None:
    agent = Agent()
    agent.confirm()
    assert agent.role.next_deadline == 1.0 + LINGER_S
    assert agent.journal == {}
    agent.tick(1.0 + LINGER_S)
    assert agent.states() == [(0, False), (1, False)], "on the disk before it is acknowledged"
    ((_, answer),) = agent.answers
    assert isinstance(answer, Progress)
    assert (answer.running, answer.waiting) == ("", "0-1")
    agent.run(now=3.0)
    reports = [one for one in agent.told if isinstance(one, NodeReport)]
    assert [report.progress.running for report in reports][-1:] == ["0-1"]
    assert len(agent.answers) == 1


def test_a_stop_is_answered_when_they_are_gone_and_costs_one_write() -> None:
    agent = Agent()
    agent.confirm()
    agent.run()
    agent.answers.clear()
    writes = agent.writes
    agent.stop()
    agent.gone(0)
    assert agent.answers == []
    agent.gone(1)
    ((_, answer),) = agent.answers
    assert isinstance(answer, Progress)
    assert not answer.running + answer.waiting + answer.stopping
    assert f"w/{DEPLOYMENT}" not in agent.journal
    assert agent.writes - writes == 2, "one for each that went by itself"


def test_a_stop_that_takes_long_is_on_the_disk_before_it_is_acknowledged() -> None:
    agent = Agent()
    agent.confirm()
    agent.run()
    agent.answers.clear()
    agent.stop()
    assert agent.states() == [(0, False), (1, False)]
    agent.tick(2.0 + LINGER_S)
    assert agent.states() == [(0, True), (1, True)]
    ((_, answer),) = agent.answers
    assert isinstance(answer, Progress)
    assert answer.stopping == "0-1"


def test_a_repeated_call_has_one_answer_and_another_its_own() -> None:
    agent = Agent()
    agent.confirm()
    again = Confirm(DEPLOYMENT, 5, 2, SPEC, "0-1", "tcp://c/1")
    agent.ask(again, 1.05, "confirm")
    agent.ask(again, 1.05, "another")
    agent.run()
    assert [call for call, _ in agent.answers] == ["confirm", "another"]


def test_more_than_can_be_held_are_answered_at_once_and_saved_before() -> None:
    agent = Agent()
    agent.confirm()
    for number in range(MAX_HELD):
        agent.ask(Confirm(DEPLOYMENT, 5, 2, SPEC, "0-1", "tcp://c/1"), 1.0, f"more-{number}")
    assert len(agent.answers) == 1
    agent.answers.clear()
    agent.stop(now=1.1)
    assert len(agent.answers) == 1
    assert agent.states() == [(0, True), (1, True)]


def test_that_they_have_run_is_on_the_disk_before_it_is_told() -> None:
    for late in (False, True):
        agent = Agent()
        agent.confirm()
        if late:
            agent.tick(1.0 + LINGER_S)
        agent.run(now=1.3)
        record = msgspec.json.decode(agent.journal[f"w/{DEPLOYMENT}"], type=WorkRecord)
        assert [entry.ran for entry in record.entries] == [True, True]


def test_an_answer_to_the_leader_says_what_is_new_and_no_heartbeat_does() -> None:
    agent = Agent(greeted_by="route:1")
    agent.told.clear()
    agent.confirm()
    (vitals,) = agent.told  # of the answer to reserve; the one to confirm is held
    assert getattr(vitals, "reserved", None) == 2
    agent.tick(1.0 + LINGER_S)
    agent.beats.beat(1.0 + LINGER_S)
    assert [type(one).__name__ for one in agent.told[1:]] == ["Vitals"]


def test_an_answer_to_somebody_else_says_nothing_of_the_agent() -> None:
    agent = Agent(greeted_by="route:2")
    agent.told.clear()
    agent.ask(Reserve(DEPLOYMENT, 5, 1, 7, NEED, "0", 20_000), 1.0)
    assert agent.told[0] is None
    agent.tick(1.3)
    assert [type(one).__name__ for one in agent.told[1:]] == ["Heartbeat"]
