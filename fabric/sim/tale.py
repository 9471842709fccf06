"""The story of a scenario: short enough to be read from end to end, and to be compared with what it was.

Theory of operation. It tells what the scenario is about: what users ask, whom the coordinator asks and what the racks
answer, what is written in ZooKeeper, what runs where, who dies. It leaves out what would fill pages or change with
every irrelevant edit: heartbeats, what leaders and their own nodes say to one another, searches for images, journals,
hints of load, zxids (claims of a deployment are counted instead), guids, and times beyond a tenth of a second. A plan
is told when it has changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fabric.commands import AskOffer, Cancel, Cancelled, Confirm, Offer, Progress, Replicate, Reserve, Reserved, Stop
from fabric.effects import Effect, Input, Note, Quit, Send, StopInstance
from fabric.messages import RackAnswer, RackCall
from fabric.records import Deployment, Lost, Share, decode
from fabric.sim.transcript import MAX_LINES, Story, tell_fields, tell_name
from zk import paths
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.host import Process
    from fabric.sim.world import World

_ASKED = (AskOffer, Reserve, Confirm, Stop, Cancel, Replicate)
_ANSWERED = (Offer, Reserved, Progress, Cancelled)
_FEWER = frozenset(("deployment", "epoch", "step", "digest"))
"""Fields that are left out: what they say is known in a small fabric, or changes with every edit."""
_TOGETHER = (("has image", "runs"), ("stops", "no longer runs"))
"""Beginnings of lines of one kind, in the order in which they are told."""
_QUIET = (paths.CANDIDATES, paths.NODES, paths.KEYS)


class Tale(Story):
    """Of what happens from when the world has it for its story."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._block: list[tuple[str, str]] = []
        """(what, who) of the lines from `_before` on, which are about one moment and of one kind: `_at`."""
        self._before = 0
        self._at: tuple[str, int | str] = "", ""
        self._plans: dict[str, str] = {}
        """Deployment -> its plan, as it was told last."""
        self._claims: dict[str, list[int]] = {}
        """Deployment -> the zxids of its claims so far."""

    def tell(self, who: str, what: str) -> None:
        """What several do in one moment, in whatever order, is told in an order of names."""
        when = f"{self._world.clock.now:6.1f}"
        kind = next((index for index, some in enumerate(_TOGETHER) if what.startswith(some)), what)
        if not self._block or self._at != (when, kind):
            self._block, self._at, self._before = [], (when, kind), len(self.lines)
        self._block.append((what, who))
        by_what: dict[str, list[str]] = {}
        for one, name in sorted(self._block, key=_rank):
            by_what.setdefault(one, []).append(name)
        if self._before < MAX_LINES:
            self.lines[self._before :] = [f"{when} {' '.join(names):<6} {one}" for one, names in by_what.items()]

    def note(self, who: str, note: Note) -> None:
        """What roles say to operators shows in what they do."""

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        who = process.machine.name
        asked: dict[str, list[str]] = {}
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, RackCall):
                if what := _call(effect.message):
                    asked.setdefault(what, []).append(tell_name(effect.to))
            elif isinstance(effect, Send) and isinstance(effect.message, RackAnswer):
                if what := _answer(effect.message):
                    self.tell(who, f"answers: {what}")
            elif isinstance(effect, StopInstance):
                self.tell(who, f"stops {effect.instance}")
            elif isinstance(effect, Quit):
                self.tell(who, f"quits: {effect.reason}")
        for what, whom in asked.items():
            self.tell(who, f"asks {' '.join(whom)}: {what}")

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        who = self._world.agent_sessions.get(session, "")
        told = [what for kind, path in changes if (what := self._what(zxid, kind, path))]
        if told:
            self.tell("zk", f"{who}{': ' if who else ''}{'; '.join(told)}")

    def _what(self, zxid: int, kind: str, path: str) -> str:
        if path.startswith(_QUIET) or path.endswith("/trace") or (path.startswith(paths.LEADERS) and kind == "set"):
            return ""
        if path.startswith(paths.MEMBERS) and (path.count("/") != 4 or kind == "set"):
            return ""
        if path.endswith("/owner") and kind == "create":
            self._claims.setdefault(path.split("/")[2], []).append(zxid)
        data = self._world.ensemble.read(path) if kind != "delete" else None
        if data is not None and path.startswith(paths.DEPLOYMENTS + "/"):
            return f"{kind} {path}: {self._written(decode(data, Deployment, path))}"
        if data is not None and path.startswith(paths.LOST + "/"):
            lost = decode(data, Lost, path)
            return f"{kind} {path}: {'it is replaced' if lost.accepted_ms else 'it is waited for'}"
        return f"{kind} {path}"

    def _written(self, record: Deployment) -> str:
        told = [f"{record.state} {record.count}", f"generation {record.generation}, settled {record.settled}"]
        if record.epoch:
            told.append(f"by claim {self._claims[record.id].index(record.epoch) + 1}")
        plan, before = _shares(record.plan), self._plans.get(record.id, "[]")
        told += [f"plan {plan}"] if plan != before else []
        self._plans[record.id] = plan
        told += [f"leaving {_shares(record.leaving)}"] if record.leaving else []
        told += [f"stopping {_shares(record.stopping)}"] if record.stopping else []
        told += [f"{name} {value}" for name in ("lacking", "moved", "reason") if (value := getattr(record, name))]
        return ", ".join(told)


def _rank(line: tuple[str, str]) -> tuple[int, str, str]:
    what, who = line
    late = any(what.startswith(some[1]) for some in _TOGETHER)
    return int(late), what, who


def _shares(shares: Iterable[Share]) -> str:
    return f"[{' '.join(f'{share.node}={share.ordinals}' for share in shares)}]"


def _call(call: RackCall) -> str:
    if isinstance(call.everyone, _ASKED):
        return tell_fields(call.everyone, _FEWER)
    told = [one for one in call.commands if isinstance(one.command, _ASKED)]
    return "; ".join(f"{one.node} {tell_fields(one.command, _FEWER)}" for one in told)


def _answer(answer: RackAnswer) -> str:
    heard = [one for one in answer.results if isinstance(one.answer, _ANSWERED)]
    told = [f"{one.node} {tell_fields(one.answer, _FEWER)}" for one in heard]
    told += [f"silent {' '.join(answer.silent)}"] if answer.silent else []
    told += [f"absent {' '.join(answer.absent)}"] if answer.absent else []
    return "; ".join(told)
