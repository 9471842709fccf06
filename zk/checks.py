"""What makes an operation malformed, found before it is sent: one answer for every Tree.

A server answers a malformed path with an error, but a request that can't be encoded kills a client's connection thread,
and one larger than the server's `jute.maxbuffer` costs the connection. So operations are checked here first.
"""

from __future__ import annotations

from zk.tree import MAX_DATA_BYTES, Check, Create, Delete, Multi, Op, Refused, Set

MAX_PATH_CHARS = 1024
MAX_REQUEST_BYTES = 1_000_000
"""Below jute.maxbuffer (1 MiB - 1) with room for headers."""


def where(op: Op) -> str:
    """The path to name in an error about `op`: of a Multi, that of its first operation."""
    if isinstance(op, Multi):
        return op.ops[0].path if op.ops else "/"
    return op.path


def refusal(op: Op) -> Refused | None:
    """Why `op` must not be sent; None when it may."""
    size = 0
    for part in op.ops if isinstance(op, Multi) else (op,):
        if problem := _path_problem(part.path):
            return Refused(part.path, problem)
        if isinstance(part, Set | Delete | Check) and not -1 <= part.version < 2**31:
            return Refused(part.path, f"expected a version of -1 (any) to {2**31 - 1}, found {part.version}")
        size += 128 + 4 * len(part.path)
        if isinstance(part, Create | Set):
            if len(part.data) > MAX_DATA_BYTES:
                return Refused(part.path, f"expected at most {MAX_DATA_BYTES} bytes of data, found {len(part.data)}")
            size += len(part.data)
    if size > MAX_REQUEST_BYTES:
        return Refused(where(op), f"expected a request of at most {MAX_REQUEST_BYTES} bytes, found about {size}")
    return None


def _path_problem(path: str) -> str | None:
    if path == "/":
        return None
    if not path.startswith("/"):
        return "expected a path that starts with '/'"
    if len(path) > MAX_PATH_CHARS:
        return f"expected a path of at most {MAX_PATH_CHARS} characters, found {len(path)}"
    if not path.isprintable():
        return "expected a path of printable characters"
    for part in path[1:].split("/"):
        if part in ("", ".", ".."):
            return f"expected no empty, '.' or '..' part in a path, found {part!r}"
    return None
