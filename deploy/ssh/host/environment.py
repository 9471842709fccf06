"""A virtual environment for each bundle, made beside the one that runs; complete when it has its marker.

pip runs from the bundle, if that brings it: many a host has Python, and not what Python needs to make environments with
pip in them. Our own packages come from the bundle. What they need comes from it too when the order says `offline`; else
from where this host's pip is configured to look, in the versions that the operator's side runs (the bundle's
constraints).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

from deploy.ssh.host.files import Refused
from deploy.ssh.host.orders import MAX_TAIL_CHARS, MAX_TAIL_LINES
from deploy.ssh.host.processes import mentioning

MARKER = ".complete"
COMMAND = "bin/fabric"
CONSTRAINTS = "constraints.txt"
DISTRIBUTION = "peer-provisioning-fabric"
DIGEST_CHARS = 16


class Children:
    """The programs that this process waits for: at most one, ended with all it started when the operator is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now: subprocess.Popen[bytes] | None = None
        self._ended = False

    def run(self, words: list[str], limit_s: float) -> tuple[int, tuple[str, ...]]:
        """(exit code, the last lines of its output). Raises Refused when it can't be started or takes too long."""
        with self._lock:
            if self._ended:
                raise Refused("the operator is gone")
            try:
                child = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise Refused(f"expected a program that can be run, found {words[0]}: {error.strerror}") from None
            self._now = child
        late = threading.Event()
        timer = threading.Timer(max(limit_s, 0.0), self._kill, (late,))
        timer.start()
        try:
            with child:
                tail = _tail(child)
                code = child.wait()
        finally:
            timer.cancel()
            with self._lock:
                self._now = None
        if late.is_set():
            raise Refused(f"{words[0]}: expected it to end within {limit_s:.3g} s, and it did not", tail)
        return code, tail

    def end(self) -> None:
        """Kill what runs, and run nothing more."""
        with self._lock:
            self._ended = True
        self._kill()

    def _kill(self, late: threading.Event | None = None) -> None:
        with self._lock:
            if late is not None:
                late.set()
            if self._now is not None and self._now.poll() is None:
                os.killpg(self._now.pid, signal.SIGKILL)


def _tail(child: subprocess.Popen[bytes]) -> tuple[str, ...]:
    """Reads to the end, and keeps the last lines: output is not bounded, memory is."""
    assert child.stdout is not None
    kept = b""
    while data := child.stdout.read1(1 << 16):  # type: ignore[attr-defined]
        kept = (kept + data)[-MAX_TAIL_LINES * MAX_TAIL_CHARS :]
    return clipped(kept.decode("utf-8", "replace"))


def clipped(text: str) -> tuple[str, ...]:
    lines = [line.rstrip()[:MAX_TAIL_CHARS] for line in text.splitlines() if line.strip()]
    return tuple(lines[-MAX_TAIL_LINES:])


def given(path: str) -> Path:
    """An environment of the host that has the fabric. Raises Refused."""
    env = Path(os.path.expanduser(path))
    if not env.is_absolute() or not os.access(env / COMMAND, os.X_OK):
        raise Refused(f"expected the absolute path of an environment with {COMMAND} on this host, found {path}")
    return env


def is_complete(env: Path) -> bool:
    return (env / MARKER).is_file()


def make(env: Path, bundle: Path, offline: bool, children: Children, deadline: float) -> None:
    """Raises Refused; a half-made one is begun anew next time."""
    if env.exists():
        shutil.rmtree(env)
    env.mkdir(mode=0o700)
    packages = env / "packages"
    unpack(bundle, packages)
    wheel, pips = _wheel(packages), sorted(packages.glob("pip-*.whl"))

    def run(what: str, *words: str) -> None:
        code, tail = children.run(list(words), deadline - time.monotonic())
        if code:
            raise Refused(f"{what}: expected exit code 0, found {code}", tail)

    venv = ["-m", "venv", *(["--without-pip"] if pips else []), str(env)]
    run("making a virtual environment", sys.executable, "-I", *venv)
    pip = [f"{pips[-1]}/pip"] if pips else ["-m", "pip"]
    install = [str(env / "bin/python"), "-I", *pip, "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    source = ["--no-index"] if offline else ["--constraint", str(packages / CONSTRAINTS)]
    run("installing the packages", *install, "-f", str(packages), *source, str(wheel))
    shutil.rmtree(packages)
    (env / MARKER).touch()


def unpack(bundle: Path, to: Path) -> None:
    """Files without folders. Raises Refused."""
    to.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(bundle) as archive:
            for member in archive.infolist():
                if Path(member.filename).name != member.filename:
                    raise Refused(f"bundle: expected plain file names, found {member.filename[:100]!r}")
                archive.extract(member, to)
    except (OSError, zipfile.BadZipFile) as error:
        raise Refused(f"bundle: expected an archive that can be unpacked, found: {error}") from None


def _wheel(packages: Path) -> Path:
    found = sorted(packages.glob(f"{DISTRIBUTION.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        raise Refused(f"bundle: expected one wheel of {DISTRIBUTION}, found {len(found)}")
    return found[0]


def remove_unused(envs: Path, current: Path) -> list[str]:
    """Remove the environments of older bundles that no process was started from; their names."""
    removed = []
    for env in sorted(envs.iterdir()):
        if env != current and not mentioning(str(env), "cmdline"):
            shutil.rmtree(env, ignore_errors=True)
            removed.append(env.name)
    return removed
