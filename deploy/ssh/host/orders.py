"""What an operator orders of a host, and what the host says: one JSON object a line, in both directions.

Operator: the order; after "need", the bundle's bytes; then nothing, and the end of the input means "stop now".
Host: lines that begin with MARK (whatever a login prints stands between them): hello, begin and step for each step,
perhaps need, and end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

MARK = "fabric-bootstub: "
NO_PYTHON = 87
"""The exit code when a host has no Python that will do."""

Action = Literal["install", "check", "remove"]
Supervisor = Literal["auto", "systemd", "process"]
Kind = Literal["hello", "begin", "step", "need", "end"]
Ended = Literal["installed", "unchanged", "differs", "removed", "absent", "failed"]
MAX_TAIL_LINES = 20
MAX_TAIL_CHARS = 500
"""Of each line."""


@dataclass(frozen=True)
class Order:
    """`folder` and `name` "": the host's own default. `roots`: folders of the host that file:// references may read.
    `more`: further words of the boot stub's command line. `python_env`: an environment of the host that has the fabric;
    else `bundle` (hex SHA-256) of `bundle_bytes` is installed, `offline` when it brings all that it needs. `key`: the
    cluster's, 64 hex digits, or "". `limit_s`: for all of it. `answer_s`: from the stub's start until it listens."""

    action: Action
    folder: str = ""
    name: str = ""
    domain: str = ""
    directory: str = ""
    listen: str = ""
    roots: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    python_env: str = ""
    bundle: str = ""
    bundle_bytes: int = 0
    offline: bool = False
    key: str = field(default="", repr=False)
    restart: bool = False
    purge: bool = False
    supervisor: Supervisor = "auto"
    limit_s: float = 600.0
    answer_s: float = 30.0


@dataclass(frozen=True)
class Said:
    """`kind`: hello (`text`: the host's name and Python); begin (`step` begins); step (it ended after `ms`: `text` is
    what was done, "" when there was nothing to do); need (the bundle); end (`outcome`; `text`: the reason, of a
    failure; `tail`: the last lines of a program's output; `name`, `pid`, `supervisor`: of the stub that runs)."""

    kind: Kind
    step: str = ""
    text: str = ""
    ms: float = 0.0
    outcome: Ended | Literal[""] = ""
    tail: tuple[str, ...] = ()
    name: str = ""
    pid: int = 0
    supervisor: str = ""
