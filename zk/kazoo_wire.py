"""ZooKeeper's wire format in the words of the port, by kazoo's serialization classes. The only file that imports kazoo.

Theory of operation. Pure functions: operations to the bytes of a request, the bytes of a server's packet to outcomes,
greetings and watch events. A packet is four bytes of length and a body; here are whole packets to a server, and bodies
without their length from one (zk.connection cuts them). A body of a reply is a header (`header`) and what the request
asked for (`outcome`, `synced`). Bytes that are no answer to what was asked raise Malformed, whatever kazoo makes of
them: who speaks so is no server to go on with.

Paths are the caller's below `root`, the chroot: "" or "/one/or/more".
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kazoo import exceptions as ke
from kazoo.protocol import serialization as s
from kazoo.protocol.states import EVENT_TYPE_MAP, EventType
from kazoo.security import OPEN_ACL_UNSAFE

from zk import checks
from zk import tree as t

EVENT_XID, PING_XID = -1, -2
"""What a server's packet says it answers, when that is no request: a watch has fired; it has heard a ping."""
HEADER_BYTES = s.reply_header_struct.size
PING = s.int_struct.pack(8) + s.int_int_struct.pack(PING_XID, s.Ping.type)


class Malformed(ValueError):
    """What a server said can't be read."""


class Session(NamedTuple):
    """What a client needs to go on with a session on another connection."""

    session_id: int
    password: bytes


PASSWORD_BYTES = 16
NO_SESSION = Session(0, bytes(PASSWORD_BYTES))


class Greeting(NamedTuple):
    """A server's answer to `greet`. `timeout_s` is 0 when the session that was asked for is over."""

    session: Session
    timeout_s: float
    read_only: bool


class Header(NamedTuple):
    """`zxid`: the last transaction that the server had applied when it answered; `error`: 0 when there is none."""

    xid: int
    zxid: int
    error: int


class Event(NamedTuple):
    """A watch has fired at the absolute `path`: one of its data (or existence), of its children, or both."""

    path: str
    of_data: bool
    of_children: bool


# --- to a server ----------------------------------------------------------------------------------------------------


def greet(session: Session, timeout_s: float, zxid: int) -> bytes:
    """The first packet: ask for this session, or (NO_SESSION) for a new one. A server that has not got as far as
    transaction `zxid` hangs up, as one does that could offer reads alone."""
    body = s.Connect(0, zxid, int(timeout_s * 1000), session.session_id, session.password, False).serialize()
    return bytes(s.int_struct.pack(len(body)) + body)


def request(xid: int, op: t.Op, root: str) -> bytes:
    """`op` must be one that zk.checks lets pass."""
    if isinstance(op, t.Multi):
        return _packet(xid, s.Transaction([_request(part, root, s.Create) for part in op.ops]))
    return _packet(xid, _request(op, root, s.Create2))


def sync(xid: int, root: str) -> bytes:
    return _packet(xid, s.Sync(root or "/"))


def goodbye(xid: int) -> bytes:
    return _packet(xid, s.CloseInstance)


def _packet(xid: int, request: Any) -> bytes:
    body = request.serialize()
    return b"".join((s.int_struct.pack(len(body) + 8), s.int_int_struct.pack(xid, request.type), body))


def _request(op: t.Create | t.Get | t.Exists | t.Children | t.Set | t.Delete | t.Check, root: str, create: Any) -> Any:
    at = root or "/" if op.path == "/" else root + op.path
    match op:
        case t.Get():
            return s.GetData(at, op.watch)
        case t.Exists():
            return s.Exists(at, op.watch)
        case t.Children():
            return s.GetChildren(at, op.watch)
        case t.Create():
            return create(at, op.data, OPEN_ACL_UNSAFE, op.ephemeral | op.sequence << 1)
        case t.Set():
            return s.SetData(at, op.data, op.version)
        case t.Delete():
            return s.Delete(at, op.version)
        case t.Check():
            return s.CheckVersion(at, op.version)


# --- from a server --------------------------------------------------------------------------------------------------


def greeting(body: bytes) -> Greeting:
    """Raises Malformed."""
    try:
        found, _ = s.Connect.deserialize(body, 0)
        if len(found.passwd) != PASSWORD_BYTES:
            raise ValueError(f"a password of {len(found.passwd)} bytes")
        return Greeting(Session(found.session_id, found.passwd), max(0, found.time_out) / 1000, found.read_only)
    except Exception as error:
        raise _malformed("a greeting", body, error) from error


def header(body: bytes) -> Header:
    """Raises Malformed."""
    try:
        return Header._make(s.reply_header_struct.unpack_from(body))
    except Exception as error:
        raise _malformed("a reply's header", body, error) from error


def event(body: bytes) -> Event:
    """Raises Malformed."""
    try:
        watch, _ = s.Watch.deserialize(body, HEADER_BYTES)
        kind = EVENT_TYPE_MAP[watch.type]
        if kind is EventType.NONE or not isinstance(watch.path, str):
            raise ValueError(f"type {watch.type} at {watch.path!r}")
    except Exception as error:
        raise _malformed("a watch's event", body, error) from error
    return Event(watch.path, kind is not EventType.CHILD, kind in (EventType.CHILD, EventType.DELETED))


def outcome(op: t.Op, root: str, error: int, body: bytes) -> t.Outcome:
    """What the reply with this `error` in its header says of `op`. Raises Malformed."""
    if error:
        if error == ke.NoNodeError.code and isinstance(op, t.Exists):
            return t.Existed(None)
        return failure(error, checks.where(op))
    try:
        return _outcome(op, root, body)
    except Exception as trouble:
        raise _malformed(f"the answer to {type(op).__name__} at {checks.where(op)}", body, trouble) from trouble


def _outcome(op: t.Op, root: str, body: bytes) -> t.Outcome:
    at = HEADER_BYTES
    match op:
        case t.Get():
            data, stat = s.GetData.deserialize(body, at)
            return t.Got(data or b"", _stat(stat))
        case t.Exists():
            return t.Existed(_stat(s.Exists.deserialize(body, at)))
        case t.Children():
            return t.Listed(tuple(sorted(_names(body, at))))
        case t.Create():
            path, stat = s.Create2.deserialize(body, at)
            return t.Created(path[len(root) :], _stat(stat))
        case t.Set():
            return t.Written(_stat(s.SetData.deserialize(body, at)))
        case t.Delete():
            return t.Deleted()
        case t.Multi():
            return _multi_outcome(op, root, s.Transaction.deserialize(body, at))


def _multi_outcome(op: t.Multi, root: str, results: list[Any]) -> t.Outcome:
    """Of kazoo's results, one an operation. When one failed, those before it are reported as rolled back, those after
    it as inconsistent. An end of the session is no conflict, though it is reported as one."""
    each = list(zip(op.ops, results, strict=True))
    for index, (part, result) in enumerate(each):
        if isinstance(result, Exception) and not isinstance(result, _ONLY_UNDONE):
            cause = failure(getattr(result, "code", 0), part.path)
            if isinstance(cause, t.SessionExpired | t.ConnectionLost):
                return cause  # it says nothing of this operation, but of the session as a whole
            return t.MultiFailed(part.path, index, cause)
    return t.Done(tuple(_part_outcome(part, root, result) for part, result in each))


def _part_outcome(
    part: t.Create | t.Set | t.Delete | t.Check, root: str, result: Any
) -> t.Created | t.Written | t.Deleted | t.Checked:
    match part:
        case t.Create():
            return t.Created(result[len(root) :], None)
        case t.Set():
            return t.Written(_stat(result))
        case t.Delete():
            return t.Deleted()
        case t.Check():
            return t.Checked()


def _names(body: bytes, at: int) -> list[str]:
    """Not by kazoo's class for it, which takes a name that ends beyond its packet for a shorter one."""
    names = []
    (count,) = s.int_struct.unpack_from(body, at)
    at += s.int_struct.size
    for _ in range(count):
        name, at = s.read_string(body, at)
        names.append(name)
    if at != len(body):
        raise ValueError(f"{count} names end at byte {at}")
    return names


_ONLY_UNDONE = (ke.RolledBackError, ke.RuntimeInconsistency)
_FAILURES: dict[int, type[t.TreeError]] = {
    ke.NoNodeError.code: t.NoNode,
    ke.NodeExistsError.code: t.NodeExists,
    ke.BadVersionError.code: t.BadVersion,
    ke.NotEmptyError.code: t.NotEmpty,
    ke.SessionExpiredError.code: t.SessionExpired,
    ke.ConnectionLoss.code: t.ConnectionLost,
    ke.SessionMovedError.code: t.ConnectionLost,  # a server that it left meanwhile: look again
    ke.OperationTimeoutError.code: t.ConnectionLost,
}


def failure(error: int, path: str) -> t.TreeError:
    """What a server's error code means."""
    if known := _FAILURES.get(error):
        return known(path)
    named = ke.EXCEPTIONS.get(error)
    return t.Refused(path, f"{named.__name__ if named else 'an error of ZooKeeper'} ({error})")


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


def _malformed(what: str, body: bytes, error: Exception) -> Malformed:
    return Malformed(f"expected {what}, found {len(body)} bytes that can't be read ({type(error).__name__}: {error})")
