"""One deployment's part on one node, as values: the ordinals confirmed here, where each is, and what the journal holds.

States of an ordinal here:

        assigned -> fetching -> starting -> running -> (exited by itself) backoff -> starting ...
                        |           |          '-> exited   (the restart policy says that it is done)
                        '-----------'-> failed (the first start did not succeed; the coordinator decides)
        any -> stopping -> gone
        recovering: the agent has just started: what its driver did not find starts again once the agent has registered
        parked: stopped for want of touch with ZooKeeper (`stop_after_s`); starts again once the agent has registered

The journal has one record a deployment (`w/<deployment>`), written before anybody is told that ordinals have come, run,
or stop, and when they go or end for good. Attempts are remembered by the driver, so a restart of an instance costs no
write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fabric.commands import FetchNote, InstanceView, OrdinalFailure, Progress
from fabric.ordinals import format_ordinals
from fabric.records import Spec
from fabric.roles.settings import Identity

EntryState = Literal[
    "recovering", "parked", "assigned", "fetching", "starting", "running", "backoff", "exited", "failed", "stopping"
]
WAITING: frozenset[str] = frozenset({"recovering", "parked", "assigned", "fetching", "starting"})
UP: frozenset[str] = frozenset({"running", "backoff", "exited"})
"""Has been started: the coordinator's work is done for these; what happens later is the restart policy's."""

FIRST_BACKOFF_S = 0.5
SETTLED_RUN_S = 30.0
"""An instance that ran for so long starts again without the back-off of earlier failures."""


class EntryRecord(msgspec.Struct, frozen=True):
    ordinal: int
    epoch: int
    step: int
    stopping: bool = False
    ended: str = ""
    ran: bool = False


class WorkRecord(msgspec.Struct, frozen=True):
    """A journal record: what this node has confirmed of a deployment."""

    spec: Spec
    epoch: int
    step: int
    entries: tuple[EntryRecord, ...]


@dataclass(slots=True)
class Entry:
    ordinal: int
    epoch: int
    step: int
    state: EntryState = "assigned"
    attempt: int = 0
    pid: int = 0
    started_ms: int = 0
    started_s: float = 0.0
    directory: str = ""
    reason: str = ""
    blame: str = ""
    retries: int = 0
    retry_at: float | None = None
    ran: bool = False
    """It has run here before: if it cannot be started again that is a trouble to outlast, not a failed request."""


@dataclass(slots=True)
class Work:
    """`report_to`: the coordinator that waits for this node, empty when nobody does."""

    deployment: str
    spec: Spec
    epoch: int
    step: int
    entries: dict[int, Entry] = field(default_factory=dict)
    report_to: str = ""
    fetch: FetchNote | None = None
    find_ms: int = 0
    prepare_ms: int = 0
    start_ms: int = 0
    began_start_s: float = 0.0
    done_bytes: int = 0
    total_bytes: int = 0
    messages: int = 0
    reads: int = 0
    unsaved: bool = False
    """The journal lacks something: ordinals that came, that have run for the first time, or that are told to stop.
    Nobody may be told of it before. If the agent dies now, nobody was: what it has started is an orphan, what it has
    stopped starts again, and whoever ordered it orders it again."""

    def new_run(self) -> None:
        """Another claim: what is told of image, starts and costs from here on is of its run."""
        self.fetch = None
        self.find_ms = self.prepare_ms = self.start_ms = self.messages = self.reads = 0
        self.began_start_s = 0.0

    def record(self) -> WorkRecord:
        return WorkRecord(
            self.spec,
            self.epoch,
            self.step,
            tuple(
                EntryRecord(
                    entry.ordinal,
                    entry.epoch,
                    entry.step,
                    entry.state == "stopping",
                    entry.reason if entry.state == "exited" else "",
                    entry.ran,
                )
                for _, entry in sorted(self.entries.items())
            ),
        )

    def progress(self, refused: tuple[int, ...] = ()) -> Progress:
        states: dict[str, list[int]] = {"running": [], "waiting": [], "stopping": []}
        failed: list[OrdinalFailure] = []
        for ordinal, entry in sorted(self.entries.items()):
            if entry.state in UP:
                states["running"].append(ordinal)
            elif entry.state in WAITING:
                states["waiting"].append(ordinal)
            elif entry.state == "stopping":
                states["stopping"].append(ordinal)
            else:
                failed.append(OrdinalFailure(ordinal, entry.blame, entry.reason[:500]))
        return Progress(
            running=format_ordinals(states["running"]),
            waiting=format_ordinals(states["waiting"]),
            stopping=format_ordinals(states["stopping"]),
            refused=format_ordinals(refused),
            failed=tuple(failed),
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            fetch=self.fetch,
            prepare_ms=self.prepare_ms,
            start_ms=self.start_ms,
            messages=self.messages,
            reads=self.reads,
        )

    @property
    def waiting(self) -> bool:
        return any(entry.state in WAITING or entry.state == "stopping" for entry in self.entries.values())

    def views(self, identity: Identity) -> list[InstanceView]:
        return [
            InstanceView(
                id=instance_id(self.deployment, ordinal),
                deployment=self.deployment,
                ordinal=ordinal,
                node=identity.node,
                rack=identity.rack,
                flavor=self.spec.flavor,
                image=self.spec.image,
                state=entry.state,
                pid=entry.pid,
                attempt=entry.attempt,
                started_ms=entry.started_ms,
                directory=entry.directory,
                driver=identity.driver,
                reason=entry.reason[:500],
            )
            for ordinal, entry in sorted(self.entries.items())
        ]


NOTHING = Progress("", "", "", "", (), 0, 0, None, 0, 0, 0, 0)


def instance_id(deployment: str, ordinal: int) -> str:
    return f"{deployment}.{ordinal}"


def split_id(instance: str) -> tuple[str, int] | None:
    """(deployment, ordinal), or None when it is not an instance id of ours."""
    deployment, dot, ordinal = instance.rpartition(".")
    if not dot or not ordinal.isascii() or not ordinal.isdigit() or len(ordinal) > 5:
        return None
    return deployment, int(ordinal)


def environment(work: Work, ordinal: int, identity: Identity) -> tuple[tuple[str, str], ...]:
    """The user's variables, and over them the instance's identity."""
    names = dict(work.spec.environment)
    names.update(
        FABRIC_DEPLOYMENT=work.deployment,
        FABRIC_ORDINAL=str(ordinal),
        FABRIC_INSTANCE=instance_id(work.deployment, ordinal),
        FABRIC_NODE=identity.node,
        FABRIC_RACK=identity.rack,
        FABRIC_FLAVOR=work.spec.flavor,
        FABRIC_IMAGE=work.spec.image,
    )
    return tuple(sorted(names.items()))
