"""Step hooks: who reaches an armed step fires, once in all; nothing happens that nobody armed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fabric.effects import MoreHolders, StopInstance
from fabric.images.protocol import GetChunk
from fabric.messages import HolderRef
from fabric.runtime import stepping
from fabric.runtime.stepping import Armed, FaultError, NodeFault, Stepping

FETCH = MoreHolders("b3:" + "0" * 64, (HolderRef("s1", "r1", "tcp://127.0.0.1:1"),))
MARK = Armed("agent.fetching", action="mark")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stepping.prepare(tmp_path / "faults")
    return tmp_path / "faults"


def test_an_armed_step_fires_once_and_tells_who_it_was(folder: Path):
    one, other = Stepping(folder, "n1"), Stepping(folder, "n2")
    one.after(FETCH)
    number = stepping.arm(folder, MARK)
    one.before(FETCH)  # not the moment of this step
    assert stepping.fired(folder) == ()
    one.after(FETCH)
    other.after(FETCH)
    (told,) = stepping.fired(folder)
    assert (told.number, told.step, told.node, told.pid) == (number, "agent.fetching", "n1", os.getpid())
    assert told.about == FETCH.digest
    assert not stepping.disarm(folder, number), "it has fired"


def test_only_the_nodes_named_fire_and_only_at_the_time_named(folder: Path):
    stepping.arm(folder, Armed("agent.fetching", ("n2",), "mark", after=2))
    one, other = Stepping(folder, "n1"), Stepping(folder, "n2")
    one.after(FETCH)
    one.after(FETCH)
    other.after(FETCH)
    assert stepping.fired(folder) == ()
    other.after(FETCH)
    assert [told.node for told in stepping.fired(folder)] == ["n2"]


def test_who_comes_to_a_step_once_does_one_thing(folder: Path):
    for _ in range(2):
        stepping.arm(folder, MARK)
    one = Stepping(folder, "n1")
    one.after(FETCH)
    assert [told.number for told in stepping.fired(folder)] == [1]
    one.after(FETCH)
    assert [told.number for told in stepping.fired(folder)] == [1, 2]


def test_what_is_disarmed_does_not_fire_and_what_is_armed_at_once_after_a_look_does(folder: Path):
    one = Stepping(folder, "n1")
    for _ in range(20):  # within the grain of a file's time of change
        number = stepping.arm(folder, MARK)
        assert stepping.disarm(folder, number)
        one.after(FETCH)
        stepping.arm(folder, MARK)
        one.after(FETCH)
        assert len(stepping.fired(folder)) == 1
        stepping.disarm_all(folder)


def test_steps_of_a_transfer_are_requests_to_the_chunk_server(folder: Path):
    stepping.arm(folder, Armed("holder.chunk-sent", action="mark", after=2))
    one = Stepping(folder, "s1")
    one.after(GetChunk(id=1, hash=b"h" * 32))
    assert stepping.fired(folder) == ()
    one.after(GetChunk(id=2, hash=b"h" * 32))
    assert [told.about for told in stepping.fired(folder)] == [(b"h" * 32).hex()]


def test_what_can_not_be_armed_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(FaultError, match=r"expected a step.*'agent\.sleeping'"):
        stepping.arm(folder, Armed("agent.sleeping"))
    with pytest.raises(FaultError, match="found time 0"):
        stepping.arm(folder, Armed("agent.fetching", after=0))
    with pytest.raises(FaultError, match="brought up with --faults"):
        stepping.arm(tmp_path / "healthy", MARK)


def test_folders_that_are_missing_or_hold_nonsense_arm_nothing(folder: Path, tmp_path: Path):
    (folder / "armed" / "1.json").write_text('{"step": 7}')
    (folder / "nodes" / "n1.json").write_text("{")
    for found in (Stepping(folder, "n1"), Stepping(tmp_path / "nowhere", "n1")):
        found.after(FETCH)
        found.before(StopInstance("d-abcdef12.0", 1.0))
        assert found.fault == stepping.SOUND


def test_a_fault_of_a_node_is_seen_while_it_lasts(folder: Path):
    one = Stepping(folder, "n1")
    assert one.fault.wall_offset_ms == 0
    stepping.set_fault(folder, "n1", NodeFault(wall_offset_ms=-60_000))
    assert one.fault.wall_offset_ms == -60_000
    stepping.set_fault(folder, "n2", NodeFault(newer=True))
    assert not one.fault.newer
    stepping.set_fault(folder, "n1", stepping.SOUND)
    assert one.fault == stepping.SOUND


@pytest.mark.parametrize(
    ("action", "code"),
    [("kill", -signal.SIGKILL), ("term", -signal.SIGTERM), ("exit", stepping.EXIT_FAULT), ("mark", 0)],
)
def test_what_is_done_is_what_was_armed(folder: Path, action: stepping.Action, code: int):
    stepping.arm(folder, msgspec.structs.replace(MARK, action=action))
    script = (
        "import sys; from pathlib import Path; from fabric.runtime.stepping import Stepping;"
        "from fabric.effects import MoreHolders; from fabric.messages import HolderRef;"
        "Stepping(Path(sys.argv[1]), 'n1').after(MoreHolders('b3:0', (HolderRef('s1', 'r1', 'e'),)))"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(folder)], timeout=30, check=False)
    assert ended.returncode == code
    assert [told.action for told in stepping.fired(folder)] == [action]
