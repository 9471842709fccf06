"""Tree on a real ensemble, by kazoo. The only file that imports kazoo.

Theory of operation. kazoo runs a thread a session, which owns the socket, and two more that call back; the tree lives
on an asyncio loop. This link has kazoo call back on its connection thread, where it also reports changes of state, and
puts all of it into the tree's one inbox, in the order in which it happened. kazoo's callback threads are not started.

Nothing blocks the loop. kazoo wakes its thread through a socket pair, which is full after some 280 calls that no
connection reads, and then blocks the caller: an event counter, which is never full, takes its place.

No operation crosses from one session into the next. kazoo's thread knows of a lost session, and may have opened the
next one, before the loop hears of it. So that thread numbers every change of state under a lock, and a call is handed
to kazoo under the same lock, only if the loop has heard of the latest number.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from kazoo import exceptions as ke
from kazoo.client import KazooClient
from kazoo.handlers.threading import SequentialThreadingHandler
from kazoo.loggingsupport import BLATHER
from kazoo.protocol.states import KazooState, KeeperState
from kazoo.retry import KazooRetry

from zk import checks, connect
from zk import tree as t
from zk.connect import ConnectString, Unreachable
from zk.inbox import Inbox
from zk.session_tree import SessionTree

__all__ = ["KazooTree", "Unreachable"]

RECONNECT_MAX_DELAY_S = 1.0
"""With kazoo's own default clients stayed away for up to 18 s after an outage of 20 s; with this, 1.5 s (measured)."""


MIN_PATIENCE_S = 1.0
"""How long one server has to accept a connection and a session: a third of the session's timeout, shared among the
servers, but never less than this. Servers that are silent are no theory: one that is asked in the wrong moment of its
start (ZooKeeper 3.8.0) keeps the connection open and never answers."""

SILENCE = 2 / 3
"""Of the session's timeout: how long a server that was asked something may say nothing at all. kazoo counts the same
for its pings, but sends none while requests go out: a busy client would not notice that its server hangs."""


class KazooTree(SessionTree):
    """One session on the servers of `hosts` ("h1:2181,h2:2181/chroot"; ValueError when it is malformed).

    `session_timeout_s` is asked for; the server may grant another (`session_timeout_s` of the open tree). See
    SessionTree for the rest."""

    def __init__(
        self, hosts: str, *, session_timeout_s: float = 10.0, window: int = 128, max_waiting: int = 4096
    ) -> None:
        where = connect.parse(hosts)
        super().__init__(
            where,
            lambda tree, inbox: _KazooLink(tree, inbox, where, session_timeout_s),
            session_timeout_s=session_timeout_s,
            window=window,
            max_waiting=max_waiting,
        )


class _KazooLink:
    """A KazooClient as zk.session_tree.Link."""

    def __init__(self, tree: SessionTree, inbox: Inbox, where: ConnectString, session_timeout_s: float) -> None:
        self._tree = tree
        self._inbox = inbox
        self._lock = threading.Lock()
        self._changes = 0  # by kazoo's thread, under the lock: how often the state changed
        self._changes_heard = 0  # by the loop: up to which of these the tree knows
        self._log = _Log(session_timeout_s)
        patience_s = max(MIN_PATIENCE_S, session_timeout_s / 3 / len(where.servers))
        handler = _LoopHandler(inbox, patience_s, SILENCE * session_timeout_s)
        self.client = KazooClient(
            hosts=where.hosts,
            timeout=session_timeout_s,
            handler=handler,
            connection_retry=KazooRetry(
                max_tries=-1, delay=0.1, backoff=2, max_delay=RECONNECT_MAX_DELAY_S, sleep_func=handler.sleep_func
            ),
            logger=self._log,
        )

    def start(self) -> None:
        self.client.add_listener(self._changed)
        self.client.start_async()

    def send(self, op: t.Op, root: str, done: Callable[[t.Outcome], None]) -> bool:
        with self._lock:
            if self._changes != self._changes_heard:
                return False
            result = self._hand_over(op, root)
        result.rawlink(lambda result: self._inbox.put(partial(_complete, op, root, done, result)))
        return True

    def sync(self, done: Callable[[t.TreeError | None], None]) -> bool:
        with self._lock:
            if self._changes != self._changes_heard:
                return False
            result = self.client.sync_async("/")
        result.rawlink(lambda result: self._inbox.put(partial(_synced, done, result)))
        return True

    def stop(self) -> None:
        """kazoo waits here for the server's goodbye, and for its connection thread."""
        self._log.quiet = True
        with contextlib.suppress(Exception):  # whatever state it is in, nothing more is to be done with it
            self.client.stop()
            self.client.close()

    def _changed(self, state: str) -> None:
        """On kazoo's connection thread."""
        with self._lock:
            self._changes += 1
            number = self._changes
        client_id = self.client.client_id
        session_id = client_id[0] if client_id else 0
        ended = self.client.client_state == KeeperState.CLOSED
        self._inbox.put(partial(self._hear, number, state, session_id, self._log.granted_s, ended))

    def _hear(self, number: int, state: str, session_id: int, timeout_s: float, ended: bool) -> None:
        self._changes_heard = number
        if state == KazooState.CONNECTED:
            self._tree.linked(self, session_id, timeout_s)
        elif state == KazooState.SUSPENDED:
            self._tree.unlinked(self)
        else:
            self._tree.expired(self, ended)

    def _hand_over(self, op: t.Op, root: str) -> Any:
        client = self.client
        if isinstance(op, t.Multi):
            transaction = client.transaction()
            for part in op.ops:
                at = _absolute(root, part.path)
                match part:
                    case t.Create():
                        transaction.create(at, part.data, ephemeral=part.ephemeral, sequence=part.sequence)
                    case t.Set():
                        transaction.set_data(at, part.data, part.version)
                    case t.Delete():
                        transaction.delete(at, part.version)
                    case t.Check():
                        transaction.check(at, part.version)
            return transaction.commit_async()
        at = _absolute(root, op.path)
        match op:
            case t.Create():
                return client.create_async(at, op.data, ephemeral=op.ephemeral, sequence=op.sequence, include_data=True)
            case t.Set():
                return client.set_async(at, op.data, op.version)
            case t.Delete():
                return client.delete_async(at, op.version)
            case t.Get():
                read = client.get_async
            case t.Exists():
                read = client.exists_async
            case t.Children():
                read = client.get_children_async
        return read(at, watch=_Watch(self._tree.fired, op.path) if op.watch else None)


# --- outcomes -------------------------------------------------------------------------------------------------------


def _complete(op: t.Op, root: str, done: Callable[[t.Outcome], None], result: Any) -> None:
    try:
        value = result.get_nowait()
    except Exception as error:
        done(_translated(error, checks.where(op)))
    else:
        done(_outcome(op, root, value))


def _synced(done: Callable[[t.TreeError | None], None], result: Any) -> None:
    done(_translated(result.exception, "/") if result.exception is not None else None)


def _outcome(op: t.Op | t.Check, root: str, value: Any) -> Any:
    """What kazoo returned for `op`, in the words of the port."""
    match op:
        case t.Create():
            path, stat = value if isinstance(value, tuple) else (value, None)
            return t.Created(path[len(root) :], stat and _stat(stat))
        case t.Get():
            return t.Got(value[0] or b"", _stat(value[1]))
        case t.Exists():
            return t.Existed(value and _stat(value))
        case t.Children():
            return t.Listed(tuple(sorted(value)))
        case t.Set():
            return t.Written(_stat(value))
        case t.Delete():
            return t.Deleted()
        case t.Check():
            return t.Checked()
        case t.Multi():
            # When one failed, those before it are reported as rolled back, those after it as inconsistent.
            for index, (part, result) in enumerate(zip(op.ops, value, strict=True)):
                if isinstance(result, Exception) and not isinstance(result, _ONLY_UNDONE):
                    cause = _translated(result, part.path)
                    if isinstance(cause, t.SessionExpired | t.ConnectionLost):
                        return cause  # it says nothing of this operation, but of the session as a whole
                    return t.MultiFailed(part.path, index, cause)
            return t.Done(tuple(_outcome(part, root, result) for part, result in zip(op.ops, value, strict=True)))


_ONLY_UNDONE = (ke.RolledBackError, ke.RuntimeInconsistency)
_ERRORS: tuple[tuple[type[Exception], type[t.TreeError]], ...] = (
    (ke.NoNodeError, t.NoNode),
    (ke.NodeExistsError, t.NodeExists),
    (ke.BadVersionError, t.BadVersion),
    (ke.NotEmptyError, t.NotEmpty),
    (ke.ConnectionClosedError, t.ConnectionLost),  # (a SessionExpiredError, to kazoo) it may have been sent
    (ke.SessionExpiredError, t.SessionExpired),
    (ke.ConnectionLoss, t.ConnectionLost),
    (ke.SessionMovedError, t.ConnectionLost),  # a server that it left meanwhile: look again
    (ke.OperationTimeoutError, t.ConnectionLost),
)


def _translated(error: Exception, path: str) -> t.TreeError:
    for theirs, ours in _ERRORS:
        if isinstance(error, theirs):
            return ours(path)
    return t.Refused(path, f"{type(error).__name__} {error}".strip())


def _stat(stat: Any) -> t.Stat:
    return t.Stat(
        czxid=stat.czxid,
        mzxid=stat.mzxid,
        version=stat.version,
        children=stat.numChildren,
        owner=stat.ephemeralOwner,
        ctime_ms=stat.ctime,
        mtime_ms=stat.mtime,
    )


def _absolute(root: str, path: str) -> str:
    return root or "/" if path == "/" else root + path


# --- what kazoo is given of ours ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Watch:
    """A value: kazoo keeps watchers in a set, so that arming a watch twice fires it once."""

    fire: Callable[[str], None]
    path: str

    def __call__(self, event: object) -> None:
        self.fire(self.path)  # whatever it says, type NONE after a lost connection too: look again


class _LoopHandler(SequentialThreadingHandler):  # type: ignore[misc]  # kazoo has no types
    """kazoo's threading handler without its worker threads. Completions run where they happen, which keeps their order
    (kazoo queues some twice on the way); watches go to the inbox."""

    running = False  # for kazoo: call completions right away

    def __init__(self, inbox: Inbox, patience_s: float, silence_s: float) -> None:
        super().__init__()
        self._inbox = inbox
        self._patience_s = patience_s
        self._silence_s = silence_s
        self._silent: Any = None  # the connection, until its server has said something
        self._asked_at: float | None = None  # the first request since its server last said something

    def start(self) -> None:
        """No workers to start."""

    def stop(self) -> None:
        """No workers to stop."""

    def dispatch_callback(self, callback: Any) -> None:
        self._inbox.put(partial(callback.func, *callback.args))

    def create_socket_pair(self) -> tuple[_Counter, _Counter]:
        fd = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        return _Counter(fd), _Counter(os.dup(fd))

    def select(self, readers: list[Any], writers: list[Any], _: list[Any], timeout: float | None = None) -> Any:
        """kazoo's own makes and closes a kernel's event queue each time: half of all CPU that a call costs. Raises
        TimeoutError, to kazoo a lost connection, when the server has been silent for too long."""
        if self._asked_at is not None and time.monotonic() - self._asked_at > self._silence_s:
            self._asked_at = None
            raise TimeoutError(errno.ETIMEDOUT, f"the server has said nothing for {self._silence_s:.1f} s")
        if self._silent in readers and timeout is not None:
            timeout = min(timeout, self._patience_s)
        poll = select.poll()
        for event, ends in ((select.POLLIN, readers), (select.POLLOUT, writers)):
            for end in ends:
                poll.register(end, event)
        ready = {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}
        if self._silent is not None and readers and ready:
            self._silent = None
        readable = [r for r in readers if r.fileno() in ready]
        if any(not isinstance(r, _Counter) for r in readable):
            self._asked_at = None
        elif readable and self._asked_at is None:
            self._asked_at = time.monotonic()  # kazoo is about to send it
        return readable, [w for w in writers if w.fileno() in ready], []

    def create_connection(self, *args: Any, timeout: float, **options: Any) -> Any:
        """kazoo waits for one server as long as the session lasts; a silent one must not cost the session."""
        self._asked_at = None
        self._silent = super().create_connection(*args, timeout=min(timeout, self._patience_s), **options)
        return self._silent


class _Counter:
    """One end of kazoo's wake-up "pipe": a kernel's counter, where a send adds one and a receive takes one. It can't be
    full, as the socket pair can that it stands in for: then a call would block, or a wake-up be lost."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def send(self, data: bytes) -> None:
        os.eventfd_write(self._fd, len(data))

    def recv(self, count: int) -> bytes:
        os.eventfd_read(self._fd)
        return b"\0"

    def close(self) -> None:
        os.close(self._fd)


class _Log(logging.LoggerAdapter[logging.Logger]):
    """Of what kazoo says its warnings and errors; and the session timeout that the server granted, which kazoo tells
    its log alone."""

    def __init__(self, asked_s: float) -> None:
        super().__init__(logging.getLogger("fabric.zk.kazoo"), {})
        self.granted_s = asked_s
        self.quiet = False

    def log(self, level: int, msg: object, *args: object, **options: Any) -> None:
        if level >= logging.WARNING:
            if not self.quiet:
                super().log(level, msg, *args, **options)
        elif level == BLATHER and str(msg).startswith("Session created") and len(args) > 2:
            self.granted_s = float(str(args[2])) / 1000
