"""The front: starts a keeper, follows how it comes up, and has it take everything down. `fabric up`, the demo and the
tests all stand on this.

Theory of operation. The front makes no file: it starts the keeper with one end of the leash, and the keeper takes the
folder. So a front that is killed at any moment leaves a keeper that sees the leash end, or nothing at all. The keeper
says over the leash how far it is; when the front's end closes, for whatever reason, it takes everything down. `stop`
closes it on purpose and waits; and if the keeper was killed, ends and removes what is left.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import fabric
from fabric.local.control import ControlClient, ControlError
from fabric.local.folder import Folder, FolderError, Taken
from fabric.local.interrupts import Interrupts
from fabric.local.logs import tail
from fabric.local.state import LocalSpec, LocalState, Report
from fabric.local.takedown import MARK, NotEnded, clean_up

STOP_WAIT_S = 60.0
LEAVE_WAIT_S = 5.0
POLL_S = 0.05
MAX_REPORT_BYTES = 256 * 1024
LOCK_WAIT_S = 10.0
DETACH = b"detach"

OnReport = Callable[[Report], None]


class UpFailed(Exception):
    """The fabric did not come up, or did not stay; and why."""


class Front:
    """`keeper_module`: what to run as the keeper: that of this package, which starts every agent itself, or one with
    another crew."""

    def __init__(self, spec: LocalSpec, keeper_module: str = "fabric.local.keeper") -> None:
        self.spec, self.keeper_module = spec, keeper_module
        self.folder = Folder(Path(spec.folder))
        self.control = ControlClient(self.folder)
        self.keeper: subprocess.Popen[bytes] | None = None
        self.leash: socket.socket | None = None
        self.report: Report | None = None

    def start(self) -> None:
        """Start the keeper; `wait_up` tells what became of it."""
        root = str(Path(fabric.__file__).parents[1])
        inherited = os.environ.get("PYTHONPATH")
        environment = os.environ | {
            MARK: str(self.folder.path),
            "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root,
        }
        self.leash, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.keeper = subprocess.Popen(
                [sys.executable, "-m", self.keeper_module, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                env=environment,
            )
        assert self.keeper.stdin
        with contextlib.suppress(BrokenPipeError), self.keeper.stdin as pipe:
            pipe.write(msgspec.json.encode(self.spec))

    def wait_up(self, on_report: OnReport, interrupts: Interrupts | None = None) -> LocalState:
        """Until all is up. Raises UpFailed, Interrupted."""
        for report in self._reports(interrupts):
            on_report(report)
            if report.phase == "up":
                return self.control.status()
        raise UpFailed(self.why())

    def wait_end(self, interrupts: Interrupts) -> None:
        """Until the keeper leaves: told to by `fabric down`, or killed. Raises Interrupted."""
        for _ in self._reports(interrupts):
            pass

    def ended_well(self) -> bool:
        """Whether the keeper left because it was told to, with nothing left behind."""
        return self.keeper is not None and self.keeper.wait(STOP_WAIT_S) == 0

    def why(self) -> str:
        """Why the keeper left."""
        if self.report and self.report.error:
            return self.report.error
        code = self.keeper.wait(STOP_WAIT_S) if self.keeper else 0
        if code == 0:
            return "it was told to leave"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return f"its keeper {how}; its last lines:\n{tail(self.folder.log('keeper'))}"

    def detach(self) -> None:
        """Leave it running."""
        assert self.leash
        assert self.keeper
        self.leash.send(DETACH)
        self._close()
        self.keeper.returncode = 0  # not ours to wait for any more

    def stop(self, on_report: OnReport = lambda report: None) -> None:
        """Take everything down; fine when it is down. Raises NotEnded, FolderError when something is left."""
        if self.keeper is None or self.leash is None:
            return
        with contextlib.suppress(OSError):
            self.leash.shutdown(socket.SHUT_WR)
        for report in self._reports(None, time.monotonic() + STOP_WAIT_S):
            on_report(report)
        try:
            self.keeper.wait(LEAVE_WAIT_S)
        except subprocess.TimeoutExpired:
            self.keeper.kill()
            self.keeper.wait()
        self._close()
        if self.keeper.returncode != 0:
            sweep_up(self.folder)  # killed, most likely: it could not do it itself

    def _close(self) -> None:
        if self.leash:
            self.leash.close()
            self.leash = None

    def _reports(self, interrupts: Interrupts | None, deadline: float | None = None) -> Iterator[Report]:
        """What the keeper says, until it leaves or the deadline passes."""
        while self.leash:
            left_s = 1.0 if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                return
            if interrupts:
                interrupts.wait(min(left_s, 1.0), [self.leash.fileno()])
            ready, _, _ = select.select([self.leash], (), (), 0 if interrupts else min(left_s, 1.0))
            if not ready:
                continue
            try:
                data = self.leash.recv(MAX_REPORT_BYTES)
            except OSError:
                return
            if not data:
                return
            self.report = msgspec.json.decode(data, type=Report)
            yield self.report


def take_down(folder: Folder, timeout_s: float = STOP_WAIT_S) -> bool:
    """`fabric down`: end the fabric in `folder`, whoever started it. False when there was none. Raises NotEnded,
    FolderError, ControlError."""
    if not folder.path.exists():
        return False
    deadline = time.monotonic() + timeout_s
    told = False
    while folder.taken():
        if not told:
            try:
                ControlClient(folder).stop()
                told = True
            except ControlError as error:
                if not error.gone:
                    raise
                told = told or folder.read_state() is not None
        if time.monotonic() > deadline:
            raise NotEnded(f"the fabric in {folder.path} was told to stop, and is still there after {timeout_s:g} s")
        select.select((), (), (), POLL_S)
    if not folder.path.exists():
        return told
    if name := folder.foreign():
        raise FolderError(f"expected a local fabric in {folder.path}, found {name!r} in it; nothing was touched")
    sweep_up(folder)
    return True


def sweep_up(folder: Folder) -> None:
    """End and remove what a killed keeper left; nothing if the folder is another fabric's, or no fabric's, by now.
    Raises NotEnded, FolderError."""
    if not folder.path.exists() or folder.taken() or folder.foreign():
        return
    try:
        lock = folder.lock()
    except Taken:
        return  # another fabric came up meanwhile, and has cleaned up
    try:
        clean_up(folder)
    finally:
        os.close(lock)


def leftovers(folder: Folder) -> bool:
    """Whether a killed fabric left its folder behind."""
    return folder.path.exists() and not folder.taken() and folder.read_state() is not None

