"""How the program of a managent becomes a process.

The default launcher (deploy.stub.spawning) executes it. Another one may make it in a cheaper way: the local fabric
forks its agents from a process that has all their modules loaded. What every launcher keeps to:

- the process leads a session of its own, reads /dev/null, and appends its output to the log;
- it goes on when the boot stub ends;
- its end is seen through a pidfd, so it need not be a child of the boot stub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Program:
    """What is to be started. `argv`: the start command, split; its first part is a path, or is looked up in PATH of
    `env`. `log`: its output is appended there."""

    managent: str
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    log: Path


class LauncherLost(Exception):
    """Whether the program was started, nobody can say."""


class Launcher(Protocol):
    async def start(self, program: Program) -> int:
        """The pid. When this is cancelled, the program does not run, or is killed. Raises OSError as execve says it (no
        such file, no permission, no program), ValueError for what no process can have, LauncherLost."""

    async def ended(self, pid: int) -> str:
        """How this process, which has ended, did: "exit status 3", "killed by SIGSEGV"; "" when it is not known. Called
        once, whereupon the pid may be used again."""
