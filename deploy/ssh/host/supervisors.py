"""What keeps the boot stub running.

systemd, where it runs this machine: a unit of the system for root, of the user for others, if the user's units may run
without a login (lingering is switched on when that is allowed). Else a process of its own session, known by its pid,
start time and boot: it outlives the connection, not the machine. Stopping ends the boot stub alone, never its
managents: those run on, and its next start adopts them.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy.ssh.host.environment import Children, clipped
from deploy.ssh.host.files import Folder, Installed, Refused, same, write
from deploy.ssh.host.orders import MAX_TAIL_LINES
from deploy.ssh.host.processes import Running, running

STOP_S = 10.0
"""From TERM to KILL."""
SYSTEMCTL_S = 30.0
SYSTEM_UNITS = Path("/etc/systemd/system")
SYSTEMD_RUNS = Path("/run/systemd/system")
LOGIN_VARIABLES = ("SSH_", "XDG_SESSION_", "MAIL", "OLDPWD", "SHLVL", "_")
"""Beginnings of variables that belong to the connection, not to what it starts."""


@dataclass(frozen=True)
class Kept:
    """`pid`: of the boot stub; 0 when it does not run."""

    pid: int
    started: int = 0
    boot: str = ""


class Supervisor(Protocol):
    name: str

    def kept(self, installed: Installed) -> Kept: ...

    def configured(self, folder: Folder, name: str) -> bool:
        """Whether all but the process is as `start` would make it."""

    def start(self, folder: Folder, name: str) -> Kept:
        """Start it, which must not run. Raises Refused."""

    def stop(self, installed: Installed) -> None:
        """Raises Refused when it does not end."""

    def forget(self, installed: Installed) -> None:
        """Remove what `start` left beside the folder."""

    def unit(self, name: str) -> str:
        """The name of the unit, "" without."""

    def tail(self, folder: Folder, name: str) -> tuple[str, ...]:
        """The last lines that the boot stub wrote."""


class ProcessSupervisor:
    """A session of its own. The log of the run before is kept as stub.log.1."""

    name = "process"

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def kept(self, installed: Installed) -> Kept:
        if self._child is not None:
            self._child.poll()  # so that it does not stay a zombie
        alive = Running(installed.pid, installed.started, installed.boot).lives()
        return Kept(installed.pid, installed.started, installed.boot) if alive else Kept(0)

    def configured(self, folder: Folder, name: str) -> bool:
        return True

    def start(self, folder: Folder, name: str) -> Kept:
        if folder.log.exists():
            folder.log.replace(folder.log.with_name("stub.log.1"))
        with folder.log.open("xb") as log:
            os.fchmod(log.fileno(), 0o600)
            self._child = subprocess.Popen(
                [str(folder.start)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder.path,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if not name.startswith(LOGIN_VARIABLES)},
            )
        now = running(self._child.pid)
        if now is None:
            raise Refused("the boot stub: expected it to run, but it ended at once", self.tail(folder, name))
        return Kept(now.pid, now.started, now.boot)

    def stop(self, installed: Installed) -> None:
        if not Running(installed.pid, installed.started, installed.boot).end(STOP_S):
            raise Refused(f"the boot stub that runs: expected process {installed.pid} to end, and it did not")

    def forget(self, installed: Installed) -> None:
        pass

    def unit(self, name: str) -> str:
        return ""

    def tail(self, folder: Folder, name: str) -> tuple[str, ...]:
        return folder.log_tail(MAX_TAIL_LINES)


class SystemdSupervisor:
    """A unit a boot stub. `user`: of the user's own manager."""

    name = "systemd"

    def __init__(self, units: Path, user: bool, children: Children) -> None:
        self._units, self._user, self._children = units, user, children

    def kept(self, installed: Installed) -> Kept:
        code, lines = self._systemctl("show", "--property=MainPID", installed.unit, fails=False)
        told = next((line.partition("=")[2] for line in lines if line.startswith("MainPID=")), "0")
        now = running(int(told)) if code == 0 and told.isdecimal() else None
        return Kept(now.pid, now.started, now.boot) if now else Kept(0)

    def configured(self, folder: Folder, name: str) -> bool:
        return same(self._units / self.unit(name), unit_text(folder, name, self._user), 0o644)

    def start(self, folder: Folder, name: str) -> Kept:
        unit = self.unit(name)
        self._units.mkdir(parents=True, exist_ok=True)
        write(self._units / unit, unit_text(folder, name, self._user), 0o644)
        self._systemctl("daemon-reload")
        self._systemctl("enable", "--quiet", unit)
        self._systemctl("restart", unit)
        kept = self.kept(Installed(name, "", self.name, unit))
        if not kept.pid:
            raise Refused("the boot stub: expected it to run, but it ended at once", self.tail(folder, name))
        return kept

    def stop(self, installed: Installed) -> None:
        self._systemctl("stop", installed.unit)

    def forget(self, installed: Installed) -> None:
        self._systemctl("disable", "--quiet", installed.unit, fails=False)
        (self._units / installed.unit).unlink(missing_ok=True)
        self._systemctl("daemon-reload")

    def unit(self, name: str) -> str:
        return f"fabric-bootstub-{name}.service"

    def tail(self, folder: Folder, name: str) -> tuple[str, ...]:
        words = ["journalctl", *self._whose(), "--unit", self.unit(name), "-n", str(MAX_TAIL_LINES), "-o", "cat"]
        try:
            return self._children.run([*words, "--no-pager"], SYSTEMCTL_S)[1]
        except Refused:
            return ()

    def _whose(self) -> list[str]:
        return ["--user"] if self._user else []

    def _systemctl(self, *words: str, fails: bool = True) -> tuple[int, tuple[str, ...]]:
        code, tail = self._children.run(["systemctl", *self._whose(), *words], SYSTEMCTL_S)
        if code and fails:
            raise Refused(f"systemctl {' '.join(words)}: expected exit code 0, found {code}", tail)
        return code, tail


def unit_text(folder: Folder, name: str, user: bool) -> bytes:
    """KillMode=process: stopping the boot stub leaves its managents alone."""
    return f"""\
[Unit]
Description=boot stub {name}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart={unit_word(str(folder.start))}
KillMode=process
Restart=always
RestartSec=2
TimeoutStopSec={STOP_S:.0f}
TasksMax=infinity
OOMPolicy=continue

[Install]
WantedBy={"default.target" if user else "multi-user.target"}
""".encode()


def unit_word(text: str) -> str:
    """One word of a unit's command line, as systemd.service(5) quotes it. Raises Refused."""
    if any(character < " " for character in text):
        raise Refused(f"systemd: expected a path without control characters, found {text!r}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def choose(wanted: str, children: Children, changes: bool = True) -> Supervisor:
    """`wanted`: auto, systemd or process. `changes`: lingering may be switched on. Raises Refused."""
    user = os.getuid() != 0
    trouble = "a process is wanted" if wanted == "process" else _systemd_trouble(user, children, changes)
    if not trouble:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        return SystemdSupervisor(home / ".config/systemd/user" if user else SYSTEM_UNITS, user, children)
    if wanted == "systemd":
        raise Refused(f"expected systemd to keep the boot stub, found: {trouble}")
    return ProcessSupervisor()


def _systemd_trouble(user: bool, children: Children, changes: bool) -> str:
    """Why systemd can't keep it, "" when it can."""
    if not SYSTEMD_RUNS.is_dir():
        return "systemd does not run this machine"
    if not user:
        return ""
    runtime = Path(f"/run/user/{os.getuid()}")
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))
    lingering = Path("/var/lib/systemd/linger") / pwd.getpwuid(os.getuid()).pw_name
    if not lingering.exists():
        if not changes:
            return ""
        try:
            code, tail = children.run(["loginctl", "enable-linger"], SYSTEMCTL_S)
        except Refused as error:
            return f"lingering is off and can't be switched on ({error})"
        if code:
            return f"lingering is off and can't be switched on ({' '.join(clipped(' '.join(tail)))})"
    if not (runtime / "systemd/private").exists():
        return "no manager of the user's units runs"
    return ""


def by_name(installed: Installed, children: Children) -> Supervisor:
    """Of a boot stub that is installed. Raises Refused."""
    return ProcessSupervisor() if installed.supervisor == "process" else choose("systemd", children)
