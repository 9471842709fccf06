"""A connection to a host leaves nothing behind here, whatever its ssh left running."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path

import pytest

from deploy.ssh.command import SshSettings
from deploy.ssh.host.orders import Order
from deploy.ssh.hosts import Host
from deploy.ssh.talk import talk
from tests.unit.runtime.until import until

SSH = """#!/bin/sh
setsid sleep 30 &
echo $! > "$(dirname "$0")/pid"
exit 255
"""


def test_pipes_that_somebody_holds_open_are_closed_before_the_loop_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)
    pid = tmp_path / "pid"
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def main() -> None:
        ssh = SshSettings(str(tmp_path / "ssh"))
        talking = asyncio.create_task(talk(Host("a"), Order("check"), b"", None, ssh, lambda said: None))
        await until(lambda: pid.exists() and pid.read_text().endswith("\n"), what="the one who holds them")
        talking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await talking

    try:
        asyncio.run(main())
        gc.collect()
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)
    assert complaints == []
