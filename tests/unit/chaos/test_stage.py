"""What is noted of faults, so that the judge is fair; and the schedule that does and undoes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from fabric.chaos import eye
from fabric.chaos.faults import disks
from fabric.chaos.reading import parse
from fabric.chaos.schedule import Schedule
from fabric.chaos.script import Act
from fabric.chaos.stage import FOREVER_S, Skipped, Stage, quorum
from fabric.chaos.watch import Watcher
from fabric.chaos.watching import Watching
from fabric.chaos.world import Running
from fabric.load.history import Clock
from fabric.local.control import ControlClient, ControlError
from fabric.local.folder import Folder
from fabric.local.spec import make_spec
from fabric.local.state import LocalState, NodeView, Process, Service, ZooKeeper, nodes_of
from fabric.net.rules import LOST, Rule, cut
from fabric.runtime import stepping
from tests.unit.chaos.planted import RULES

SERVERS = ("zookeeper-1", "zookeeper-2", "zookeeper-3")


class Control:
    """A keeper that does at once what it is asked to, and writes it down."""

    def __init__(self, folder: Path, network: Any = "namespaces") -> None:
        self.spec = make_spec(folder=folder, racks=2, compute=2, storage=1, zookeepers=3, network=network, faults=True)
        self.asked: list[tuple[str, Any]] = []
        self.dead: set[str] = set()
        self.api = 1

    def status(self) -> LocalState:
        def view(name: str) -> str:
            return "dead" if name in self.dead else "registered"

        nodes = tuple(
            NodeView(one, cast(Any, view(one.name)), Process(1, 1), "killed" if one.name in self.dead else "")
            for one in nodes_of(self.spec)
        )
        servers = {
            name: ZooKeeper("", None, "leader" if name.endswith("2") else "follower", False,
                            "killed" if name in self.dead else "")
            for name in SERVERS
        }  # fmt: skip
        api = Service("http://192.0.2.1:1", Process(self.api, 1), True, "killed" if "api" in self.dead else "")
        state = LocalState("up", str(self.spec.folder), self.spec, Process(1, 1), api, api, nodes, {}, {})
        return msgspec.structs.replace(state, zookeepers=servers)

    def kill(self, who: str, number: int) -> int:
        if who in self.dead:
            raise ControlError(f"{who} has no process: killed")
        self.asked.append((f"signal {number}", who))
        if number == 9:
            self.dead.add(who)
        return 1

    def restart(self, who: str) -> int:
        self.asked.append(("restart", who))
        self.dead.discard(who)
        return 1

    def slow_disk(self, who: str, delay_ms: int) -> None:
        if who in self.dead:
            raise ControlError(f"{who} has no process: killed")
        self.asked.append((f"slow {delay_ms}", who))

    def network(self, rules: tuple[Rule, ...]) -> None:
        self.asked.append(("network", tuple(rules)))


class Seen:
    """What a watcher has seen."""

    def __init__(self) -> None:
        self.latest = eye.Present({}, {}, {("compute", "r1"): "r1c01", ("compute", "r2"): "r2c02"}, ())
        self.running: dict[Running, tuple[int, ...]] = {}


@pytest.fixture
def control(tmp_path: Path) -> Control:
    return Control(tmp_path)


@pytest.fixture
def stage(control: Control, tmp_path: Path) -> Stage:
    clock = Clock()
    return Stage(
        cast(ControlClient, control), Folder(tmp_path), cast(Watcher, Seen()), Watching(RULES), clock,
        random.Random(1), control.status(), True,
    )  # fmt: skip


def schedule_of(stage: Stage, text: str) -> tuple[Schedule, list[str]]:
    said: list[str] = []
    scenario = parse(text, "mine")
    return Schedule(stage, scenario.acts, scenario.for_s, said.append), said


def test_a_quorum_is_more_than_half_that_hear_each_other() -> None:
    assert quorum(SERVERS, (), {})
    assert quorum(SERVERS, ("zookeeper-1",), {})
    assert not quorum(SERVERS, ("zookeeper-1", "zookeeper-2"), {})
    apart = {("zookeeper-1", "zookeeper-2"): LOST, ("zookeeper-2", "zookeeper-3"): LOST}
    assert quorum(SERVERS, (), apart), "1 and 3 hear each other"
    assert not quorum(SERVERS, (), {**apart, ("zookeeper-3", "zookeeper-1"): LOST})
    assert not quorum(SERVERS, ("zookeeper-3",), apart)
    assert not quorum(("zookeeper",), ("zookeeper",), {})
    assert quorum((), (), {}), "somebody else's ensemble: nobody can tell"


def test_a_slow_disk_is_undone_though_its_server_died(stage: Stage, control: Control) -> None:
    faults = "at 1s slow-disk leader zookeeper delay=300ms for 3s\nat 2s kill zookeeper-2\n"
    plan, _ = schedule_of(stage, f"{faults}for 9s\n")
    plan.turn(1.0)
    assert control.asked == [("slow 300", "zookeeper-2")]
    plan.turn(2.0)
    plan.turn(4.0)
    assert control.asked[1:] == [("signal 9", "zookeeper-2")], "nobody to ask any more"
    plan, _ = schedule_of(stage, "at 1s slow-disk zookeeper-1 for 3s\nfor 9s\n")
    plan.turn(1.0)
    plan.turn(4.0)
    assert control.asked[2:] == [("slow 200", "zookeeper-1"), ("slow 0", "zookeeper-1")]
    plan, said = schedule_of(stage, "at 1s slow-disk zookeeper-2 for 3s\nfor 9s\n")
    plan.turn(1.0)
    assert any("has no process" in line for line in said)


def test_faults_are_done_and_undone_in_their_time(stage: Stage, control: Control) -> None:
    plan, said = schedule_of(stage, "at 2s kill r1c01 for 3s\nat 3s stop r2c01\nevery 4s restart api\nfor 9s\n")
    assert plan.turn(1.0) == 2.0
    assert control.asked == []
    plan.turn(2.0)
    assert (control.asked, set(stage.held)) == ([("signal 9", "r1c01")], {"r1c01"})
    assert plan.turn(3.5) == 4.0
    assert control.asked[1:] == [("signal 19", "r2c01")]
    plan.turn(5.1)
    assert control.asked[2:] == [("restart", "api"), ("restart", "r1c01")]
    assert set(stage.held) == {"r2c01"}
    plan.turn(8.9)
    plan.undo_all()
    assert control.asked[4:] == [("restart", "api"), ("signal 18", "r2c01")]
    assert stage.held == {}
    assert [deed.verb for deed in plan.deeds] == ["kill", "stop", "restart", "restart"]
    assert len(said) == 4


def test_what_can_not_be_done_is_noted_with_the_reason(stage: Stage, control: Control) -> None:
    stage.disks = "run it as root"
    plan, _ = schedule_of(
        stage, "at 1s kill r1c01\nat 2s kill r1c01\nat 2s fill r2c01\nat 2s end any instance\nfor 5s\n"
    )
    plan.turn(4.0)
    assert [deed.skipped for deed in plan.deeds] == [
        "", "r1c01 has no process: killed", "run it as root", "nobody is any instance now",
    ]  # fmt: skip


def test_who_was_started_meanwhile_is_not_started_again(stage: Stage, control: Control) -> None:
    plan, _ = schedule_of(stage, "at 1s kill r1c01 for 3s\nfor 5s\n")
    plan.turn(1.0)
    control.restart("r1c01")
    plan.turn(5.0)
    assert control.asked.count(("restart", "r1c01")) == 1
    assert stage.held == {}


def test_a_managent_is_started_again_by_its_boot_stub(stage: Stage, control: Control) -> None:
    stage.folder.repository_url.parent.mkdir()
    stage.folder.repository_url.write_text("http://192.0.2.1:1/")
    plan, _ = schedule_of(stage, "at 1s kill r1c01 for 3s\nat 1s restart r2c01\nat 1s restart api\nfor 5s\n")
    plan.turn(1.0)
    plan.turn(4.1)
    assert control.asked == [("signal 9", "r1c01"), ("signal 9", "r2c01"), ("restart", "api")]
    assert stage.held == {}


def test_an_outage_lasts_from_the_loss_of_the_quorum_to_its_return(stage: Stage) -> None:
    plan, _ = schedule_of(stage, "at 1s kill zookeeper-1 for 2s\nat 2s kill zookeeper-2 for 5s\nfor 9s\n")
    plan.turn(1.0)
    assert not stage.in_outage
    plan.turn(2.0)
    assert stage.in_outage
    assert stage.watching.outage is not None
    plan.turn(3.0)
    assert not stage.in_outage
    assert stage.watching.outage is None
    assert [one.to_s < FOREVER_S for one in stage.outages] == [True]


def test_the_network_has_the_rules_of_all_faults_that_last(stage: Stage, control: Control) -> None:
    plan, _ = schedule_of(
        stage, "at 1s cut r1 | rest for 4s\nat 2s slow r2c01 > zookeeper delay=50ms for 1s\nfor 9s\n"
    )
    plan.turn(1.0)
    assert control.asked == [("network", cut(("r1c01", "r1c02", "r1s01"), ("rest",)))]
    plan.turn(2.0)
    rules = control.asked[-1][1]
    assert len(rules) == 3
    assert (rules[2].source, rules[2].target, rules[2].verdict.delay_ms) == (("r2c01",), SERVERS, 50.0)
    plan.turn(3.1)
    assert len(control.asked[-1][1]) == 2
    plan.undo_all()
    assert control.asked[-1] == ("network", ())


def test_a_cut_among_zookeepers_is_an_outage_and_one_before_the_api_an_excuse(stage: Stage) -> None:
    servers = "at 1s cut zookeeper-1 | rest\nat 2s cut zookeeper-2 | zookeeper-3 for 1s\n"
    plan, _ = schedule_of(stage, f"{servers}at 4s cut api | rest\nfor 9s\n")
    plan.turn(1.0)
    assert not stage.in_outage
    plan.turn(2.0)
    assert stage.in_outage
    plan.turn(3.1)
    assert not stage.in_outage
    plan.turn(4.0)
    assert stage.api_held
    stage.api_answers()
    assert stage.api_held, "as long as its network is bad"
    plan.undo_all()
    stage.api_answers()
    assert not stage.api_held


def test_an_api_that_is_restarted_is_excused_until_it_is_the_new_one_that_answers(
    stage: Stage, control: Control
) -> None:
    plan, _ = schedule_of(stage, "at 1s restart api\nfor 9s\n")
    plan.turn(1.0)
    assert control.asked == [("restart", "api")]
    stage.api_answers()
    assert stage.api_held, "the old one answers while it ends"
    control.api = 2
    stage.api_answers()
    assert not stage.api_held


def test_a_step_is_armed_and_whoever_fires_is_brought_back(stage: Stage, control: Control) -> None:
    stepping.prepare(stage.folder.faults)
    plan, _ = schedule_of(
        stage, "on coordinator.plan-written kill for 2s\nat 1s on api.recorded kill\nfor 9s\n"
    )
    plan.turn(0.0)
    (armed,) = (stage.folder.faults / "armed").iterdir()
    told = stepping.Fired("coordinator.plan-written", "kill", 1, "r2c02", 5, 6)
    armed.unlink()
    (stage.folder.faults / "fired" / "1.json").write_bytes(msgspec.json.encode(told))
    control.dead.add("r2c02")
    plan.turn(1.0)
    assert set(stage.held) == {"r2c02"}
    plan.turn(3.1)
    assert control.asked == [("restart", "r2c02")]
    plan.undo_all()
    assert [(deed.names, deed.skipped) for deed in plan.deeds] == [
        (("r2c02",), ""), (("on api.recorded kill",), "nobody came to this step"),
    ]  # fmt: skip
    assert list((stage.folder.faults / "armed").iterdir()) == []


def test_a_clock_steps_and_is_set_right(stage: Stage) -> None:
    stepping.prepare(stage.folder.faults)
    plan, _ = schedule_of(stage, "at 1s clock r1c01 by=-90s for 2s\nfor 9s\n")
    plan.turn(1.0)
    fault = stage.folder.faults / "nodes" / "r1c01.json"
    assert msgspec.json.decode(fault.read_bytes())["wall_offset_ms"] == -90_000
    plan.turn(3.1)
    assert not fault.exists()


def test_bytes_rot_in_one_chunk_and_a_journal_loses_its_end(stage: Stage, control: Control) -> None:
    chunks = stage.folder.node("r1s01") / "store" / "chunks"
    chunks.mkdir(parents=True)
    for name in "ab":
        (chunks / name).write_bytes(bytes(1000))
    disks.rot(stage, Act("rot"), ("r1s01",))
    assert sorted(path.read_bytes() == bytes(1000) for path in chunks.iterdir()) == [False, True]
    assert [path.stat().st_size for path in chunks.iterdir()] == [1000, 1000]
    with pytest.raises(Skipped, match="no chunk that could rot"):
        disks.rot(stage, Act("rot"), ("r2s01",))
    log = stage.folder.node("r1c01") / disks.JOURNAL
    log.parent.mkdir(parents=True)
    log.write_bytes(bytes(100))
    disks.tear(stage, Act("tear", options=(("bytes", 30.0),)), ("r1c01",))
    assert log.stat().st_size == 70
    assert control.asked == [("signal 9", "r1c01"), ("restart", "r1c01")]


def test_without_hooks_or_a_network_of_its_own_it_says_what_is_missing(tmp_path: Path) -> None:
    control = Control(tmp_path, "host")
    bare = msgspec.structs.replace(control.status(), spec=msgspec.structs.replace(control.spec, faults=False))
    stage = Stage(
        cast(ControlClient, control), Folder(tmp_path), cast(Watcher, Seen()), Watching(RULES), Clock(),
        random.Random(1), bare, True,
    )  # fmt: skip
    plan, said = schedule_of(stage, "on api.recorded kill\nat 1s clock r1c01 for 1s\nfor 5s\n")
    plan.turn(1.0)
    assert all("brought up with --faults" in deed.skipped for deed in plan.deeds)
    assert all("not done" in line for line in said)
