"""Identifiers that the API makes: deployment ids, and the digests behind `Idempotency-Key`."""

from __future__ import annotations

import hashlib
import json
import random

from fabric.api.schemas import DeploymentRequest

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"  # base32hex: its characters sort as their values do
_TIME_CHARACTERS = 7
"""32^7 seconds reach past the year 3000, at a fixed width, so that ids sort by creation."""
_RANDOM_CHARACTERS = 4
"""A million ids a second; a collision is refused by ZooKeeper and tried again with another id."""


def deployment_id(wall_ms: int, rng: random.Random) -> str:
    """"d-", seconds since 1970 in base32hex, four random characters."""
    seconds = wall_ms // 1000
    time_part = "".join(_ALPHABET[(seconds >> (5 * place)) & 31] for place in reversed(range(_TIME_CHARACTERS)))
    return "d-" + time_part + "".join(rng.choices(_ALPHABET, k=_RANDOM_CHARACTERS))


def key_digest(key: str) -> str:
    """The znode name for an Idempotency-Key: any text becomes a name of fixed size."""
    return hashlib.sha256(key.encode()).hexdigest()


def body_digest(request: DeploymentRequest) -> str:
    """Equal for bodies that mean the same, however they were written: defaults filled in, keys sorted."""
    content = request.model_dump(mode="json")
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
