"""The story of one seed, for people: who did what, when. The same in every run of the seed.

Messages are told when a role decides to send them, compactly; heartbeats and greetings are left out. Changes in
ZooKeeper are told by whose session made them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from fabric.commands import Command
from fabric.effects import Effect, Input, Note, Persist, Quit, Send, StopInstance
from fabric.messages import (
    AnyMessage,
    Heartbeat,
    LeaderHello,
    NodeAnswer,
    NodeCall,
    NodeReport,
    RackAnswer,
    RackCall,
)
from zk import paths
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.host import Process
    from fabric.sim.world import World

_QUIET = (Heartbeat, LeaderHello)
MAX_LINES = 200_000


class Story:
    """`lines` so far."""

    def __init__(self, world: World) -> None:
        self.lines: list[str] = []
        self._world = world

    def tell(self, who: str, what: str) -> None:
        if len(self.lines) < MAX_LINES:
            self.lines.append(f"{self._world.clock.now:9.4f} {who:<7} {what}")

    def note(self, who: str, note: Note) -> None:
        self.tell(who, f"says ({note.level}): {note.text}")

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        who = process.machine.name
        for effect in effects:
            if isinstance(effect, Send) and not isinstance(effect.message, _QUIET):
                self.tell(who, f"-> {tell_name(effect.to)} {tell_message(effect.message)}")
            elif isinstance(effect, Persist):
                put = " ".join(key for key, _ in effect.puts)
                gone = " ".join(f"-{key}" for key in effect.deletes)
                self.tell(who, f"journals {put}{' ' if put and gone else ''}{gone}")
            elif isinstance(effect, StopInstance):
                self.tell(who, f"stops {effect.instance}")
            elif isinstance(effect, Quit):
                self.tell(who, f"quits {effect.reason}")

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        who = self._world.agent_sessions.get(session, f"s{session}")
        for kind, path in changes:
            what = ""
            if path.startswith(paths.DEPLOYMENTS) and path.count("/") == 2 and kind != "delete":
                what = self._record(path)
            self.tell("zk", f"{zxid} {who} {kind} {path}{what}")

    def _record(self, path: str) -> str:
        data = self._world.ensemble.read(path) or b"{}"
        if not data.startswith(b"{"):
            return " (packed)"
        record = msgspec.json.decode(data)
        plan = " ".join(record.get("plan", {}).values())
        told = f" {record.get('state')} count {record['count']} generation {record.get('generation', 1)}"
        told += f" settled {record.get('settled', 0)} epoch {record.get('epoch', 0)}.{record.get('step', 0)}"
        reason = f" ({record['reason']})" if record.get("reason") else ""
        for name in ("leaving", "stopping"):
            if shares := " ".join(record.get(name, {}).values()):
                reason += f" {name} [{shares}]"
        return f"{told}{reason} [{plan}]"


def tell_message(message: AnyMessage) -> str:
    """In a few words."""
    if isinstance(message, RackCall):
        if message.everyone is not None:
            return f"all {tell_command(message.everyone)}"
        return "; ".join(f"{one.node} {tell_command(one.command)}" for one in message.commands)
    if isinstance(message, NodeCall):
        return tell_command(message.command)
    if isinstance(message, NodeAnswer):
        return f"answers {tell_fields(message.answer)}"
    if isinstance(message, RackAnswer):
        if not message.leads:
            return "answers: does not lead"
        told = "; ".join(f"{one.node} {tell_fields(one.answer)}" for one in message.results)
        silent = f" silent {' '.join(message.silent)}" if message.silent else ""
        absent = f" absent {' '.join(message.absent)}" if message.absent else ""
        return f"answers {told}{silent}{absent}"
    if isinstance(message, NodeReport):
        return f"reports {message.deployment} {tell_fields(message.progress)}"
    return tell_fields(message)


def tell_command(command: Command) -> str:
    return tell_fields(command)


_TOLD = frozenset(
    (
        *("deployment", "epoch", "step", "ordinals", "everything", "granted", "running", "waiting", "stopping"),
        *("refused", "failed", "count", "held", "taken", "reason", "digest", "chosen", "found", "leads", "want"),
    )
)


def tell_fields(value: msgspec.Struct, without: Collection[str] = ()) -> str:
    """Its kind and what says most."""
    parts = [type(value).__name__]
    for name in value.__struct_fields__:
        one = getattr(value, name)
        if name not in _TOLD or name in without or one in ("", (), 0, False, None):
            continue
        if name == "chosen":
            one = ",".join(ref.node for ref in one)
        elif name == "failed":
            one = ",".join(f"{failure.ordinal}({failure.blame})" for failure in one)
        elif name == "found" and isinstance(one, tuple):
            one = ",".join(one)
        elif name == "digest":
            one = one[3:11]
        parts.append(f"{name}={one}")
    return " ".join(parts)


def tell_name(to: str) -> str:
    if to.startswith("tcp://"):
        return to[len("tcp://") :].partition(":")[0]
    return to
