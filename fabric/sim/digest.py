"""A digest of a role's state: of everything that can be reached from it, by value, in a fixed order.

Callables and random generators are left out: they are the wiring, not the state. Sets and dicts are taken in the order
of their contents' digests where that order is not part of what they mean.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import msgspec

_PLAIN = (str, bytes, int, float, bool, type(None))


def digest(state: object) -> str:
    """Equal for equal states, in any process."""
    found = hashlib.blake2b(digest_size=16)
    for part in _walk(state, {}):
        found.update(part.encode())
        found.update(b"\0")
    return found.hexdigest()


def _walk(value: Any, seen: dict[int, int]) -> list[str]:
    if isinstance(value, _PLAIN):
        return [repr(value)]
    if id(value) in seen:
        return [f"again {seen[id(value)]}"]
    if isinstance(value, msgspec.Struct):
        return [msgspec.json.encode(value).decode(errors="replace")]
    if callable(value) or isinstance(value, random.Random):
        return ["."]
    seen[id(value)] = len(seen)
    parts = [type(value).__name__]
    if isinstance(value, Mapping):
        for key, one in value.items():
            parts += ["key", *_walk(key, seen), *_walk(one, seen)]
    elif isinstance(value, set | frozenset):
        parts += sorted(" ".join(_walk(one, seen)) for one in value)
    elif isinstance(value, list | tuple) or hasattr(value, "popleft"):
        for one in value:
            parts += _walk(one, seen)
    else:
        for name in _fields(value):
            parts += [name, *_walk(getattr(value, name), seen)]
    return parts


def _fields(value: object) -> list[str]:
    names = list(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = getattr(kind, "__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__") and hasattr(value, name)]
