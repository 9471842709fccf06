"""Judging what is so in the end, and what was answered. Pure: a World and a history in, findings out.

`unsettled` is asked again and again after the faults are healed, until it says nothing or the bound of the scenario is
over; then what it still says is broken. `answers` is about the history alone, and is judged once.

A request is tried again until it is answered; so one whose last attempt was no answer was still open in the end.

What counts as an answer: 2xx; 404, 409 and 422 for what can't be, and 503 with Retry-After, which is to be tried again.
No answer at all is no fault of the fabric's while its API is dead or out of reach (`excused`: spans of time), and a
request that never got one is no request that was accepted. Whatever was accepted (202) has to be so in the end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from fabric.chaos.verdict import Finding, Promise
from fabric.chaos.world import Outage, Rules, Running, World
from fabric.load.history import NO_ANSWER, Asked
from fabric.records import Deployment
from fabric.resources import ZERO, Resources

Span = tuple[float, float]
REFUSALS = frozenset({404, 409, 422})
OUTAGE_MARGIN_S = 2.0
"""Requests that were sent before the API can know of an outage, or are answered after it, may have gone through."""
AUDITED: dict[str, Promise] = {
    "orphan": "orphans", "double": "exactly", "missing": "exactly", "lost": "exactly", "leak": "orphans",
}  # fmt: skip


def unsettled(world: World, asked: Sequence[Asked], rules: Rules) -> list[Finding]:
    """What is not as it should be, with everything healed and nothing more being asked."""
    found: list[Finding] = []
    for promise, text in (
        *_nodes(world),
        *_records(world),
        *_wanted(world, asked),
        *_plans(world, rules),
        *_processes(world),
        *_images(world, rules),
        *_audited(world),
    ):
        found.append(Finding(promise, world.at_s, text))
    return found


_Troubles = Iterator[tuple[Promise, str]]


def _nodes(world: World) -> _Troubles:
    for node in world.expected:
        if node not in world.members:
            yield "durable", f"{node} is not registered"
    racks = {f"{'storage' if node in world.storage else 'compute'} {rack}" for node, rack in world.expected.items()}
    for rack in sorted(racks - set(world.leaders)):
        yield "durable", f"{rack} has no leader"
    for node in world.lost:
        yield "durable", f"{node} is noted as lost, and is {'' if node in world.members else 'not '}here"


def _records(world: World) -> _Troubles:
    for text in world.unreadable:
        yield "durable", text
    for deployment, record in world.records.items():
        if not record.final:
            at = f"generation {record.generation}, settled {record.settled}"
            yield "durable", f"{deployment} is {record.state}: {at}; {record.placed} of {record.count} placed"
        elif record.state == "failed" and not record.reason:
            yield "durable", f"{deployment} failed, and its record gives no reason"
    for deployment in world.open:
        record_of = world.records.get(deployment)
        if record_of is None or record_of.final:
            yield "orphans", f"{deployment} is at rest, or gone, and still marked as open"


def _wanted(world: World, asked: Sequence[Asked]) -> _Troubles:
    """What users were told is so. A request without an answer may have been carried out or not."""
    by_deployment: dict[str, list[Asked]] = defaultdict(list)
    for one in asked:
        if one.deployment:
            by_deployment[one.deployment].append(one)
    for deployment, these in by_deployment.items():
        record = world.records.get(deployment)
        gone = any(one.kind == "delete" and one.last.accepted for one in these)
        maybe_gone = any(one.kind == "delete" and one.last.status == NO_ANSWER for one in these)
        ended = [one.end.state for one in these if one.end is not None]
        if record is None:
            if not gone and not maybe_gone and "failed" not in ended:
                yield "durable", f"{deployment} was accepted, and there is no record of it"
            continue
        if gone and record.state != "deleted":
            yield "durable", f"{deployment} is to be deleted, and is {record.state}"
        if gone or record.state in ("failed", "deleted"):
            continue
        counted = [one for one in these if one.kind != "delete" and one.last.status in (202, NO_ANSWER)]
        last = max(counted, key=lambda one: one.last.answered_s, default=None)
        if last is not None and last.last.accepted and record.count != last.last.count and not record.reason:
            yield "durable", f"{deployment} was asked to have {last.last.count}, and its record says {record.count}"


def _plans(world: World, rules: Rules) -> _Troubles:
    here: dict[tuple[str, int], set[str]] = defaultdict(set)
    for one in world.running:
        here[one.deployment, one.ordinal].add(one.node)
    for deployment, record in world.records.items():
        if record.state != "running" or not record.final:
            continue
        places = {ordinal: share.node for share in record.plan for ordinal in share.numbers()}
        if len(places) < record.count and not record.reason and not record.lacking:
            yield "exactly", f"{deployment} is running, with {len(places)} of {record.count} placed and no reason"
        for ordinal, node in places.items():
            found = here.get((deployment, ordinal), set())
            if node not in found:
                at = ", ".join(sorted(found)) or "nowhere"
                yield "exactly", f"{deployment}.{ordinal} is planned on {node} and runs {at}"
            elif len(found) > 1:
                yield "exactly", f"{deployment}.{ordinal} runs on {', '.join(sorted(found))}"
        if record.lacking and (room := _room(world, record, rules)):
            yield "exactly", f"{deployment} lacks {record.lacking}, and {room} has room"


def _room(world: World, record: Deployment, rules: Rules) -> str:
    """A node that could run one more of it; "": there is none."""
    used: dict[str, Resources] = {}
    for other in world.records.values():
        for share in other.plan:
            need = other.spec.resources.times(len(share.numbers()))
            used[share.node] = used.get(share.node, ZERO) + need
    nodes: Counter[str] = Counter()
    racks: Counter[str] = Counter()
    for share in record.plan:
        nodes[share.node] += len(share.numbers())
        racks[share.rack] += len(share.numbers())
    for node, rack in world.members.items():
        if node in world.storage or node in world.cordoned:
            continue
        fits = rules.capacity.minus(used.get(node, ZERO)).holds(record.spec.resources)
        in_node = not record.max_per_node or nodes[node] < record.max_per_node
        if fits and in_node and (not record.max_per_rack or racks[rack] < record.max_per_rack):
            return node
    return ""


def _processes(world: World) -> _Troubles:
    places = {
        (deployment, ordinal, share.node)
        for deployment, record in world.records.items()
        for share in record.plan
        for ordinal in share.numbers()
    }
    for one in sorted(world.running):
        if (one.deployment, one.ordinal, one.node) not in places:
            yield "orphans", f"{one.name} runs on {one.node} (pid {one.pid}), {_why(world, one)}"


def _why(world: World, one: Running) -> str:
    record = world.records.get(one.deployment)
    if record is None:
        return "and its deployment is gone"
    where = next((share.node for share in record.plan if one.ordinal in share.numbers()), "")
    return f"and is planned on {where}" if where else f"and its deployment is {record.state} without it"


def _images(world: World, rules: Rules) -> _Troubles:
    for text in world.rotten:
        yield "redundancy", text
    racks_alive = {rack for node, rack in world.members.items() if node in world.storage}
    for name, image in world.images.items():
        holders = [node for node in world.holders.get(image.digest, ()) if node in world.members]
        racks = {world.members[node] for node in holders}
        wanted = min(rules.redundancy, len(racks_alive))
        if len(racks) < wanted:
            at = ", ".join(sorted(holders)) or "nobody"
            yield "redundancy", f"image {name} is whole at {at}: expected holders in {wanted} racks"


def _audited(world: World) -> _Troubles:
    for text in world.audit:
        yield AUDITED.get(text.partition(" ")[0], "durable"), f"the audit finds: {text}"


# --- the history -----------------------------------------------------------------------------------------------------


def answers(asked: Iterable[Asked], excused: Sequence[Span], outages: Sequence[Outage]) -> list[Finding]:
    """What was answered as it should not have been. `excused`: when the API was dead or out of reach."""
    found: list[Finding] = []
    made: dict[int, set[str]] = defaultdict(set)
    for one in asked:
        name = f"request {one.number} ({one.kind} {one.deployment})".replace(" )", ")")
        for attempt in one.attempts:
            at, status = attempt.answered_s, attempt.status
            if attempt.accepted and one.kind == "create":
                made[one.number].add(attempt.deployment)
            if status == NO_ANSWER:
                if not _within(attempt.sent_s, attempt.answered_s, excused):
                    found.append(Finding("durable", at, f"{name} got no answer: {attempt.detail}"))
            elif status == 503:
                if not attempt.retry_after:
                    found.append(Finding("durable", at, f"{name} got 503 without Retry-After: {attempt.detail}"))
            elif not 200 <= status < 300 and status not in REFUSALS:
                found.append(Finding("durable", at, f"{name} got {status}: {attempt.detail}"))
            if 200 <= status < 300 and _in_outage(attempt.sent_s, attempt.answered_s, outages):
                found.append(Finding("outage", at, f"{name} was accepted while ZooKeeper had no quorum"))
        if one.last.again:
            found.append(Finding("durable", one.last.answered_s, f"{name} has no answer after {one.waited_s:.1f} s"))
        if one.end is not None and one.end.state == "failed" and not one.end.reason:
            found.append(Finding("durable", one.end.at_s, f"{name} ended as failed, without a reason"))
        if len(made[one.number]) > 1:
            names = ", ".join(sorted(made[one.number]))
            text = f"request {one.number} with one idempotency key made {names}"
            found.append(Finding("durable", one.last.answered_s, text))
    return found


def _within(from_s: float, to_s: float, spans: Sequence[Span]) -> bool:
    """Whether it lay in part in one of them."""
    return any(from_s < end and to_s > begin for begin, end in spans)


def _in_outage(sent_s: float, answered_s: float, outages: Sequence[Outage]) -> bool:
    return any(sent_s > one.from_s + OUTAGE_MARGIN_S and answered_s < one.to_s for one in outages)
