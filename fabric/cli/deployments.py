"""deploy, plan, list, show, scale, delete, instances, logs."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence

from fabric.cli import output, views, watch
from fabric.cli.client import Api, segment
from fabric.cli.exits import Exit, Failure

PLAN_ROWS = 40
"""Nodes of a plan shown; a program reads them all with --format json."""


def deploy(args: Namespace) -> int:
    with Api.of(args) as api:
        seen = watch.read(api.deploy(_request(args), args.key))
        if not args.wait:
            return _accepted(args, seen)
        return _ended(api, args, watch.follow(api, seen, args.timeout), args.count)


def plan(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.plan(_request(args))
    found = answer.read(views.DryRun)
    if output.wants_json(args):
        output.emit(answer)
    else:
        verb = "would be placed" if found.feasible else "could be placed"
        output.line(f"{found.placed} of {found.count} {args.flavor} {verb}; nothing is reserved")
        _reasons(found.reason, [*found.reasons, *(one.sentence for one in found.advice)])
        output.table(
            ("RACK", ">NODES", ">OFFERED", ">USED", "DID NOT ANSWER"),
            [
                *((rack.rack, rack.nodes, rack.offered, rack.used, ", ".join(rack.silent)) for rack in found.racks),
                *((rack, "-", "-", "-", "the rack's leader") for rack in found.silent_racks),
            ],
        )
        _plan(found.plan)
    return Exit.DONE if found.feasible and found.placed >= found.count else Exit.NOT_PLACED


def listing(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.pages("/v1/deployments", args.limit)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    page = answer.read(views.Page[views.Deployment])
    output.table(
        ("ID", "NAME", "IMAGE", "FLAVOR", ">PLACED", ">COUNT", "STATE", "AGE", "REASON"),
        [
            (
                one.id,
                one.name,
                one.image,
                one.flavor,
                one.placed,
                one.count,
                _state(one),
                output.age(one.created),
                one.reason,
            )
            for one in page.items
        ],
        ("FLAVOR", "NAME"),
    )
    output.more(page.next)
    return Exit.DONE


def show(args: Namespace) -> int:
    with Api.of(args) as api:
        seen = watch.look(api, args.id)
        if args.wait:
            seen = watch.follow(api, seen, args.timeout, replaced=True)
        _show(api, args, seen)
        return watch.verdict(api, seen.deployment) if args.wait else Exit.DONE


def scale(args: Namespace) -> int:
    with Api.of(args) as api:
        seen = watch.read(api.patch(f"/v1/deployments/{segment(args.id)}", {"count": args.count}))
        if not args.wait:
            return _accepted(args, seen)
        return _ended(api, args, watch.follow(api, seen, args.timeout), args.count)


def delete(args: Namespace) -> int:
    with Api.of(args) as api:
        seen = watch.read(api.delete(f"/v1/deployments/{segment(args.id)}"))
        if not args.wait:
            return _accepted(args, seen)
        return _ended(api, args, watch.follow(api, seen, args.timeout))


def instances(args: Namespace) -> int:
    query = {"deployment": args.deployment} if args.deployment else {}
    with Api.of(args) as api:
        answer = api.pages("/v1/instances", args.limit, query)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    page = answer.read(views.Page[views.Instance])
    output.table(
        ("INSTANCE", "NODE", "RACK", "FLAVOR", "IMAGE", "STATE", ">PID", ">ATTEMPT", "AGE", "REASON"),
        [
            (
                one.id,
                one.node,
                one.rack,
                one.flavor,
                one.image,
                output.state(one.state),
                one.pid or "-",
                one.attempt,
                output.age(one.started),
                one.reason,
            )
            for one in page.items
        ],
        ("ATTEMPT", "RACK", "FLAVOR"),
    )
    output.silent("nodes", page.silent)
    output.more(page.next)
    return Exit.DONE


def logs(args: Namespace) -> int:
    with Api.of(args) as api:
        content = api.text(f"/v1/instances/{segment(args.instance)}/log", {"bytes": args.bytes})
    if output.wants_json(args):
        print(json.dumps({"instance": args.instance, "log": content.decode("utf-8", "replace")}))
        return Exit.DONE
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    return Exit.DONE


# --- parts -----------------------------------------------------------------------------------------------------------


def _request(args: Namespace) -> dict[str, object]:
    """The body of a request; what was not given is left out, so that the API's defaults hold."""
    given = {
        "image": args.image,
        "flavor": args.flavor,
        "count": args.count,
        "min_count": args.min_count,
        "policy": args.policy,
        "max_per_node": args.max_per_node,
        "max_per_rack": args.max_per_rack,
        "restart": args.restart,
        "lost_after_s": args.lost_after,
        "stop_after_s": args.stop_after,
        "exclusive": args.exclusive or None,
        "name": args.name,
        "labels": _unique("--label", args.label),
        "environment": _unique("--env", args.env),
    }
    return {name: value for name, value in given.items() if value not in (None, {})}


def _unique(option: str, given: Sequence[tuple[str, str]]) -> dict[str, str]:
    found = dict(given)
    if len(found) < len(given):
        twice = Counter(name for name, _ in given).most_common(1)[0][0]
        raise Failure(f"{option}: expected each name once, found {twice!r} twice", Exit.USAGE)
    return found


def _accepted(args: Namespace, seen: watch.Seen) -> int:
    if output.wants_json(args):
        output.emit(seen.answer)
    else:
        one = seen.deployment
        output.line(f"{one.id} {one.state}: {one.count} {one.flavor} of {one.image}")
        if not one.final:
            output.remark(f"follow it with: fabric show {one.id} --wait")
    return Exit.DONE


def _ended(api: Api, args: Namespace, seen: watch.Seen, wanted: int | None = None) -> int:
    one = seen.deployment
    if output.wants_json(args):
        output.emit(seen.answer)
        return watch.verdict(api, one, wanted)
    output.line(watch.sentence(one, watch.Count()), output.STATES.get(one.state, ""))
    _reasons("" if one.state == "failed" else one.reason, one.reasons)
    if one.state == "running":
        racks: dict[str, list[views.Share]] = {}
        for share in one.plan:
            racks.setdefault(share.rack, []).append(share)
        output.table(
            ("RACK", ">NODES", ">INSTANCES"),
            [(rack, len(shares), sum(share.count for share in shares)) for rack, shares in sorted(racks.items())],
        )
    if one.state != "deleted":
        output.remark(f"how it went: fabric trace {one.id}")
    return watch.verdict(api, one, wanted)


def _show(api: Api, args: Namespace, seen: watch.Seen) -> None:
    if output.wants_json(args):
        output.emit(seen.answer)
        return
    one = seen.deployment
    output.pairs(
        [
            ("id", one.id),
            ("name", one.name),
            ("image", one.image),
            ("flavor", f"{one.flavor} ({output.resources(one.resources)})"),
            (
                "count",
                f"{one.placed} placed of {one.count}"
                + (f", at least {one.min_count}" if one.min_count < one.count else ""),
            ),
            ("lacking", f"{one.lacking} ran, and have no place now" if one.lacking else ""),
            ("policy", _policy(one)),
            ("restart", one.restart),
            ("lost node", _when_lost(one)),
            ("labels", _joined(one.labels)),
            ("environment", _joined(one.environment)),
            ("state", _state(one)),
            ("reason", one.reason),
            ("created", f"{one.created} ({output.age(one.created)} ago)"),
            ("updated", f"{one.updated} ({output.age(one.updated)} ago)"),
        ]
    )
    _reasons("", one.reasons)
    _plan(one.plan)
    if one.leaving:
        output.line("leaving their nodes, which are being drained:")
        _plan(one.leaving)
    gone = watch.missed(api, one)
    if gone.count:
        when = gone.brake or f"replaced {output.seconds(one.lost_after_s)} after ZooKeeper has counted it out"
        output.line(f"{gone} ({when})", "red")


def _when_lost(one: views.Deployment) -> str:
    """What happens to the instances on a node that vanishes, or is cut off."""
    parts = [f"replaced after {output.seconds(one.lost_after_s)}"]
    if one.stop_after_s:
        parts.append(f"cut off, it stops its own after {output.seconds(one.stop_after_s)}")
    if one.exclusive:
        parts.append("drained, they are stopped before they start elsewhere")
    return "; ".join(parts)


def _state(one: views.Deployment) -> output.Styled:
    """With a mark while something is still to be done, as after a scale."""
    if one.state in ("running", "failed", "deleted") and not one.final:
        return output.Styled(f"{one.state} (changing)", "yellow")
    return output.state(one.state)


def _policy(one: views.Deployment) -> str:
    rules = [one.policy]
    rules += [f"at most {one.max_per_node} a node"] if one.max_per_node else []
    rules += [f"at most {one.max_per_rack} a rack"] if one.max_per_rack else []
    return ", ".join(rules)


def _joined(values: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _reasons(reason: str, reasons: Sequence[str]) -> None:
    if reason:
        output.line(reason, "yellow")
    for one in reasons:
        output.line(f"  {one}")


def _plan(shares: Sequence[views.Share]) -> None:
    if not shares:
        return
    rows = [(share.rack, share.node, share.count, share.ordinals) for share in shares[:PLAN_ROWS]]
    output.table(("RACK", "NODE", ">INSTANCES", "ORDINALS"), rows)
    if len(shares) > PLAN_ROWS:
        output.line(f"and {len(shares) - PLAN_ROWS} more nodes (all: --format json)")
