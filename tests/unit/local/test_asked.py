"""Agents that the keeper starts only when somebody asks for them, and the companions that do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fabric.local.control import ControlError
from fabric.local.front import UpFailed
from fabric.local.harness import LocalFabric
from tests.unit.local.test_keeper import assert_nothing_left, behave

pytestmark = pytest.mark.system


def asking(tmp_path: Path) -> LocalFabric:
    return LocalFabric(
        keeper_module="tests.unit.local.asking", parent=tmp_path, racks=1, compute=2, storage=1, session_timeout_s=2.0
    )


def test_agents_run_as_they_were_asked_for_and_only_once(tmp_path: Path) -> None:
    with asking(tmp_path) as fabric:
        processes = fabric.processes()
        told = dict(line.split() for line in fabric.logs("steward").splitlines())
        assert told == {name: str(fabric.pid(name)) for name in ("r1c01", "r1c02", "r1s01")}
        assert fabric.logs("r1c02").splitlines()[0] == "ordered agent r1c02 blue /"
        assert all(os.getpgid(int(pid)) == int(pid) for pid in told.values()), "so that they can be signalled by group"
        control = fabric.front.control
        with pytest.raises(ControlError, match=r"r1c01 runs already, as pid \d+"):
            control.start("r1c01", ["agent", "r1c01"], {}, "/")
        with pytest.raises(ControlError, match="r1c01 is a managent: its boot stub starts it again"):
            control.restart("r1c01")
        with pytest.raises(ControlError, match="api is started by the keeper itself"):
            control.start("api", ["api"], {}, "/")
        fabric.kill("r1c01", signal.SIGKILL)
        pid = control.start("r1c01", ["agent", "r1c01"], {"COLOUR": "red"}, "/tmp")
        fabric.wait(lambda: fabric.node("r1c01").state == "registered", "r1c01 to be back")
        assert fabric.pid("r1c01") == pid
        assert "ordered agent r1c01 red /tmp" in fabric.logs("r1c01")
        killed = fabric.kill("idler")
        fabric.wait(lambda: fabric.pid("idler") not in (0, killed), "a companion to come back by itself")
        assert list(fabric.status().companions) == ["idler"], "those that stay"
        processes |= fabric.processes()
    assert_nothing_left(processes, fabric.folder.path)


def test_a_companion_that_fails_is_why_the_fabric_does_not_come_up(tmp_path: Path) -> None:
    fabric = asking(tmp_path)
    behave(fabric, steward="fails")
    with pytest.raises(UpFailed, match=r"(?s)steward exited with 3 while the fabric came up.*I could not"), fabric:
        pass
    assert not fabric.folder.path.exists()
