"""brake: whether lost nodes are replaced."""

from __future__ import annotations

from argparse import Namespace

from fabric.cli import output, views
from fabric.cli.client import Api
from fabric.cli.exits import Exit


def brake(args: Namespace) -> int:
    with Api.of(args) as api:
        if args.action == "release":
            return _release(args, api)
        answer = api.get("/v1/brake")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    found = answer.read(views.Brake)
    since = f" (since {found.since}, {output.age(found.since)} ago)" if found.since else ""
    output.line(f"{found.detail}{since}", "red" if found.on else "")
    if found.lost:
        counted = set(found.nodes)
        output.table(
            ("LOST NODE", "RACK", "SINCE", "FOR", "REPLACED", "BY", "COUNTED"),
            [
                (
                    one.node,
                    one.rack,
                    one.since,
                    output.age(one.since),
                    f"{output.age(one.accepted)} ago" if one.accepted else "not yet",
                    one.by,
                    "yes" if one.node in counted else "",
                )
                for one in found.lost
            ],
        )
    return Exit.DONE


def _release(args: Namespace, api: Api) -> int:
    answer = api.post("/v1/brake/release")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    done = answer.read(views.Released)
    if done.released:
        output.line(f"replaced from now on: {', '.join(done.released)}")
    else:
        output.line("no lost node waits for a release")
    if done.brake.on:
        output.line(f"{done.brake.detail} (nodes that vanished just now)", "red")
    return Exit.DONE
