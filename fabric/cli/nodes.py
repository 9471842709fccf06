"""nodes, racks, leaders, flavors, capacity, cordon, uncordon, version."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence

from fabric import __version__
from fabric.cli import output, views
from fabric.cli.client import Answer, Api, NoAnswer, segment
from fabric.cli.exits import Exit

FREE = (">FREE VCPUS", ">MEMORY", ">DISK")
"""Headings of `output.free_of`."""


def nodes(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.pages("/v1/nodes", args.limit)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    page = answer.read(views.Page[views.Node])
    columns = ("NODE", "RACK", "LAYER", "STATE", ">HEARD", ">INST", ">RESV", *FREE, ">IMAGES", "DRIVER", ">PID")
    output.table(
        columns,
        [
            (
                f"{one.node} *" if one.leader else one.node,
                one.rack,
                one.layer,
                _node_state(one),
                *(("-",) * (len(columns) - 4) if one.lost else _told(one)),
            )
            for one in page.items
        ],
        ("DRIVER", "IMAGES", "DISK", "RESV", "PID", "MEMORY"),
    )
    output.line("* leads its rack", "dim")
    output.silent("racks", page.silent_racks)
    output.more(page.next)
    return Exit.DONE


def racks(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.pages("/v1/racks", args.limit)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    page = answer.read(views.Page[views.Rack])
    columns = ("RACK", "LAYER", "LEADER", ">EPOCH", ">LOAD", ">NODES", ">SILENT", ">CORDONED", ">INST", *FREE)
    output.table(
        columns,
        [
            (
                one.rack,
                one.layer,
                one.leader if one.answered else output.Styled(f"{one.leader} (no answer)", "yellow"),
                one.epoch,
                one.load,
                one.nodes,
                one.silent,
                one.cordoned,
                one.instances,
                *(output.free_of(one.free, one.total) if one.layer == "compute" else ("", "", "")),
            )
            for one in page.items
        ],
        ("EPOCH", "LOAD", "DISK", "MEMORY"),
    )
    output.more(page.next)
    return Exit.DONE


def leaders(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.pages("/v1/leaders", args.limit)
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    page = answer.read(views.Page[views.Leader])
    output.table(
        ("LAYER", "RACK", "NODE", ">EPOCH", ">LOAD", "ADDRESS"),
        [(one.layer, one.rack, one.node, one.epoch, one.load, one.address) for one in page.items],
    )
    output.more(page.next)
    return Exit.DONE


def flavors(args: Namespace) -> int:
    with Api.of(args) as api:
        answer = api.get("/v1/flavors")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    output.table(
        ("FLAVOR", ">VCPUS", ">MEMORY", ">DISK"),
        [
            (
                one.name,
                one.resources.vcpus,
                output.size(one.resources.memory_mib * 2**20),
                output.size(one.resources.disk_mib * 2**20),
            )
            for one in answer.read(views.Flavors).items
        ],
    )
    return Exit.DONE


def capacity(args: Namespace) -> int:
    with Api.of(args) as api:
        names = [args.flavor] if args.flavor else _flavors(api)
        answers = [api.get("/v1/capacity", {"flavor": name}) for name in names]
    if output.wants_json(args):
        output.emit(answers[0] if args.flavor else _together(answers))
        return Exit.DONE
    found = [answer.read(views.Capacity) for answer in answers]
    output.table(
        ("FLAVOR", "RACK", ">NODES", ">FITS", ">OF", "RUNS OUT FIRST"),
        [
            row
            for one in found
            for row in (
                *((one.flavor, rack.rack, rack.nodes, rack.fits, rack.total, rack.limited_by) for rack in one.racks),
                *((one.flavor, rack, "-", "-", "-", "its leader did not answer") for rack in one.silent_racks),
                (one.flavor, "all", sum(rack.nodes for rack in one.racks), one.fits, one.total, ""),
            )
        ],
    )
    return Exit.DONE


def _flavors(api: Api) -> list[str]:
    return [one.name for one in api.get("/v1/flavors").read(views.Flavors).items]


def cordon(args: Namespace) -> int:
    return _cordon(args, "cordon")


def uncordon(args: Namespace) -> int:
    return _cordon(args, "uncordon")


def version(args: Namespace) -> int:
    """The API may be away: then the command's own version is all there is to say."""
    try:
        with Api.of(args) as api:
            theirs = api.get("/healthz").read(views.Health).version
            where = api.base
    except NoAnswer:
        theirs = where = ""
    if output.wants_json(args):
        print(json.dumps({"command": __version__, "api": theirs or None, "address": where or None}))
    else:
        output.pairs([("command", __version__), ("api", f"{theirs} at {where}" if theirs else "none answers")])
    return Exit.DONE


def _cordon(args: Namespace, verb: str) -> int:
    with Api.of(args) as api:
        answer = api.post(f"/v1/nodes/{segment(args.node)}/{verb}")
    if output.wants_json(args):
        output.emit(answer)
        return Exit.DONE
    found = answer.read(views.Cordon)
    said = "is cordoned: it gets nothing new" if found.cordoned else "gets new instances again"
    output.line(f"{found.node} {said}" + ("" if found.effective else " (as soon as it hears of it)"))
    return Exit.DONE


def _told(one: views.Node) -> tuple[object, ...]:
    """What a node says of itself: nothing of this is known of one that is lost."""
    return (
        "never" if one.heard_ms < 0 else output.millis(one.heard_ms),
        one.instances,
        one.reserved,
        *_free(one),
        one.images,
        one.driver if one.layer == "compute" else "",
        one.pid or "-",
    )


def _free(one: views.Node) -> tuple[str, str, str]:
    """A storage node offers no instances: of it, the room for images."""
    return output.free_of(one.free, one.total) if one.layer == "compute" else ("", "", output.size(one.free_bytes))


def _node_state(one: views.Node) -> output.Styled:
    if one.lost:
        return output.Styled(f"lost {output.age(one.lost)} ago", "red")
    if one.draining:
        return output.Styled("draining", "yellow")
    if one.silent:
        return output.Styled("silent", "red")
    return output.Styled("cordoned", "yellow") if one.cordoned else output.Styled("ready", "green")


def _together(answers: Sequence[Answer]) -> Answer:
    return Answer(b'{"items": [' + b", ".join(answer.body for answer in answers) + b"]}")
