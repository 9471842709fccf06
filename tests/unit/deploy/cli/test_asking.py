"""A question to a person at a terminal is seen, though progress is on the screen, and its answer counts."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
ASK = """
import asyncio
from deploy.cli.applying import Watching
from deploy.messages import Counts
from deploy.top import Progress
from deploy.waves import Wave
from fabric.cli import output

wave = Wave(1, 2, "/r", ())
with output.Progress() as shown:
    watching = Watching(shown)
    watching.show(Progress(wave, Counts(targeted=1, active=1), 2, ()))
    agreed = asyncio.run(watching.ask(wave, Counts(targeted=1, active=1)))
print("agreed:", agreed)
"""


@pytest.mark.parametrize(("answer", "agreed"), [(b"y\n", b"True"), (b"\n", b"False")])
def test_a_question_is_seen_and_answered(answer: bytes, agreed: bytes) -> None:
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        (sys.executable, "-c", ASK), cwd=ROOT, stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True
    )
    os.close(its_end)
    said = b""
    try:
        while b"go on? [y/N]" not in said:
            said += os.read(terminal, 4096)
        os.write(terminal, answer)
        while b"agreed: " + agreed not in said:
            said += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        process.kill()
        process.wait()
    assert b"wave 1 of 2 is settled: 1 targeted = 1 active" in said
