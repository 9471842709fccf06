"""Admission and capacity: what fits now, what would fit in an empty fabric, and why not."""

from __future__ import annotations

from typing import Any

from fabric.api.inventory import rooms, what_would_do, why_impossible
from fabric.messages import NodeStatus, RackStatus
from fabric.records import Share, Size
from fabric.resources import Resources
from fabric.roles.client import Statuses

LARGE = Resources(4, 8192, 40960)
NODE = Resources(16, 32768, 200_000)


def node(name: str, rack: str, total: Resources = NODE, **changes: Any) -> NodeStatus:
    values: dict[str, Any] = {
        "node": name, "rack": rack, "layer": "compute", "address": "tcp://h:1/00000000", "data_endpoint": "",
        "total": total, "free": total, "cordoned": False, "instances": 0, "reserved": 0, "heard_ms": 5, "silent": False,
        "driver": "null", "host": "h", "pid": 1, "images": 0, "free_bytes": 0, **changes,
    }  # fmt: skip
    return NodeStatus(**values)


def fabric(*nodes: NodeStatus, silent_racks: tuple[str, ...] = ()) -> Statuses:
    racks = sorted({one.rack for one in nodes})
    return Statuses(
        "compute",
        tuple(
            RackStatus("c", rack, "compute", True, "x", 1, tuple(one for one in nodes if one.rack == rack))
            for rack in racks
        ),
        silent_racks,
    )


def test_what_fits_is_summed_by_rack() -> None:
    found = rooms(LARGE, fabric(node("a", "r1"), node("b", "r1"), node("c", "r2", free=LARGE)))
    assert [(room.rack, room.fits, room.total, room.nodes) for room in found] == [("r1", 8, 8, 2), ("r2", 1, 4, 1)]


def test_cordoned_and_silent_nodes_have_no_room_now() -> None:
    [room] = rooms(LARGE, fabric(node("a", "r1", cordoned=True), node("b", "r1", silent=True)))
    assert (room.fits, room.total) == (0, 8)


def test_the_scarcest_dimension_is_named() -> None:
    [room] = rooms(LARGE, fabric(node("a", "r1", Resources(64, 16384, 400_000))))
    assert room.limited_by == "memory_mib"


def test_what_fits_an_empty_fabric_is_not_refused_however_full_it_is() -> None:
    full = fabric(node("a", "r1", free=Resources(0, 0, 0)))
    assert why_impossible("Large", LARGE, 4, 0, 0, full) == ()


def test_each_dimension_that_is_too_small_has_a_line() -> None:
    lines = why_impossible("Large", LARGE, 5, 0, 0, fabric(node("a", "r1", Resources(16, 65536, 163_840))))
    assert lines == (
        "vcpus: Large needs 4, so 5 need 20; 1 nodes have 16 together, room for 4",
        "disk_mib: Large needs 40960, so 5 need 204800; 1 nodes have 163840 together, room for 4",
        "rack r1: 4 fit on its 1 nodes when empty",
    )


def test_dimensions_that_only_together_are_too_small_are_told_so() -> None:
    odd = fabric(node("a", "r1", Resources(8, 8192, 81920)), node("b", "r1", Resources(4, 8192, 0)))
    lines = why_impossible("Large", LARGE, 2, 0, 0, odd)
    assert lines[0] == "no single dimension, but all of them together: room for 1 of 2"


def test_the_limits_of_the_request_are_named() -> None:
    two = fabric(node("a", "r1"), node("b", "r1"))
    assert why_impossible("Large", LARGE, 3, 1, 0, two)[0] == (
        "max_per_node 1: 2 nodes then have room for 2 of 3"
    )
    assert why_impossible("Large", LARGE, 3, 0, 2, two)[0] == (
        "max_per_rack 2: 1 racks then have room for 2 of 3"
    )


def test_what_would_do_is_said_as_far_as_heartbeats_tell() -> None:
    two = fabric(node("a", "r1"), node("b", "r1", silent=True), node("c", "r2", cordoned=True))
    sizes = (Size("Medium", 2, 4096, 20480),)
    assert what_would_do(LARGE, 9, 1, 0, sizes, (), two) == ("would do: asking for 1 instance",)
    assert what_would_do(LARGE, 8, 0, 0, sizes, (), two) == (
        "would do: asking for 4 instances",
        "would do: flavor Medium (2 vcpus, 4096 MiB memory, 20480 MiB disk)",
        "would do: uncordoning c",
    )


def test_a_scale_up_is_told_only_what_it_can_change() -> None:
    plan = (Share("a", "r1", "0-1"),)
    one = fabric(node("a", "r1", free=LARGE))
    assert what_would_do(LARGE, 9, 3, 0, (Size("Tiny", 1, 1, 0),), plan, one) == ("would do: asking for 3 instances",)


def test_nobody_is_refused_while_a_rack_is_silent_or_none_is_known() -> None:
    assert why_impossible("Large", LARGE, 99, 0, 0, fabric(node("a", "r1"), silent_racks=("r2",))) == ()
    assert why_impossible("Large", LARGE, 99, 0, 0, fabric()) == ()
