"""The folder of a local fabric: where everything of it is, who owns it, and how it is found and removed.

    /tmp/fabric-<uid>/default/        made with mode 0700; locked (flock on the directory itself) by front and keeper
        state.json                    LocalState, rewritten whole
        control.sock                  the keeper's control socket
        cluster.key                   the key that seals this fabric's messages, hex
        logs/<node>.log, api.log, keeper.log, zookeeper/
        nodes/<node>/                 each agent's state directory
        zookeeper/                    data
        faults/                       what its processes are to do to themselves, with --faults (runtime.stepping)
        deploy/                       repository and boot stubs, where agents are deployed as managents (deploy.local)
        deploy/repository.url         where that repository is served

The lock is on the directory, so there is no lock file to leave behind. It lives as long as any process holds the open
directory: a second `fabric up` is refused while the first one's front or keeper lives, and takes over from dead ones.
Whoever takes it checks that the directory was not removed and made anew in between.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fabric.local.state import LocalState

STATE, CONTROL, KEY, LOGS, NODES, ZOOKEEPER = "state.json", "control.sock", "cluster.key", "logs", "nodes", "zookeeper"
DEPLOY, REPOSITORY_URL = "deploy", "repository.url"
FAULTS = "faults"
MEMORY = Path("/dev/shm")
_OURS = f"fabric-{os.getuid()}"
LOCK_TRIES = 20
TAKEN_TRIES, TAKEN_WAIT_S = 3, 0.05


class FolderError(Exception):
    """The folder can't be used: what was expected, what was found, what to do."""


class Taken(FolderError):
    """Another local fabric lives here."""


def default_path() -> Path:
    """Not below XDG_RUNTIME_DIR: that is memory, and each node keeps unpacked images here."""
    return Path(tempfile.gettempdir()) / _OURS / "default"


def passing_path(name: str, room_bytes: int) -> Path:
    """For a fabric that is there for a minute: in memory (tmpfs) where that has twice `room_bytes` to spare, as all of
    its nodes share what is one disk here and would wait for it (measured: bench/RESULTS.md); else where
    `default_path` is."""
    try:
        found = os.statvfs(MEMORY)
        roomy = found.f_bavail * found.f_frsize >= 2 * room_bytes and _available_bytes() >= 2 * room_bytes
        usable = os.path.ismount(MEMORY) and os.access(MEMORY, os.W_OK) and not found.f_flag & os.ST_NOEXEC
        if usable and roomy:
            return MEMORY / _OURS / name
    except OSError:
        pass
    return default_path().with_name(name)


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True, slots=True)
class Folder:
    path: Path

    @property
    def state_file(self) -> Path:
        return self.path / STATE

    @property
    def key_file(self) -> Path:
        return self.path / KEY

    @property
    def repository_url(self) -> Path:
        """A file; missing where agents are not deployed as managents."""
        return self.path / DEPLOY / REPOSITORY_URL

    @property
    def faults(self) -> Path:
        """Missing where no faults are wanted."""
        return self.path / FAULTS

    def log(self, name: str) -> Path:
        return self.path / LOGS / f"{name}.log"

    def node(self, name: str) -> Path:
        return self.path / NODES / name

    def lock(self) -> int:
        """Make the folder if it is missing, and take it. Returns the file descriptor that holds the lock (inherited
        copies hold it as well). Raises Taken, or FolderError if it is not ours or no folder of a local fabric."""
        refused = 0
        for _ in range(LOCK_TRIES):
            try:
                if self.path.parent.name == _OURS:
                    _make_private(self.path.parent)
                _make_private(self.path)
                handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                if self.path.parent.name == _OURS:
                    continue  # removed in between, by a fabric that was taken down
                raise FolderError(f"expected {self.path.parent} to be there, found nothing") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                refused += 1
                if refused > TAKEN_TRIES:  # not just somebody who looked whether it is taken
                    known = f"a local fabric lives in {self.path} already"
                    raise Taken(f"{known}: see `fabric status`, `fabric down`") from None
                select.select((), (), (), TAKEN_WAIT_S)
                continue
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                    return handle
            os.close(handle)
        raise FolderError(f"{self.path} is removed again and again by somebody else")

    def foreign(self) -> str:
        """The name of something in here that no local fabric put there; empty if there is nothing such."""
        known = {STATE, STATE + ".new", CONTROL, KEY, LOGS, NODES, ZOOKEEPER, DEPLOY, FAULTS}
        return next((name for name in sorted(os.listdir(self.path)) if name not in known), "")

    def taken(self) -> bool:
        """Whether somebody holds the lock now."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def read_state(self) -> LocalState | None:
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=LocalState)
        except (OSError, msgspec.DecodeError):
            return None

    def write_state(self, state: LocalState) -> None:
        fresh = self.path / (STATE + ".new")
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.replace(self.state_file)

    def remove(self) -> None:
        """The folder with all that is in it; and the folder above, if we made it and it is empty. By the lock's
        holder."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():
            raise FolderError(f"{self.path} could not be removed: {_first_left(self.path)} is left")
        if self.path.parent.name == _OURS:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()


def _make_private(path: Path) -> None:
    """Raises FileNotFoundError when there is nothing to make it in, or it vanishes; FolderError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FolderError(f"{path} can't be made: {error.strerror}") from None
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(f"expected a folder at {path}, found something else")
    if found.st_uid != os.getuid():
        raise FolderError(f"expected {path} to be user {os.getuid()}'s own, found it to be user {found.st_uid}'s")


def _first_left(path: Path) -> str:
    return next(
        (os.path.join(top, (files + folders)[0]) for top, folders, files in os.walk(path) if files + folders), str(path)
    )
