"""A real sshd on 127.0.0.1, and the hosts that it plays: each with a key and a home of its own.

It runs as whoever runs the tests, on a free port, with keys and settings in a folder of the test; nothing of the
system's sshd is read, and it is not started. A host is an alias in the client's configuration: its key makes its login
begin in its own home, perhaps with a forced command, so one user of one machine plays several hosts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.zookeeper import LOCAL
from zk.server import free_ports

PRIVILEGE_FOLDER = Path("/run/sshd")
"""Where sshd confines what speaks before the login; needed by root alone."""
SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")


def sshd_trouble() -> str:
    """Why none can be started here, in a sentence; "" when one can."""
    if SSHD is None or shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        return "no sshd, ssh or ssh-keygen on this machine: run `make setup`, which installs them"
    return ""


@dataclass
class Sshd:
    """`config`: for the client (ssh -F). `process`: the server."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    keys: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        return self.folder / "ssh_config"

    def host(self, name: str, forced: str = "", port: int = 0, known: bool = True, allowed: bool = True) -> Path:
        """Add a host; its home. `forced`: the command that its login runs instead. `known`: its host key is the one
        that the client expects. `allowed`: its user key may log in."""
        home = self.folder / "homes" / name
        home.mkdir(parents=True)
        key = make_key(self.folder / f"user_{name}")
        if allowed:
            options = [f'environment="HOME={home}"', "no-pty"] + ([f'command="{forced}"'] if forced else [])
            with (self.folder / "authorized_keys").open("a") as file:
                file.write(f"{','.join(options)} {key}\n")
        with self.config.open("a") as file:
            file.write(
                f"Host {name}\n  HostName {LOCAL}\n  Port {port or self.port}\n"
                f"  IdentityFile {self.folder}/user_{name}\n"
                f"  UserKnownHostsFile {self.folder}/{'known_hosts' if known else 'other_hosts'}\n"
                f"  StrictHostKeyChecking yes\n  GlobalKnownHostsFile /dev/null\n  IdentitiesOnly yes\n"
            )
        return home

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(errors="replace")

    def sessions(self) -> list[int]:
        """Processes that serve logins now: all descendants of the server."""
        return descendants(self.process.pid)


def make_key(file: Path) -> str:
    """A new key pair; the public half, as authorized_keys has it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(file)], check=True)
    return Path(f"{file}.pub").read_text().strip()


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


@contextmanager
def running_sshd(folder: Path) -> Iterator[Sshd]:
    """Started and stopped. Skips the test when that is not possible here."""
    if trouble := sshd_trouble():
        pytest.skip(trouble)
    assert SSHD is not None
    made = os.getuid() == 0 and not PRIVILEGE_FOLDER.exists()
    if made:
        PRIVILEGE_FOLDER.mkdir(mode=0o755)
    port = free_ports(1)[0]
    host_key, other_key = make_key(folder / "host_key"), make_key(folder / "other_key")
    (folder / "known_hosts").write_text(f"[{LOCAL}]:{port} {host_key}\n")
    (folder / "other_hosts").write_text(f"[{LOCAL}]:{port} {other_key}\n")
    (folder / "authorized_keys").touch()
    (folder / "ssh_config").write_text("KexAlgorithms curve25519-sha256\n")  # twice as fast as the first choice
    (folder / "sshd_config").write_text(
        f"ListenAddress {LOCAL}\nPort {port}\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPermitUserEnvironment yes\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\nLogLevel VERBOSE\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        words = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    server = Sshd(folder, port, process)
    try:
        wait_until(lambda: "Server listening" in server.log() or process.poll() is not None, what="sshd listening")
        assert process.poll() is None, server.log()
        server.host("probe")
        words = ["ssh", "-F", str(server.config), "-o", "BatchMode=yes", "probe", "true"]
        probe = subprocess.run(words, capture_output=True, text=True, timeout=20)
        if probe.returncode and "account is locked" in server.log():
            pytest.skip("sshd lets nobody into this user's account, which is locked")
        assert probe.returncode == 0, probe.stderr + server.log()
        yield server
    finally:
        for pid in [process.pid, *server.sessions()]:
            os.kill(pid, signal.SIGTERM)
        process.wait(10)
        if made:
            PRIVILEGE_FOLDER.rmdir()
