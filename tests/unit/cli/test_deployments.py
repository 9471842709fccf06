"""deploy, plan, list, show, scale, delete, instances, logs: what is asked, what is shown, and the exit code."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from fabric.api.schemas import (
    AdviceView,
    DeploymentList,
    DeploymentView,
    DryRunView,
    FieldError,
    InstanceItem,
    InstanceList,
    RackOffer,
    ShareView,
)
from fabric.cli import output
from fabric.roles.trace import NodeSeen, Trace
from tests.unit.cli.api_server import FAILED, RUNNING, ApiServer, Reply, brake, deployment, problem, run
from tests.unit.cli.conftest import Fabric

ID = "d-1r2k0q9x4ab"
ONE = f"/v1/deployments/{ID}"
DEPLOY = ("deploy", "web", "--flavor", "Large", "--count", "50")


def instance(ordinal: int, state: str = "running") -> InstanceItem:
    return InstanceItem(
        id=f"{ID}.{ordinal}",
        deployment=ID,
        ordinal=ordinal,
        node="r1c01",
        rack="r1",
        flavor="Large",
        image="web",
        state=state,  # type: ignore[arg-type]
        pid=4711,
        attempt=1,
        started="2026-01-02T03:04:05.678Z",
        directory="/x",
        driver="process",
        reason="",
    )


def test_deploy_sends_what_was_given_and_leaves_the_rest_to_the_api(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", Reply(deployment(), 202))
    ended = fabric(*DEPLOY, "--min-count", "40", "--env", "A=b=c", "--label", "team=blue", "--max-per-node", "0")
    assert ended.code == 0
    assert ID in ended.out
    assert api.requests[0].json == {
        "image": "web",
        "flavor": "Large",
        "count": 50,
        "min_count": 40,
        "max_per_node": 0,
        "environment": {"A": "b=c"},
        "labels": {"team": "blue"},
    }


def test_what_happens_to_lost_nodes_is_sent_and_shown(api: ApiServer, fabric: Fabric) -> None:
    leaving = [ShareView(node="r1c09", rack="r1", ordinals="3", count=1)]
    changes = {"lost_after_s": 600, "stop_after_s": 90, "exclusive": True, "lacking": 2, "leaving": leaving}
    api.on("POST", "/v1/deployments", Reply(deployment(), 202))
    api.on("GET", ONE, RUNNING.model_copy(update=changes))
    assert fabric(*DEPLOY, "--lost-after", "10m", "--stop-after", "90", "--exclusive").code == 0
    sent = api.requests[0].json
    assert (sent["lost_after_s"], sent["stop_after_s"], sent["exclusive"]) == (600, 90, True)
    shown = fabric("show", ID).out
    for part in ("replaced after 10 m", "stops its own after 90 s", "before they start elsewhere", "2 ran", "r1c09"):
        assert part in shown


def test_deploy_uses_the_given_key_and_makes_one_when_none_is_given(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", Reply(deployment(), 202))
    fabric(*DEPLOY, "--key", "release-17")
    fabric(*DEPLOY)
    fabric(*DEPLOY)
    given, first, second = (request.headers["Idempotency-Key"] for request in api.requests)
    assert given == "release-17"
    assert first != second


def test_deploy_asks_again_under_the_same_key_when_the_answer_was_lost(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", None, Reply(deployment(), 202))
    assert fabric(*DEPLOY).code == 0
    lost, answered = api.requests
    assert lost.headers["Idempotency-Key"] == answered.headers["Idempotency-Key"]


def test_deploy_gives_up_when_every_answer_is_lost(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", None)
    ended = fabric(*DEPLOY)
    assert ended.code == 1
    assert len(api.requests) == 3
    assert ended.err.count("\n") == 1


def test_wait_follows_the_record_by_its_index_and_tells_of_each_state(api: ApiServer, fabric: Fabric) -> None:
    starting = deployment(state="starting", placed=50, plan=RUNNING.plan, index=9)
    api.on("POST", "/v1/deployments", Reply(deployment(index=7), 202))
    api.on("GET", ONE, starting, starting.model_copy(update={"index": 10}), RUNNING)
    instances = [instance(0), instance(1, "starting"), instance(2, "fetching")]
    api.on("GET", "/v1/instances", InstanceList(items=instances, next=None, silent=[]))
    ended = fabric(*DEPLOY, "--wait")
    assert ended.code == 0
    assert "starting: 1 of 50 run, 1 wait for the image, on 2 nodes" in ended.err
    assert "running: 50 of 50, on 2 nodes" in ended.out
    polls = [request.query for request in api.requests if request.path == ONE]
    assert [poll["index"] for poll in polls] == ["7", "9", "10"]
    assert all(poll["wait"].endswith("s") for poll in polls)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (RUNNING, 0),
        (FAILED, 2),
        (RUNNING.model_copy(update={"placed": 41, "min_count": 40}), 2),
        (deployment(state="deleted", final=True), 0),
    ],
)
def test_the_exit_code_says_how_it_ended(api: ApiServer, fabric: Fabric, end: DeploymentView, code: int) -> None:
    api.on("GET", ONE, end)
    assert fabric("show", ID, "--wait").code == code
    assert fabric("show", ID, "--wait", "--format", "json").code == code
    assert fabric("show", ID).code == 0


def test_what_was_placed_and_could_not_run_is_an_error(api: ApiServer, fabric: Fabric) -> None:
    node = NodeSeen("r1c01", "r1", "0-2", -1, 0, 0, None, "image: no interpreter /no/such/shell")
    api.on("GET", ONE, FAILED)
    api.on("GET", f"{ONE}/trace", Reply(msgspec.json.encode(Trace((run(nodes=(node,)),)))))
    assert fabric("show", ID, "--wait").code == 1
    api.on("GET", f"{ONE}/trace", Reply(msgspec.json.encode(Trace((run(nodes=()),)))))
    assert fabric("show", ID, "--wait").code == 2


def test_a_change_that_could_not_be_made_is_not_placed(api: ApiServer, fabric: Fabric) -> None:
    """The deployment runs on with its old count: that is not what was asked for."""
    api.on("PATCH", ONE, Reply(RUNNING.model_copy(update={"final": False, "count": 60}), 202))
    api.on("GET", ONE, RUNNING.model_copy(update={"reason": "scaling to 60 was not possible, still 50"}))
    ended = fabric("scale", ID, "60", "--wait")
    assert ended.code == 2
    assert "still 50" in ended.out


def test_a_deployment_that_somebody_deletes_meanwhile_is_an_error(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", Reply(deployment(), 202))
    api.on("GET", ONE, deployment(state="deleted", final=True, gone=True))
    assert fabric(*DEPLOY, "--wait").code == 1


def test_a_failed_deployment_says_every_reason(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", Reply(FAILED, 202))
    ended = fabric(*DEPLOY, "--wait")
    assert ended.code == 2
    assert FAILED.reason in ended.out
    for reason in FAILED.reasons:
        assert reason in ended.out


def test_waiting_ends_after_its_timeout_and_says_how_to_go_on(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", ONE, deployment(state="placing"))
    ended = fabric("show", ID, "--wait", "--timeout", "0.2")
    assert ended.code == 1
    assert f"fabric show {ID} --wait" in ended.err.splitlines()[-1]


def test_a_request_that_an_empty_fabric_could_not_hold_is_not_placed(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/deployments", problem(422, "does-not-fit", "too big", reasons=["vcpus: 9000 asked, 96 here"]))
    ended = fabric(*DEPLOY)
    assert ended.code == 2
    assert ended.err == "fabric: too big\n  vcpus: 9000 asked, 96 here\n"


def test_one_wrong_field_is_one_line(api: ApiServer, fabric: Fabric) -> None:
    wrong = FieldError(field="flavor", expected="one of Tiny, Large", found='"Huge"')
    api.on("POST", "/v1/deployments", problem(422, "unknown-flavor", "flavor: expected…", errors=[wrong]))
    ended = fabric("deploy", "web", "--flavor", "Huge", "--count", "1")
    assert (ended.code, ended.err) == (1, 'fabric: flavor: expected one of Tiny, Large, found "Huge"\n')


def test_a_name_given_twice_is_wrong_usage(api: ApiServer, fabric: Fabric) -> None:
    ended = fabric(*DEPLOY, "--env", "A=1", "--env", "A=2")
    assert ended.code == 64
    assert "'A' twice" in ended.err
    assert api.requests == []


def test_plan_shows_the_placement_and_exits_by_it(api: ApiServer, fabric: Fabric) -> None:
    racks = [RackOffer(rack="r1", offered=30, used=25, nodes=8, silent=["r1c07"])]
    plan = [ShareView(node="r1c01", rack="r1", ordinals="0-24", count=25)]
    common: dict[str, Any] = {"count": 50, "racks": racks, "silent_racks": ["r3"]}
    fewer = AdviceView(
        kinds=["fewer"], sentence="would do: asking for 25 instances", count=25, flavor="", max_per_node=0,
        max_per_rack=0, wait_for=[], uncordon=[],
    )  # fmt: skip
    good = DryRunView(feasible=True, min_count=50, placed=50, plan=plan, reason="", reasons=[], advice=[], **common)
    why: dict[str, Any] = {"reason": "no", "reasons": ["r1 is full"], **common}
    short = DryRunView(feasible=True, min_count=20, placed=25, plan=plan, advice=[], **why)
    none = DryRunView(feasible=False, min_count=50, placed=25, plan=[], advice=[fewer], **why)
    api.on("POST", "/v1/deployments", good, short, none)
    arguments = ("plan", "web", "--flavor", "Large", "--count", "50")
    ended = [fabric(*arguments) for _ in range(3)]
    assert [end.code for end in ended] == [0, 2, 2]
    assert "r1c07" in ended[0].out
    assert "r3" in ended[0].out
    assert "r1 is full" in ended[2].out
    assert "would do: asking for 25 instances" in ended[2].out
    assert all(request.query == {"dry_run": "true"} for request in api.requests)
    assert "Idempotency-Key" not in api.requests[0].headers


def test_list_puts_pages_together_up_to_the_limit(api: ApiServer, fabric: Fabric) -> None:
    first = DeploymentList(items=[deployment(id="d-000001"), deployment(id="d-000002")], next="d-000002")
    last = DeploymentList(items=[deployment(id="d-000003")], next=None)
    api.on("GET", "/v1/deployments", first, last)
    ended = fabric("list", "--format", "json")
    listed = json.loads(ended.out)
    assert [one["id"] for one in listed["items"]] == ["d-000001", "d-000002", "d-000003"]
    assert listed["next"] is None
    assert api.requests[1].query["after"] == "d-000002"
    api.on("GET", "/v1/deployments", first)
    ended = fabric("list", "--limit", "2")
    assert "d-000002" in ended.out
    assert "more" in ended.err


def test_show_prints_the_plan_and_json_is_the_apis_own(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", ONE, RUNNING)
    shown = fabric("show", ID).out
    assert "25-49" in shown
    assert "50 placed of 50" in shown
    assert json.loads(fabric("--format", "json", "show", ID).out) == json.loads(RUNNING.model_dump_json())


def test_show_names_the_lost_nodes_of_a_plan_and_waits_until_they_are_replaced(
    api: ApiServer, fabric: Fabric
) -> None:
    """A record at rest says "50 of 50" all the while, and nothing ran there."""
    api.on("GET", ONE, RUNNING)
    api.on("GET", "/v1/brake", brake("r1c01", "r9c09"))
    said = f"25 instances on a lost node: r1c01 (replaced {output.seconds(RUNNING.lost_after_s)} after ZooKeeper"
    assert said in fabric("show", ID).out
    short = fabric("show", ID, "--wait", "--timeout", "0.05")
    assert short.code == 1
    assert f"{ID} has 25 instances on a lost node: r1c01 after 0.05 s" in short.err
    elsewhere = RUNNING.model_copy(update={"plan": [ShareView(node="r2c01", rack="r2", ordinals="0-49", count=50)]})
    api.on("GET", ONE, RUNNING, elsewhere)
    waited = fabric("show", ID, "--wait")
    assert (waited.code, waited.err) == (0, f"{ID} running: 25 instances on a lost node: r1c01\n")
    assert "lost node:" not in waited.out


def test_show_does_not_wait_for_the_brake(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", ONE, RUNNING)
    api.on("GET", "/v1/brake", brake("r1c01", "r2c01", on=True))
    ended = fabric("show", ID, "--wait")
    assert ended.code == 0
    assert "50 instances on lost nodes: r1c01, r2c01 (the brake is on: so many vanished)" in ended.out


def test_scale_and_delete_wait_until_at_rest(api: ApiServer, fabric: Fabric) -> None:
    api.on("PATCH", ONE, Reply(RUNNING.model_copy(update={"final": False, "count": 60}), 202))
    api.on("GET", ONE, RUNNING.model_copy(update={"count": 60, "placed": 60}))
    assert fabric("scale", ID, "60", "--wait").code == 0
    assert api.requests[0].json == {"count": 60}
    api.on("DELETE", ONE, Reply(deployment(state="deleting", gone=True), 202))
    api.on("GET", ONE, deployment(state="deleted", final=True, gone=True))
    ended = fabric("delete", ID, "--wait")
    assert ended.code == 0
    assert "deleted" in ended.out


def test_an_unknown_deployment_is_one_line(fabric: Fabric) -> None:
    for arguments in (("show", "d-none00"), ("trace", "d-none00"), ("scale", "d-none00", "3"), ("delete", "d-none00")):
        ended = fabric(*arguments)
        assert ended.code == 1
        assert ended.err.count("\n") == 1
        assert ended.out == ""


def test_an_id_stays_one_segment_of_the_path(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/v1/nodes", problem(500, "internal-error", "reached by a path in an id"))
    for wrong in ("../nodes", "..", ".", "x?wait=1s", "a b", "a/../../nodes"):
        assert "reached" not in fabric("show", wrong).err
    assert all(request.path.startswith("/v1/deployments/") for request in api.requests)


def test_instances_are_listed_with_who_did_not_answer(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/v1/instances", InstanceList(items=[instance(17)], next=None, silent=["r2c03"]))
    ended = fabric("instances", "--deployment", ID)
    assert f"{ID}.17" in ended.out
    assert "r2c03" in ended.err
    assert api.requests[0].query["deployment"] == ID


def test_logs_are_passed_on_byte_by_byte(api: ApiServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    from fabric.cli.main import main

    content = b"\xff\x00 no text \r\n[red]no markup[/]"
    api.on("GET", f"/v1/instances/{ID}.17/log", Reply(content))
    assert main(["--api", api.url, "logs", f"{ID}.17", "--bytes", "100"]) == 0
    assert capfdbinary.readouterr().out == content
    assert api.requests[0].query["bytes"] == "100"
    assert main(["--api", api.url, "logs", f"{ID}.17", "--format", "json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["log"].endswith("[red]no markup[/]")
