"""An agent of the next minor version of the protocol, as far as others can tell: for tests of an upgrade.

A minor version only adds fields with defaults, to messages and to records. So this one adds a field that nobody knows
to every message it sends and to every record it writes, and says the next minor version with both. Who reads must do as
if nothing had been there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import msgspec

from fabric.messages import PROTOCOL, AnyMessage
from fabric.wire import Codec
from zk.tree import Create, Multi, Op, Set

VERSION = (PROTOCOL[0], PROTOCOL[1] + 1)
ADDED = {"added_later": {"by": "the next minor version", "parts": [1, 2, 3]}}
TAG = "type"
"""Of a message's map: only messages and commands bear one, as other maps may have keys of a user's."""


class NewerCodec(Codec):
    """It reads as any codec does."""

    def encode(self, message: AnyMessage, to: str) -> bytes:
        whole = _added(msgspec.to_builtins(message, builtin_types=(bytes,)))
        body: bytes = msgpack.packb((*VERSION, to, whole))
        return self.sealed(body)


def _added(value: Any) -> Any:
    if isinstance(value, dict):
        found = {key: _added(inner) for key, inner in value.items()}
        return {**found, **ADDED} if TAG in value else found
    return [_added(one) for one in value] if isinstance(value, list | tuple) else value


def newer_op(op: Op) -> Op:
    """The same, with what it writes as the next minor version would."""
    match op:
        case Create() | Set():
            return _newer_write(op)
        case Multi(ops):
            return Multi(tuple(_newer_write(one) if isinstance(one, Create | Set) else one for one in ops))
    return op


def _newer_write(op: Create | Set) -> Create | Set:
    return replace(op, data=_newer_record(op.data))


def _newer_record(data: bytes) -> bytes:
    """Packed ones (a large plan, a trace) stay as they are."""
    if not data.startswith(b"{"):
        return data
    record = {**msgspec.json.decode(data), **ADDED}
    if "protocol" in record:
        record["protocol"] = VERSION
    return msgspec.json.encode(record)
