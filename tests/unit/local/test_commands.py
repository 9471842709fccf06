"""What `fabric status` says of ZooKeeper's servers."""

from __future__ import annotations

import pytest

from fabric.local.commands import _server
from fabric.local.state import Process, ZooKeeper

RUNNING = Process(4321, 1)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (ZooKeeper("h:1", RUNNING, "leader", False, ""), "h:1 (leader, pid 4321)"),
        (ZooKeeper("h:1", RUNNING, "", False, ""), "h:1 (does not serve, pid 4321)"),
        (ZooKeeper("h:1", RUNNING, "", True, ""), "h:1 (paused, pid 4321)"),
        (ZooKeeper("h:1", None, "", False, "killed by SIGKILL"), "h:1 (killed by SIGKILL)"),
        (
            ZooKeeper("h:1", RUNNING, "follower", False, "", disk_delay_ms=250),
            "h:1 (follower, its disk slowed down by 250 ms, pid 4321)",
        ),
    ],
)
def test_a_server_is_one_line(server: ZooKeeper, expected: str) -> None:
    assert _server(server) == expected
