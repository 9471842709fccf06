"""Step 6, second half, and the coordinator's view of steps 7 to 9: the plan is written, so confirm it and see it run.

Every node with a share gets a `Confirm`, which is repeated to those that have not reported for a while (it is also the
question "how are they?"). The phase ends when every ordinal of the plan runs, or as soon as some need another place:

- *absent*: ZooKeeper does not count the node as present any more. Ordinals that never ran there go elsewhere at once;
  those that did when their node is to be replaced (`census`), and are left alone until then. With `stop_after_s` all
  wait for that, since what the node was told may run there now;
- *refused*: the node has no room for them after all (it lost its reservations with a restart);
- *failed*, blame "node": it could not start them; blame "image": nobody could, so the deployment fails;
- *stalled*: no progress for `start_stall_s`, though it answers.

Whoever must go elsewhere is stopped first where it was (`stopping`). A node that is present but silent is waited for,
until ZooKeeper says that it is gone: what it was told may be running.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fabric.commands import Confirm, Progress, Unable
from fabric.ordinals import format_ordinals, parse_ordinals
from fabric.records import Share
from fabric.roles.calls import Gathered
from fabric.roles.charge import Charge
from fabric.roles.plans import Place


@dataclass(frozen=True, slots=True)
class StartResult:
    """`running` ordinals; `moves`: ordinal -> why it needs another place; `fatal`: why none can ever start (empty: it
    may)."""

    running: frozenset[int]
    moves: dict[int, str]
    fatal: str = ""


@dataclass(slots=True)
class _Target:
    where: Place
    ordinals: tuple[int, ...]
    progress: Progress | None = None
    heard: float = 0.0
    moved: float = 0.0
    mark: tuple[object, ...] = ()
    absent: bool = False
    refused: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)

    @property
    def done(self) -> bool:
        return len(self.running) == len(self.ordinals)


class Starting:
    """One plan being brought up. Give it every `NodeReport` of the deployment. `old` ordinals ran there when the
    deployment was last settled: they are not waited for, only looked after when their node is replaced or has lost
    them."""

    def __init__(
        self,
        charge: Charge,
        plan: tuple[Share, ...],
        old: frozenset[int],
        step: int,
        done: Callable[[float, StartResult], None],
    ) -> None:
        self._charge = charge
        self._step = step
        self._old = old
        self._done = done
        self._ended = False
        self._asked_once = False
        self._unknown: set[str] = set()
        """Racks whose leader did not answer: ZooKeeper was asked who is there."""
        self._targets = {(share.node, share.rack): _Target((share.node, share.rack), share.numbers()) for share in plan}
        self._open = {place for place, target in self._targets.items() if not self._old.issuperset(target.ordinals)}
        """Places that are waited for: while there are some, a report of one more that runs changes nothing."""
        self._poll_at: float | None = None
        self._deadline = 0.0
        self._asking = False
        self._asked_at = 0.0

    def begin(self, now: float) -> None:
        self._deadline = now + self._charge.settings.start_deadline_s
        for target in self._targets.values():
            target.moved = now
        self._charge.recorder.confirmed(now)
        self._confirm(now, list(self._targets.values()))
        if not self._targets:
            self._judge(now)

    def _confirm(self, now: float, targets: list[_Target]) -> None:
        charge = self._charge
        record = charge.record
        self._asking = True
        self._asked_at = now
        self._poll_at = now + charge.settings.poll_interval_s
        commands = [
            (
                target.where,
                Confirm(
                    record.id,
                    charge.epoch,
                    self._step,
                    record.spec,
                    format_ordinals(target.ordinals),
                    charge.identity.address,
                ),
            )
            for target in targets
        ]
        charge.ask_nodes(now, commands, self._confirmed)

    def _confirmed(self, now: float, gathered: Gathered) -> None:
        self._asking = False
        answers = self._charge.results(now, gathered)
        if answers is None or self._ended:
            return
        self._charge.recorder.gathered(gathered)
        for place, answer in answers:
            target = self._targets.get(place)
            if target is None:
                continue
            if isinstance(answer, Progress):
                # A node's answer waits at its leader for the slowest of the rack; a report overtakes it, and is newer.
                if target.progress is None or target.heard < self._asked_at:
                    self._learn(now, target, answer)
                target.absent = False
                target.refused = set(parse_ordinals(answer.refused)) & set(target.ordinals)
            elif isinstance(answer, Unable):
                target.refused = set(target.ordinals)
        for reply in gathered.replies:
            for node in reply.absent:
                if (node, reply.rack) in self._targets:
                    self._targets[node, reply.rack].absent = True
        self._unknown = set(gathered.silent_racks)
        self._charge.ask_members(self._unknown)
        self._asked_once = True
        self._judge(now)

    def on_members(self, now: float, rack: str, present: frozenset[str]) -> None:
        """Who is there in a rack whose leader did not answer."""
        self._unknown.discard(rack)
        for (node, where), target in self._targets.items():
            if where == rack and node not in present:
                target.absent = True
        if not self._charge.held:
            self._judge(now)

    def on_release(self, now: float) -> None:
        """In touch with ZooKeeper again: what did not move meanwhile may have had no news to send, or nobody to ask."""
        self._deadline = max(self._deadline, now + self._charge.settings.start_stall_s)
        for target in self._targets.values():
            target.moved = now

    def on_report(self, now: float, place: Place, progress: Progress) -> None:
        target = self._targets.get(place)
        if target is not None and not self._ended:
            self._learn(now, target, progress)
            if not self._charge.held and (not self._open or progress.failed):
                self._judge(now)

    def _learn(self, now: float, target: _Target, progress: Progress) -> None:
        target.progress = progress
        target.running = set(parse_ordinals(progress.running)) & set(target.ordinals)
        target.heard = now
        mark = (progress.running, progress.waiting, progress.done_bytes, progress.fetch)
        if mark != target.mark:
            target.mark, target.moved = mark, now
        if target.running.issuperset(set(target.ordinals) - self._old):
            self._open.discard(target.where)
        self._charge.recorder.node(now, target.where[0], target.where[1], target.ordinals, progress)

    def _judge(self, now: float) -> None:
        """Is it over? Only when nothing more will change by waiting."""
        if self._ended:
            return
        settings = self._charge.settings
        running: set[int] = set()
        moves: dict[int, str] = {}
        fatal = ""
        open_targets = False
        for (node, _rack), target in self._targets.items():
            left = set(target.ordinals) - target.running
            if target.absent:
                replaced = self._charge.census.is_replaced(now, target.where, self._charge.record.lost_after_s)
                fresh = [ordinal for ordinal in target.ordinals if ordinal not in self._old]
                if fresh and self._charge.may_run_on(now, target.where):
                    open_targets = True
                    continue
                moves.update(dict.fromkeys(target.ordinals if replaced else fresh, f"node {node} is gone"))
                continue
            running |= target.running
            for failure in target.progress.failed if target.progress else ():
                if failure.ordinal in left:
                    left.discard(failure.ordinal)
                    moves[failure.ordinal] = f"node {node}: {failure.reason}"
                    if failure.blame == "image" and failure.ordinal not in self._old:
                        fatal = fatal or f"node {node}: {failure.reason}"
            for ordinal in target.refused & left:
                left.discard(ordinal)
                moves[ordinal] = f"node {node} has no room for it any more"
            answering = target.progress is not None and now - target.heard < 5 * settings.poll_interval_s
            if left and answering and now - target.moved > settings.start_stall_s:
                moves.update(dict.fromkeys(left, f"node {node}: no progress for {settings.start_stall_s:.0f} s"))
                left = set()
            open_targets = open_targets or any(ordinal not in self._old for ordinal in left)
        if now >= self._deadline and open_targets:
            late = {o for target in self._targets.values() for o in target.ordinals if o not in self._old}
            late -= running | set(moves)
            fatal = fatal or f"{len(late)} instances did not start within {settings.start_deadline_s:.0f} s"
        whole = all(target.done for target in self._targets.values())
        if fatal or (not open_targets and not self._unknown and (self._asked_once or whole)):
            self._ended = True
            self._done(now, StartResult(frozenset(running), moves, fatal))

    def _is_asked(self, target: _Target) -> bool:
        """Again. One that is absent only if it is waited for: it may be back."""
        return bool(self._charge.record.spec.stop_after_s) if target.absent else not target.done

    def tick(self, now: float) -> None:
        if self._ended or self._charge.held or self._poll_at is None or now < self._poll_at:
            return
        if self._asking:
            self._poll_at = now + self._charge.settings.poll_interval_s
            return
        self._charge.ask_members(self._unknown)
        since = now - self._charge.settings.poll_interval_s
        open_targets = [t for t in self._targets.values() if self._is_asked(t) and t.heard <= since]
        if open_targets:
            self._confirm(now, open_targets)
        else:
            self._poll_at = now + self._charge.settings.poll_interval_s
        self._judge(now)

    @property
    def next_deadline(self) -> float | None:
        return None if self._ended or self._charge.held else self._poll_at
