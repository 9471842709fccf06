"""The README's five-minute tour, typed as it stands there: every command, in one shell, and nothing left at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]


def tour() -> str:
    """The commands. Three things differ from the page: nothing is to be activated, the API takes any free port (the
    commands find it), and a command that says that it ends with 2 has to."""
    section = (ROOT / "README.md").read_text().split("## A five-minute tour", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    lines = "".join(blocks).replace("fabric up --detach ", "fabric up --detach --api 127.0.0.1:0 ").splitlines()
    lines = [line for line in lines if "activate" not in line]
    return "\n".join(re.sub(r"# (.*exit code 2.*)", r"|| [ $? -eq 2 ] # \1", line) for line in lines)


@pytest.mark.timeout(240)
def test_the_tour_of_the_readme(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "fabric").write_text(f'#!/bin/sh\nexec {sys.executable} -m deploy.cli.main "$@"\n')
    (commands / "fabric").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FABRIC_")},
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    work = tmp_path / "work"
    work.mkdir()
    script = tmp_path / "tour.sh"
    script.write_text(tour())
    try:
        done = subprocess.run(
            ("bash", "-eux", str(script)), cwd=work, env=environment, capture_output=True, text=True, timeout=200
        )
    finally:
        subprocess.run(("fabric", "down"), env=environment, capture_output=True, timeout=60, check=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    for said in (
        "held by ",
        "50 of 50 Large would be placed",
        "running: 50 of 50",
        "among 3 leaders",
        "running: 60 of 60",
        "XLarge needs 8",
        ".17 on r",
        "instances on a lost node: r2c02",
        "r1c05 is empty",
        "all fits together",
        "deleted",
    ):
        assert said in done.stdout + done.stderr, said
    assert not (tmp_path / f"fabric-{os.getuid()}").exists()
