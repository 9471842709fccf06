"""What a coordinator notes down while it works; becomes the `trace.Run` of its deployment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from fabric.commands import FetchNote, Progress
from fabric.messages import Submit
from fabric.ordinals import format_ordinals
from fabric.roles.calls import Gathered
from fabric.roles.placement import NodeOffer
from fabric.roles.placings import Placings
from fabric.roles.settings import Identity
from fabric.roles.trace import (
    MAX_NODES,
    MAX_RACKS,
    MAX_ROUNDS,
    STEPS,
    NodeSeen,
    RackSeen,
    RoundSeen,
    Run,
    Span,
)

MAX_WAITED_MS = 60_000
"""Between the API's clock and the coordinator's: more than that is a difference of clocks, not a wait."""


class Recorder:
    """One run. `now` is the coordinator's clock, seconds; everything noted is bounded."""

    def __init__(self, identity: Identity, now: float, wall_ms: int, submit: Submit | None) -> None:
        self._identity = identity
        self._began = now
        self._at_ms = wall_ms
        self._submit = submit
        self._spans: list[Span] = []
        self._racks: dict[str, RackSeen] = {}
        self._rounds: list[RoundSeen] = []
        self._nodes: dict[str, NodeSeen] = {}
        self._progress: dict[str, Progress] = {}
        self._confirmed_ms = 0
        self.messages = 0
        self.placings = Placings()
        """Step 6: what was wished and offered, and what came of it."""

    def after_ms(self, now: float) -> int:
        return int((now - self._began) * 1000)

    def span(self, step: int, began: float, now: float, detail: str) -> None:
        if len(self._spans) < MAX_ROUNDS:
            took_ms = int((now - began) * 1000)
            self._spans.append(Span(step, STEPS[step], self.after_ms(began), took_ms, detail[:300]))

    def discussed(
        self, began: float, now: float, gathered: Gathered, offers: Sequence[NodeOffer], known: bool
    ) -> None:
        """Steps 4 and 5: who was asked, who offered what, who was silent. `known`: rack leaders answered for agents."""
        self.gathered(gathered)
        by_rack: dict[str, list[NodeOffer]] = {}
        for offer in offers:
            by_rack.setdefault(offer.rack, []).append(offer)
        for reply in gathered.replies[:MAX_RACKS]:
            mine = by_rack.get(reply.rack, [])
            room = sum(offer.count for offer in mine)
            self._racks[reply.rack] = RackSeen(
                reply.rack, reply.leader, reply.answered_ms, len(mine), room, reply.silent[:50]
            )
        for rack in gathered.silent_racks[:MAX_RACKS]:
            self._racks[rack] = RackSeen(rack, "", -1, 0, 0)
        slowest = max((reply.answered_ms for reply in gathered.replies), default=0)
        asked = len(gathered.replies) + len(gathered.silent_racks)
        silent = f"; no answer from {', '.join(gathered.silent_racks)}" if gathered.silent_racks else ""
        self.span(4, began, now, f"{asked} racks asked{silent}")
        if known:
            detail = f"{len(offers)} offers of what rack leaders know"
        else:
            agents = sum(len(reply.results) + len(reply.silent) for reply in gathered.replies)
            detail = f"{agents} agents asked, {len(offers)} offers"
        self.span(5, began, began + slowest / 1000, detail)

    def gathered(self, gathered: Gathered) -> None:
        self.messages += gathered.sent + sum(reply.messages for reply in gathered.replies)

    def round(self, now: float, asked: int, granted: int, conflicts: Iterable[str], why: str = "") -> None:
        if len(self._rounds) < MAX_ROUNDS:
            self._rounds.append(
                RoundSeen(len(self._rounds) + 1, self.after_ms(now), asked, granted, tuple(conflicts)[:50], why[:200])
            )

    def confirmed(self, now: float) -> None:
        self._confirmed_ms = self.after_ms(now)

    def node(self, now: float, node: str, rack: str, ordinals: Iterable[int], progress: Progress) -> None:
        """Steps 7 to 9 on one node, as it told them."""
        if node not in self._nodes and len(self._nodes) >= MAX_NODES:
            return
        earlier = self._nodes.get(node)
        done = bool(progress.running) and not progress.waiting
        running_ms = earlier.running_after_ms if earlier and earlier.running_after_ms >= 0 else -1
        if done and running_ms < 0:
            running_ms = self.after_ms(now)
        failed = "; ".join(sorted({failure.reason for failure in progress.failed}))
        self._progress[node] = progress
        self._nodes[node] = NodeSeen(
            node=node,
            rack=rack,
            ordinals=format_ordinals(ordinals),
            running_after_ms=running_ms,
            prepare_ms=progress.prepare_ms,
            start_ms=progress.start_ms,
            fetch=progress.fetch,
            failed=failed[:300],
        )

    def finish(
        self,
        now: float,
        generation: int,
        epoch: int,
        outcome: str,
        reasons: tuple[str, ...],
        writes: int,
        reads: int,
    ) -> Run:
        """The whole run. One write more than the coordinator's own: the API's, which made or changed the record."""
        submit = self._submit
        self._agent_spans(now)
        spans = list(self._spans)
        waited_ms = 0
        if submit is not None:  # the run begins when the API accepted it
            waited_ms = min(MAX_WAITED_MS, max(0, self._at_ms - submit.accepted_ms))
            spans = [msgspec.structs.replace(span, after_ms=span.after_ms + waited_ms) for span in spans]
            spans.append(Span(1, STEPS[1], 0, waited_ms, f"{submit.considered} leaders seen"))
            spans.append(Span(2, STEPS[2], waited_ms, 0, f"{self._identity.node}, load {submit.load}"))
        spans.sort(key=lambda span: (span.step, span.after_ms))
        searches, omitted = self.placings.seen()
        agents = [progress for _, progress in sorted(self._progress.items())]
        return Run(
            generation=generation,
            coordinator=self._identity.node,
            rack=self._identity.rack,
            epoch=epoch,
            at_ms=self._at_ms - waited_ms,
            took_ms=self.after_ms(now) + waited_ms,
            considered=submit.considered if submit else 0,
            load=submit.load if submit else 0,
            outcome=outcome,
            reasons=reasons,
            spans=tuple(spans),
            racks=tuple(self._racks[rack] for rack in sorted(self._racks)),
            searches=searches,
            searches_omitted=omitted,
            rounds=tuple(msgspec.structs.replace(one, after_ms=one.after_ms + waited_ms) for one in self._rounds),
            nodes=tuple(_later(self._nodes[node], waited_ms) for node in sorted(self._nodes)),
            nodes_omitted=max(0, len(self._progress) - len(self._nodes)),
            messages=self.messages + sum(progress.messages for progress in agents),
            zookeeper_writes=writes + 1,
            zookeeper_reads=reads + sum(progress.reads for progress in agents),
        )

    def _agent_spans(self, now: float) -> None:
        fetches: list[FetchNote] = [node.fetch for node in self._nodes.values() if node.fetch is not None]
        if not self._nodes:
            return
        at = self._confirmed_ms
        found = max((fetch.find_ms for fetch in fetches), default=0)
        asked = sum(not fetch.cached for fetch in fetches)
        without = sum(node.fetch is None and node.running_after_ms < 0 for node in self._nodes.values())
        cached = len(self._nodes) - asked - without
        in_vain = f", {without} did not get it" if without else ""
        holders = sorted({name for fetch in fetches for name in fetch.chosen})
        leaders = sorted({fetch.storage_leader for fetch in fetches if fetch.storage_leader})
        self._spans.append(
            Span(7, STEPS[7], at, found, f"{asked} agents asked, {cached} had the image already{in_vain}")
        )
        by = f", by the leaders of {', '.join(leaders)}" if leaders else ""
        named = ", ".join(holders) or ("not known" if without else "not needed")
        self._spans.append(Span(8, STEPS[8], at, found, f"holders {named}{by}"))
        total = sum(sum(fetch.bytes_by_holder.values()) for fetch in fetches)
        started = sum(node.running_after_ms >= 0 for node in self._nodes.values())
        detail = f"{total / 2**20:.1f} MiB fetched, {started} nodes started"
        self._spans.append(Span(9, STEPS[9], at, max(0, self.after_ms(now) - at), detail))


def _later(node: NodeSeen, by_ms: int) -> NodeSeen:
    if node.running_after_ms < 0:
        return node
    return msgspec.structs.replace(node, running_after_ms=node.running_after_ms + by_ms)
