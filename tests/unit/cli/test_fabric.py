"""Images, nodes, racks, leaders, flavors, capacity, cordons, the trace, the version: asked right, shown right."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from fabric import __version__
from fabric.api.schemas import (
    CapacityView,
    CordonView,
    FlavorList,
    FlavorView,
    HealthView,
    ImageDeletedView,
    ImageList,
    ImageView,
    LeaderList,
    LeaderView,
    NodeList,
    NodeView,
    RackCapacity,
    RackList,
    RackView,
)
from fabric.cli import output
from fabric.commands import FetchNote
from fabric.records import Share
from fabric.roles.trace import NodeSeen, OfferSeen, PlacingSeen, RackSeen, RoundSeen, SearchSeen, Span, Trace
from tests.unit.cli.api_server import LARGE, ApiServer, Reply, problem, run
from tests.unit.cli.conftest import Fabric

IMAGE = ImageView(
    name="web",
    digest="b3:" + "ab" * 32,
    size=64 * 2**20,
    kind="tar",
    pushed="2026-01-02T03:04:05.678Z",
    content="",
    holders=["r1s01", "r2s02"],
)


def node(name: str, **changes: object) -> NodeView:
    values: dict[str, object] = {
        "node": name,
        "rack": "r1",
        "layer": "compute",
        "address": "tcp://127.0.0.1:1/aa",
        "data_endpoint": "",
        "total": LARGE,
        "free": LARGE,
        "cordoned": False,
        "instances": 3,
        "reserved": 0,
        "heard_ms": 120,
        "silent": False,
        "driver": "process",
        "host": "h",
        "pid": 99,
        "images": 1,
        "free_bytes": 2**30,
        "managent": "",
        "leader": False,
        "draining": None,
        "lost": None,
    }
    return NodeView(**{**values, **changes})  # type: ignore[arg-type]


def test_push_streams_the_file_with_its_size(api: ApiServer, fabric: Fabric, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    (tmp_path / "web.tar").write_bytes(content)
    api.on("PUT", "/v1/images/web", Reply(IMAGE, 201))
    ended = fabric("image", "push", str(tmp_path / "web.tar"), "web")
    assert ended.code == 0
    assert "r1s01 and r2s02" in ended.out
    (request,) = api.requests
    assert request.body == content
    assert request.headers["Content-Length"] == str(len(content))


def test_push_of_standard_input_needs_no_size(
    api: ApiServer, fabric: Fabric, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"x" * 3_000_000)
    api.on("PUT", "/v1/images/web", Reply(IMAGE, 201))
    with open(tmp_path / "in") as source:
        monkeypatch.setattr("sys.stdin", source)
        assert fabric("image", "push", "-", "web").code == 0
    assert len(api.requests[0].body) == 3_000_000
    assert "Content-Length" not in api.requests[0].headers


def test_what_can_not_be_pushed_is_one_line(api: ApiServer, fabric: Fabric, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path):
        ended = fabric("image", "push", str(path), "web")
        assert ended.code == 1
        assert ended.err.count("\n") == 1
        assert str(path) in ended.err
    assert api.requests == []


def test_a_push_that_is_refused_while_it_is_sent_says_why(api: ApiServer, fabric: Fabric, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 30_000_000)
    refusal = problem(507, "store-full", "no two storage nodes have room for 30000000 bytes")
    api.on("PUT", "/v1/images/web", Reply(refusal.body, 507, read_body=False))
    ended = fabric("image", "push", str(tmp_path / "big"), "web")
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("fabric: ")


def test_images_are_listed_shown_and_removed(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/v1/images", ImageList(items=[IMAGE], next=None))
    api.on("GET", "/v1/images/web", IMAGE.model_copy(update={"silent": ["r3s01"]}))
    gone = ImageDeletedView(name="web", digest=IMAGE.digest, freed_bytes=64 * 2**20, shared_with=["web-old"])
    api.on("DELETE", "/v1/images/web", gone)
    assert "64.0 MiB" in fabric("image", "list").out
    shown = fabric("image", "show", "web")
    assert IMAGE.digest in shown.out
    assert "r3s01" in shown.err
    removed = fabric("image", "rm", "web").out
    assert "web-old" in removed
    assert fabric("image", "rm", "web", "--force").code == 0
    assert [request.query for request in api.requests[-2:]] == [{}, {"force": "true"}]


def test_nodes_racks_and_leaders(api: ApiServer, fabric: Fabric) -> None:
    nodes = [node("r1c01", leader=True), node("r1c02", cordoned=True), node("r1c03", silent=True, heard_ms=-1)]
    nodes.append(node("r1s01", layer="storage"))
    nodes.append(node("r1c04", draining="2026-01-02T03:04:05.678Z", cordoned=True))
    nodes.append(node("r1c05", lost="2026-01-02T03:04:05.678Z", silent=True, heard_ms=-1))
    api.on("GET", "/v1/nodes", NodeList(items=nodes, next=None, silent_racks=["compute/r9"]))
    rack = RackView(
        rack="r1",
        layer="compute",
        leader="r1c01",
        epoch=57,
        load=2,
        nodes=8,
        silent=1,
        cordoned=1,
        instances=3,
        total=LARGE,
        free=LARGE,
        answered=False,
    )
    api.on("GET", "/v1/racks", RackList(items=[rack], next=None))
    leader = LeaderView(layer="compute", rack="r1", node="r1c01", address="tcp://127.0.0.1:1/aa", epoch=57, load=2)
    api.on("GET", "/v1/leaders", LeaderList(items=[leader], next=None))
    ended = fabric("nodes")
    for shown in ("r1c01 *", "cordoned", "silent", "never", "1.0 GiB", "draining", "lost "):
        assert shown in ended.out
    assert "compute/r9" in ended.err
    assert "no answer" in fabric("racks").out
    assert "tcp://127.0.0.1:1/aa" in fabric("leaders").out

def test_a_node_that_is_lost_says_nothing_of_itself(api: ApiServer, fabric: Fabric) -> None:
    gone = node("r1c02", lost="2026-01-02T03:04:05.678Z", instances=0, driver="", pid=0, heard_ms=-1, images=0)
    api.on("GET", "/v1/nodes", NodeList(items=[gone], next=None, silent_racks=[]))
    (row,) = (line for line in fabric("nodes").out.splitlines() if "r1c02" in line)
    assert row.split()[3] == "lost"
    assert row.split()[6:] == ["-"] * 9


def test_a_narrow_screen_has_fewer_columns_and_whole_names(
    api: ApiServer, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folded to nothing, the columns of names left a table of numbers of nobody."""
    api.on("GET", "/v1/nodes", NodeList(items=[node("r1c02", pid=31_999)], next=None, silent_racks=[]))
    monkeypatch.setattr(output, "PIPE_WIDTH", 80)
    narrow = fabric("nodes")
    head, _, row, _ = narrow.out.splitlines()
    assert head.split()[:5] == ["NODE", "RACK", "LAYER", "STATE", "HEARD"]
    assert row.split()[:4] == ["r1c02", "r1", "compute", "ready"]
    assert "31999" in row
    assert narrow.err == "not shown, for want of width: DISK, IMAGES, DRIVER (all: --format json)\n"
    monkeypatch.setattr(output, "PIPE_WIDTH", 120)
    wide = fabric("nodes")
    assert "DRIVER" in wide.out
    assert wide.err == ""


def test_capacity_is_of_one_flavor_or_of_each(api: ApiServer, fabric: Fabric) -> None:
    flavors = [FlavorView(name="Tiny", resources=LARGE), FlavorView(name="Large", resources=LARGE)]
    api.on("GET", "/v1/flavors", FlavorList(items=flavors))
    capacity = CapacityView(
        flavor="Large",
        resources=LARGE,
        fits=72,
        total=96,
        racks=[RackCapacity(rack="r1", fits=72, total=96, nodes=8, limited_by="vcpus")],
        silent_racks=["r2"],
    )
    api.on("GET", "/v1/capacity", capacity)
    assert "20.0 GiB" in fabric("flavors").out
    assert "72" in fabric("capacity", "--flavor", "Large").out
    assert [request.query for request in api.requests[1:]] == [{"flavor": "Large"}]
    both = json.loads(fabric("capacity", "--format", "json").out)
    assert len(both["items"]) == 2
    assert [request.query for request in api.requests[3:]] == [{"flavor": "Tiny"}, {"flavor": "Large"}]


def test_cordon_and_uncordon(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/nodes/r1c01/cordon", CordonView(node="r1c01", cordoned=True, effective=True, detail=""))
    api.on("POST", "/v1/nodes/r1c01/uncordon", CordonView(node="r1c01", cordoned=False, effective=False, detail="d"))
    assert "nothing new" in fabric("cordon", "r1c01").out
    assert "as soon as it hears" in fabric("uncordon", "r1c01").out


def test_version_needs_no_api(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/healthz", HealthView(status="ok", version="9.9.9"))
    assert "9.9.9" in fabric("version").out
    away = fabric("version", "--api", "http://127.0.0.1:1", "--format", "json")
    assert away.code == 0
    assert json.loads(away.out) == {"command": __version__, "api": None, "address": None}


PLACING = PlacingSeen(
    missing="0-2",
    offers=(
        OfferSeen("r1c01", "r1", 6, utilisation=0.5),
        OfferSeen("r1c02", "r1", 6, utilisation=0.1 + 0.2),
        OfferSeen("r1c03", "r1", 6),
    ),
    gone=(),
    short=0,
    given=(Share("r1c01", "r1", "0-2"),),
    granted="0-2",
)


def test_the_trace_tells_the_nine_steps_winners_losers_and_holders(api: ApiServer, fabric: Fabric) -> None:
    spans = tuple(Span(step, f"step {step}", step * 10, 5, f"detail [{step}]") for step in range(1, 10))
    fetch = FetchNote(
        "r2s01", ("r1s01", "r2s01", "r3s02"), ("r1s01", "r3s02"), {"r1s01": 3 << 20}, ("r3s02",), 4, 80, False
    )
    told_of = run(
        spans=spans,
        racks=(RackSeen("r1", "r1c01", 12, 8, 48, ("r1c07",)), RackSeen("r3", "r3c01", -1, 0, 0)),
        searches=(SearchSeen("d-1", "pack", 0, 0, (PLACING,), (), PLACING.given, omitted=5),),
        searches_omitted=0,
        rounds=(RoundSeen(1, 20, 50, 44, ("r1c01:6",)), RoundSeen(2, 40, 6, 6, ())),
        nodes=(
            NodeSeen("r1c01", "r1", "0-2", 900, 30, 12, fetch),
            NodeSeen("r1c02", "r1", "3", -1, 0, 0, None, "boom"),
        ),
    )
    api.on("GET", "/v1/deployments/d-1/trace", Reply(msgspec.json.encode(Trace((told_of,)))))
    told = fabric("trace", "d-1").out
    for step in range(1, 10):
        assert f"detail [{step}]" in told
    for part in (
        "running after 1.23 s",
        "r2c01, leader of r2, epoch 57",
        "184 messages; ZooKeeper: 4 writes, 12 reads",
        "r1c07",
        "no answer",
        "r1c02, r1c03",
        "enough elsewhere, by the policy",
        "5 more offers or rounds",
        "r1c01:6",
        "3.0 MiB",
        "storage leaders asked: r2s01",
        "boom",
    ):
        assert part in told, part
    api.on("GET", "/v1/deployments/d-1/trace", Reply(msgspec.json.encode(Trace())))
    assert "no trace yet" in fabric("trace", "d-1").out


def test_a_trace_is_replayed_and_the_exit_code_says_whether_it_is_the_same(api: ApiServer, fabric: Fabric) -> None:
    search = SearchSeen("d-1", "pack", 0, 0, (PLACING,), (), PLACING.given)
    moved = msgspec.structs.replace(search, plan=(Share("r1c01", "r1", "0-1"), Share("r1c02", "r1", "2")))
    short = msgspec.structs.replace(search, omitted=3)
    runs = tuple(run(generation=n, searches=(one,)) for n, one in enumerate((search, moved, short), 1))
    api.on("GET", "/v1/deployments/d-1/trace", Reply(msgspec.json.encode(Trace((*runs, run(generation=4))))))
    good = fabric("trace", "d-1", "--replay", "--run", "1")
    assert good.code == 0
    assert "replayed 1 round: the same plan" in good.out
    other = fabric("trace", "d-1", "--replay", "--run", "2")
    assert other.code == 1
    assert "ordinal 2 is on r1c02 of r1 by the trace, on r1c01 of r1 by the replay" in other.err
    last = fabric("trace", "d-1", "--replay")  # the fourth placed nothing
    assert last.code == 1
    assert "run 3 of d-1, generation 3: can't be replayed: 3 offers or rounds were left out" in last.err
    assert fabric("trace", "d-1", "--replay", "--run", "4").code == 1
    assert fabric("trace", "d-1", "--run", "1").code == 64
    told = fabric("trace", "d-1", "--replay", "--run", "2", "--format", "json")
    assert told.code == 1
    assert (json.loads(told.out)["same"], json.loads(told.out)["run"], json.loads(told.out)["rounds"]) == (False, 2, 1)
    assert json.loads(fabric("trace", "d-1", "--replay", "--run", "1", "--format", "json").out)["same"] is True
    api.on("GET", "/v1/deployments/d-1/trace", Reply(msgspec.json.encode(Trace((run(),)))))
    none = fabric("trace", "d-1", "--replay")
    assert none.code == 1
    assert "found 1 run in" in none.err
