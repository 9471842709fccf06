"""Records of deployment as tests make them: stubs, rows and tables that look like those of a real site."""

from __future__ import annotations

import hashlib
from typing import Any

from deploy.records import Child, Prints, StubRecord, StubRef, Table


def guid_of(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def stub_record(name: str, **changes: Any) -> StubRecord:
    fields: dict[str, Any] = {
        "name": name,
        "address": f"tcp://10.20.30.40:41234/{guid_of(name)}",
        "domain": "/site/r1",
        "guid": guid_of(name),
        "host": name,
        "pid": 4242,
        "by": "boot",
    }
    return StubRecord(**(fields | changes))


def row(number: int, **changes: Any) -> Child:
    stub = stub_record(f"r1c{number % 524:03d}")
    prints = Prints(guid_of("code")[:16], guid_of("install")[:16], guid_of(f"managent {number}")[:16])
    fields: dict[str, Any] = {
        "name": f"node{number}",
        "index": number,
        "stub": StubRef(stub.name, stub.address, stub.domain),
        "attempt": 1,
        "env": "installed",
        "life": "active",
        "outcome": "done",
        "prints": prints,
        "generation": guid_of("generation")[:16],
    }
    return Child(**(fields | changes))


def table(path: str, rows: int = 0, owner: str = "one", **changes: Any) -> Table:
    fields: dict[str, Any] = {
        "path": path,
        "guid": guid_of(owner),
        "address": f"tcp://10.20.30.40:40000/{guid_of(owner)}",
        "rollout": "r-1",
        "children": tuple(row(number) for number in range(rows)),
        "repository": "http://192.0.2.1:8430/",
    }
    return Table(**(fields | changes))
