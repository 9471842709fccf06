"""Carries one order out, step by step, and says how each went.

The order's steps: folder, environment, key, start script, boot stub. What a running stub was started with is kept as
one print (start script, environment, key); it is restarted when that differs, or when it does not run. The print is
noted last, so whatever breaks off in the middle is looked at again by the next run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from deploy.ssh.host import environment, supervisors
from deploy.ssh.host.connection import Gone, Operator
from deploy.ssh.host.environment import Children
from deploy.ssh.host.files import Folder, Installed, Refused, same, write
from deploy.ssh.host.orders import Ended, Order, Said
from deploy.ssh.host.processes import PROC, Running, listens, mentioning, running, wait_for

ROOT_FOLDER = "/var/lib/fabric-bootstub"
USER_FOLDER = "~/.local/share/fabric-bootstub"
STEADY_S = 0.3
"""A boot stub that listens must go on for so long: one that fails just after that has not been started."""
MANAGENT_STOP_S = 10.0
MANAGENT_FOLDER = "MANAGENT_DIR="
"""The variable by which a managent's process is known."""

T = TypeVar("T")


class Installation:
    """One order."""

    def __init__(self, order: Order, operator: Operator, children: Children) -> None:
        self._order, self._operator, self._children = order, operator, children
        self._deadline = time.monotonic() + order.limit_s
        self._changes = order.action != "check"
        self._differs = False
        self.name = order.name or host_name()
        given = order.folder or (ROOT_FOLDER if os.getuid() == 0 else USER_FOLDER)
        self._given = Path(os.path.expanduser(given))
        self._folder = Folder(self._given)

    def run(self) -> Said:
        """The end. Raises Refused."""
        if not PROC.joinpath("self/stat").exists():
            raise Refused(f"expected Linux with {PROC}, found {platform.system()}")
        if self._order.action == "remove":
            self._operator.watch()
            return self._remove()
        return self._install()

    # --- install --------------------------------------------------------------------------------------------------

    def _install(self) -> Said:
        order, folder = self._order, self._folder
        self._step("folder", self._make_folder)
        env = self._step("environment", self._make_environment)
        self._step("key", lambda: (None, self._write(folder.key, _key_file(order), 0o600, "key written")))
        script = start_script(order, folder, self.name, env, bool(order.key))
        self._step("start script", lambda: (None, self._write(folder.start, script, 0o700, "start script written")))
        printed = hashlib.sha256(b"\0".join((script, str(env).encode(), _key_file(order)))).hexdigest()
        installed = self._step("boot stub", lambda: self._make_stub(printed))
        if self._changes:
            environment.remove_unused(folder.envs, env)
        ended: Ended = ("installed" if self._changes else "differs") if self._differs else "unchanged"
        if installed is None:
            return Said("end", outcome=ended, name=self.name)
        return Said("end", outcome=ended, name=self.name, pid=installed.pid, supervisor=installed.supervisor)

    def _make_folder(self) -> tuple[None, str]:
        if not self._given.is_absolute():
            raise Refused(f"expected the absolute path of a folder, or one that begins with ~, found {self._given}")
        there = self._folder.check()
        if self._changes:
            self._folder.make()
            self._folder.lock()
        return None, "" if there else f"{self._given} made"

    def _make_environment(self) -> tuple[Path, str]:
        order = self._order
        env = self._folder.envs / order.bundle[: environment.DIGEST_CHARS]
        bundle = None
        if self._changes and not order.python_env and not environment.is_complete(env):
            bundle = self._operator.receive(order, self._given)
        self._operator.watch()
        if order.python_env:
            return environment.given(order.python_env), ""
        if bundle is not None:
            environment.make(env, bundle, order.offline, self._children, self._deadline)
            bundle.unlink()
        return env, "" if bundle is None and environment.is_complete(env) else "packages installed"

    def _write(self, path: Path, content: bytes, mode: int, done: str) -> str:
        if not content:
            gone = path.exists()
            if self._changes:
                path.unlink(missing_ok=True)
            return f"{path.name} removed" if gone else ""
        if same(path, content, mode):
            return ""
        if self._changes:
            write(path, content, mode)
        return done

    def _make_stub(self, printed: str) -> tuple[Installed | None, str]:
        keeper = supervisors.choose(self._order.supervisor, self._children, self._changes)
        before = self._folder.installed()
        if before is not None:
            kept = self._keeper_of(before, keeper).kept(before)
            fits = (before.print, before.supervisor, before.name) == (printed, keeper.name, self.name)
            if kept.pid and fits and keeper.configured(self._folder, self.name) and not self._order.restart:
                return replace(before, pid=kept.pid, started=kept.started, boot=kept.boot), ""
        if not self._changes:
            return None, "started" if before is None else "restarted"
        if before is not None:
            self._stop(before, keeper)
        kept = keeper.start(self._folder, self.name)
        installed = Installed(
            self.name, printed, keeper.name, keeper.unit(self.name), kept.pid, kept.started, kept.boot
        )
        # Before it has answered: a run that breaks off here must find it. The print comes when it has.
        self._folder.note(replace(installed, print=""))
        self._await_answer(keeper, installed)
        self._folder.note(installed)
        return installed, "started" if before is None else "restarted"

    def _keeper_of(self, before: Installed, keeper: supervisors.Supervisor) -> supervisors.Supervisor:
        return keeper if before.supervisor == keeper.name else supervisors.by_name(before, self._children)

    def _stop(self, before: Installed, keeper: supervisors.Supervisor) -> None:
        old = self._keeper_of(before, keeper)
        if old.kept(before).pid:
            old.stop(before)
        if before.unit != keeper.unit(self.name):
            old.forget(before)

    def _await_answer(self, keeper: supervisors.Supervisor, installed: Installed) -> None:
        limit_s = min(self._order.answer_s, self._deadline - time.monotonic())

        def gone() -> bool:
            return keeper.kept(installed).pid != installed.pid

        wait_for(lambda: gone() or listens(installed.pid), limit_s)
        if gone() or (listens(installed.pid) and wait_for(gone, STEADY_S)):
            tail = keeper.tail(self._folder, self.name)
            raise Refused("the boot stub: expected it to run, but it ended soon after its start", tail)
        if not listens(installed.pid):
            tail = keeper.tail(self._folder, self.name)
            raise Refused(f"the boot stub: expected it to listen within {limit_s:.3g} s, and it did not", tail)

    # --- remove ---------------------------------------------------------------------------------------------------

    def _remove(self) -> Said:
        folder = self._folder
        if not folder.check():
            return Said("end", outcome="absent", name=self.name)
        folder.lock()
        before = folder.installed()
        self._step("managents", self._end_managents)
        if before is not None:
            self._step("boot stub", lambda: (None, self._forget(before)))
        kept = self._step("folder", self._empty_folder)
        outcome: Ended = "removed" if self._differs else "absent"
        return Said("end", outcome=outcome, name=before.name if before else self.name, text=kept)

    def _end_managents(self) -> tuple[None, str]:
        pids = mentioning(f"{MANAGENT_FOLDER}{self._folder.stub}/", "environ")
        if not pids:
            return None, ""
        if not self._order.purge:
            raise Refused(
                f"expected no managent to run here, found {len(pids)} processes of some, such as {pids[0]}: shut them "
                "down first (fabric managent shutdown), or end them with --purge"
            )
        processes = [process for pid in pids if (process := running(pid))]
        _end(processes)
        return None, f"{len(processes)} processes of managents ended"

    def _forget(self, before: Installed) -> str:
        keeper = supervisors.by_name(before, self._children)
        runs = keeper.kept(before).pid
        if runs:
            keeper.stop(before)
        keeper.forget(before)
        return "stopped" if runs else ""

    def _empty_folder(self) -> tuple[str, str]:
        """What is kept, in a sentence."""
        folder = self._folder
        files = [folder.key, folder.start, folder.log, folder.log.with_name("stub.log.1"), folder.record]
        there = [path for path in files if path.exists()]
        for path in there:
            path.unlink()
        shutil.rmtree(folder.envs, ignore_errors=True)
        if not self._order.purge and folder.stub.is_dir() and any(folder.stub.iterdir()):
            return f"kept: {folder.stub} (journal and managents); --purge removes it too", "emptied" if there else ""
        shutil.rmtree(folder.path)
        return "", "removed"

    # --- steps ----------------------------------------------------------------------------------------------------

    def _step(self, name: str, take: Callable[[], tuple[T, str]]) -> T:
        if time.monotonic() >= self._deadline:
            raise Refused(f"expected to be done within {self._order.limit_s:g} s, and was not at: {name}")
        self._operator.say(Said("begin", step=name))
        began = time.monotonic()
        try:
            result, done = take()
        except OSError as error:
            raise Refused(f"{name}: {error}") from None
        self._differs = self._differs or bool(done)
        self._operator.say(Said("step", step=name, text=done, ms=1000 * (time.monotonic() - began)))
        return result


def _end(processes: list[Running]) -> None:
    """TERM to all, and KILL to those that are left. Raises Refused."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            process.signal(number)
        if wait_for(lambda: not any(process.lives() for process in processes), MANAGENT_STOP_S):
            return
    left = [process.pid for process in processes if process.lives()]
    raise Refused(f"expected the managents' processes to end, found {len(left)} that did not, such as {left[0]}")


def _key_file(order: Order) -> bytes:
    return f"{order.key}\n".encode() if order.key else b""


def host_name() -> str:
    """The host's own, as far as it can be a boot stub's: what `fabric bootstub` would take."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:63].strip(".-") or "localhost"


def start_script(order: Order, folder: Folder, name: str, env: Path, keyed: bool) -> bytes:
    """The boot stub's command line. Its programs find those of its environment."""
    words = [str(env / environment.COMMAND), "bootstub", "--name", name, "--dir", str(folder.stub)]
    for flag, value in (
        ("--domain", order.domain),
        ("--listen", order.listen),
        ("--directory", order.directory),
        ("--key-file", str(folder.key) if keyed else ""),
    ):
        if value:
            words += [flag, value]
    for root in order.roots:
        words += ["--allow-root", root]
    words += order.more
    path = shlex.quote(str(env / "bin"))
    return f"#!/bin/sh\nPATH={path}:$PATH\nexport PATH\nexec {shlex.join(words)}\n".encode()


def main() -> None:
    """One order from standard input. The exit code says nothing; the end that was said does."""
    children = Children()
    operator = Operator(sys.stdin.buffer, sys.stdout.buffer, children.end)
    try:
        order = operator.order()
        operator.say(Said("hello", text=f"{platform.node()}, Python {platform.python_version()}"))
        end = Installation(order, operator, children).run()
    except (Gone, BrokenPipeError):
        os._exit(1)
    except Refused as refused:
        end = Said("end", outcome="failed", text=str(refused), tail=refused.tail)
    except Exception as error:  # whatever else it is, the operator is to read it
        end = Said("end", outcome="failed", text=f"fault of the installation: {type(error).__name__}: {error}")
    operator.say(end)
    os._exit(0)  # another thread waits in a read that nothing ends
