"""What configuration documents say, merged: the parameters of Figure 3, and the role of a managent (section 5.4).

    <configuration>
      <env-params> <env name="TMP_DIR" value="/tmp"/> </env-params>
      <arg-params> <arg name="MGMT_PORT" value="7078"/> </arg-params>
      <initiator parallel="32" repository="http://…" scope="relative" failover="domain" lease="30">
        <children count="10" prefix="zone" first="1"/>
      </initiator>
      <managent control="bmp" class="SimpleAgent" start="./run --fast" stop="10"/>
    </configuration>

A managent is an initiator if and only if the merged managent configuration has an `initiator`: the role is
configuration alone, and the recursion ends where there is none (Figure 12).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Enumeration = Literal["count", "names", "stub", "domain"]
Scope = Literal["full", "relative"]
Failover = Literal["none", "domain"]
Control = Literal["signals", "bmp"]
Restart = Literal["always", "never"]


@dataclass(frozen=True, slots=True)
class Children:
    """One `<children>` element: which children an initiator has.

    - count: `prefix` + number, `count` of them from `first` on;
    - names: `names`, in this order;
    - stub: one child on each boot stub of the initiator's domain, with the stub's name;
    - domain: one for each domain directly below the initiator's own path in which stubs are registered, with the
      domain's last part for name, on a stub of that domain. Such a child gets the stubs of its domain to deploy on.
    """

    by: Enumeration
    count: int = 0
    first: int = 1
    prefix: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InitiatorRole:
    """`<initiator>`. `parallel`: deployments of children under way at once (section 5.5). `repository`: of its
    children, "" for the one that it was itself deployed from; `scope`: whether identifiers are cut relative to this
    initiator's path there (section 5.6). `failover`: whether children of a dead boot stub are placed on another one of
    the domain. `lease_s`: a boot stub that has not heard from the initiator for so long stops its children itself; only
    after that they are placed elsewhere (0: they run on, and may run twice until the stub is back). `start`: the start
    command that the initiator tells the boot stubs (4.3, third way). `restart`: whether a child whose program ended by
    itself is started again (with back-off, and not for ever); with "never" it is reported, and left as it is."""

    children: tuple[Children, ...]
    parallel: int = 32
    repository: str = ""
    scope: Scope = "full"
    failover: Failover = "none"
    lease_s: float = 0.0
    start: str = ""
    retries: int = 3
    restart: Restart = "always"


@dataclass(frozen=True, slots=True)
class ProgramRole:
    """`<managent>`. `control`: how activate and deactivate reach it: over BMP, which the program must speak, or by
    stopping and continuing its process (SIGSTOP, SIGCONT), which works with any. `class_name`: for Python code, the
    class that the boot stub runs. `start`: the start command. `stop_s`: from TERM to KILL."""

    control: Control = "signals"
    class_name: str = ""
    start: str = ""
    stop_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Configuration:
    """All documents of one kind for one managent, merged in order, the later one wins; `env` and `args` keep the order
    in which a name first came. Arguments are passed as "NAME=VALUE", in order."""

    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    initiator: InitiatorRole | None = None
    program: ProgramRole = ProgramRole()
