"""The yardstick of bench.deploy: the same deployment by Ansible, over local connections.

For each of N targets: the code is copied into the target's own directory, the configuration is written from a
template, the installation program is run, and the managent is started with its parameters as environment. Three tasks,
as few as say this; facts are not gathered; the strategy is "free", so that no host waits for another. What is better,
few or many forks, is tried on a part of the targets first.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FORKS = (4, 16)
STRATEGIES = ("free", "linear")
TRIAL_TARGETS = 20
WAIT_S = 1800.0

_PLAYBOOK = """\
- hosts: all
  gather_facts: false
  strategy: {strategy}
  tasks:
    - name: code
      copy:
        src: "{code}"
        dest: "{root}/{{{{ inventory_hostname }}}}/"
        mode: "0755"
    - name: configuration
      copy:
        content: "MANAGENT_ID=/ansible/{{{{ inventory_hostname }}}}\\nINTERVAL={{{{ 5 }}}}\\n"
        dest: "{root}/{{{{ inventory_hostname }}}}/env"
    - name: install and start
      shell:
        cmd: >-
          ./install.sh && set -a && . ./env && nohup setsid ./managent.sh >log 2>&1 </dev/null & echo $! >pid
        chdir: "{root}/{{{{ inventory_hostname }}}}"
"""


@dataclass(frozen=True, slots=True)
class Best:
    """`wall_s` for all targets, with the best of what was tried."""

    targets: int
    running: int
    wall_s: float
    forks: int
    strategy: str
    tried: Mapping[tuple[str, int], float]
    version: str


def find() -> Path | None:
    """ansible-playbook, where it is installed: beside this interpreter, or in PATH."""
    beside = Path(sys.executable).parent
    found = shutil.which("ansible-playbook", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    return Path(found) if found else None


def measure(playbook: Path, code: Path, targets: int) -> Best:
    """`code`: a folder with install.sh and managent.sh. Raises subprocess.CalledProcessError."""
    tried = {
        (strategy, forks): run(playbook, code, TRIAL_TARGETS, forks, strategy)[0]
        for strategy in STRATEGIES
        for forks in FORKS
    }
    strategy, forks = min(tried, key=lambda key: tried[key])
    wall_s, running = run(playbook, code, targets, forks, strategy)
    told = subprocess.run([str(playbook), "--version"], capture_output=True, text=True, check=True)
    return Best(targets, running, wall_s, forks, strategy, tried, told.stdout.splitlines()[0])


def run(playbook: Path, code: Path, targets: int, forks: int, strategy: str) -> tuple[float, int]:
    """(seconds, managents that run). Ends and removes what it made."""
    with tempfile.TemporaryDirectory(prefix="bench-ansible-") as name:
        folder = Path(name)
        root = folder / "targets"
        names = [f"t{number:04}" for number in range(targets)]
        for each in names:
            (root / each).mkdir(parents=True)
        (folder / "hosts").write_text("".join(f"{each}\n" for each in names))
        (folder / "play.yml").write_text(_PLAYBOOK.format(strategy=strategy, code=f"{code}/", root=root))
        environment = os.environ | {
            "ANSIBLE_HOME": str(folder / "home"),
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "LC_ALL": "C.UTF-8",
        }
        interpreter = ("-e", f"ansible_python_interpreter={playbook.parent / 'python'}")  # not looked for on each host
        words: Sequence[str] = (str(playbook), "-c", "local", "-f", str(forks), "-i", "hosts", *interpreter, "play.yml")
        try:
            began = time.monotonic()
            subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True, timeout=WAIT_S)
            wall_s = time.monotonic() - began
            return wall_s, sum(_running(root / each / "pid") for each in names)
        finally:
            for each in names:
                _end(root / each / "pid")


def _pid(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def _running(file: Path) -> bool:
    pid = _pid(file)
    return pid > 0 and Path(f"/proc/{pid}").exists()


def _end(file: Path) -> None:
    pid = _pid(file)
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
