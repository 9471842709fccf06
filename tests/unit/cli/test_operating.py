"""drain and brake: what is asked, what is shown, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fabric.api.operator_schemas import (
    AuditStep,
    AuditView,
    DrainedDeployment,
    DrainView,
    FindingView,
    ReleaseView,
)
from fabric.cli import draining
from fabric.cli.local import brake_of
from tests.unit.cli.api_server import RUNNING, THEN, ApiServer, Reply, brake, problem
from tests.unit.cli.conftest import Fabric
from tests.unit.cli.test_main import COMMAND
from tests.waiting import wait_until

PATH = "/v1/nodes/r1c03/drain"
ID = RUNNING.id
DRAIN = ("drain", "r1c03")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "POLL_S", 0.01)


def drain(staying: int = 0, leaving: int = 0, stopping: int = 0, **changes: Any) -> DrainView:
    row = DrainedDeployment(
        id=ID,
        name="web",
        state="running",
        final=False,
        exclusive=False,
        staying=staying,
        leaving=leaving,
        stopping=stopping,
        lacking=0,
        reason="",
        reasons=[],
    )
    left = staying + leaving + stopping
    values: dict[str, Any] = {
        "node": "r1c03",
        "since": THEN,
        "deadline": "2096-01-02T03:04:05.678Z",
        "overdue": False,
        "left": left,
        "done": left == 0,
        "deployments": [row] if left else [],
    }
    return DrainView(**{**values, **changes})


def test_drain_begins_and_says_what_happens(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", PATH, Reply(drain(staying=3, leaving=1), 202))
    ended = fabric(*DRAIN, "--deadline", "10m")
    assert ended.code == 0
    assert [request.json for request in api.requests] == [{"deadline_s": 600}]
    for part in ("4 instances of 1 deployment to", "2096-01-02", ID, "starts elsewhere first"):
        assert part in ended.out
    assert "fabric uncordon r1c03" in ended.err


def test_a_drain_that_runs_keeps_its_deadline_unless_another_is_given(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", PATH, drain(staying=1))
    assert fabric(*DRAIN).code == 0
    assert {request.method for request in api.requests} == {"GET"}
    api.on("GET", PATH, problem(404, "not-found", "There is no drain."))
    api.on("POST", PATH, Reply(drain(staying=1), 202))
    assert fabric(*DRAIN).code == 0
    assert api.requests[-1].json == {}, "the API's default deadline holds"


def test_monitor_shows_progress_until_the_node_is_empty(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", PATH, drain(staying=3), drain(staying=1, leaving=2), drain(staying=1, leaving=2), drain())
    api.on("GET", f"/v1/deployments/{ID}", RUNNING)
    ended = fabric(*DRAIN, "--monitor")
    assert ended.code == 0
    assert "r1c03 is empty" in ended.out
    assert ended.err.splitlines() == [
        "r1c03: 3 instances left (3 wait for another place)",
        "r1c03: 3 instances left (1 wait for another place, 2 start elsewhere, or run there)",
    ]


def test_what_stops_before_it_starts_elsewhere_is_waited_for(api: ApiServer, fabric: Fabric) -> None:
    """While it is nowhere it is lacking; that is no shortfall before its deployment is at rest."""
    stopped = RUNNING.model_copy(update={"state": "starting", "final": False, "lacking": 2, "placed": 48})
    api.on("GET", PATH, drain(staying=2), drain(stopping=2), drain())
    api.on("GET", f"/v1/deployments/{ID}", stopped, stopped, RUNNING)
    ended = fabric(*DRAIN, "--monitor")
    assert (ended.code, ended.out) == (0, "r1c03 is empty; it gets nothing new until: fabric uncordon r1c03\n")
    assert ended.err.splitlines()[1:] == [
        "r1c03: 2 instances left (2 are being stopped)",
        f"r1c03 is empty; {ID} (web) is starting",
    ]


def test_what_was_stopped_without_another_place_is_2(api: ApiServer, fabric: Fabric) -> None:
    lacks = RUNNING.model_copy(update={"lacking": 1, "placed": 49, "reason": "no room", "reasons": ["rack r1: full"]})
    api.on("GET", PATH, drain(staying=1, overdue=True), drain(overdue=True))
    api.on("GET", f"/v1/deployments/{ID}", lacks)
    ended = fabric(*DRAIN, "--monitor")
    assert ended.code == 2
    assert "the deadline has passed" in ended.err
    assert f"{ID} (web) lacks 1 of 50: no room\n  rack r1: full\n" in ended.out
    api.on("GET", PATH, drain(staying=1, overdue=True), drain(overdue=True))
    as_json = fabric(*DRAIN, "--monitor", "--format", "json")
    assert as_json.code == 2
    assert json.loads(as_json.out)["done"] is True


def test_monitor_gives_up_in_time_and_the_drain_goes_on(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", PATH, drain(staying=1))
    ended = fabric(*DRAIN, "--monitor", "--timeout", "0.05")
    assert ended.code == 1
    assert "1 instance after 0.05 s" in ended.err.splitlines()[-1]


def test_a_drain_that_somebody_ends_is_an_error(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", PATH, drain(staying=1), problem(404, "not-found", "There is no drain."))
    ended = fabric(*DRAIN, "--monitor")
    assert ended.code == 1
    assert "uncordoned" in ended.err.splitlines()[-1]


def test_an_api_that_goes_away_is_waited_for(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", PATH, drain(staying=1), None, drain())
    api.on("GET", f"/v1/deployments/{ID}", RUNNING)
    ended = fabric(*DRAIN, "--monitor")
    assert ended.code == 0
    assert "trying again" in ended.err


def test_ctrl_c_stops_watching_not_draining(api: ApiServer, tmp_path: Path) -> None:
    api.on("GET", PATH, drain(staying=1))
    with open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen((*COMMAND, "--api", api.url, *DRAIN, "--monitor"), stderr=err)
    wait_until(lambda: len(api.requests) > 1, what="it watches")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    told = (tmp_path / "err").read_text()
    assert "drained on: fabric drain r1c03 --monitor" in told
    assert "Traceback" not in told
    assert {request.method for request in api.requests} == {"GET"}


def test_the_brake_says_why_which_and_since_when(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/v1/brake", brake("r1c07", on=True), brake())
    shown = fabric("brake")
    assert shown.code == 0
    for part in ("the brake is on: so many", f"since {THEN}", "r1c07", "not yet", "yes"):
        assert part in shown.out
    assert fabric("brake").out == "the brake is off\n"


def test_the_status_says_that_the_brake_is_on_if_the_api_says_so(api: ApiServer) -> None:
    api.on("GET", "/v1/brake", brake("r1c07", on=True), brake())
    assert brake_of(api.url) == brake("r1c07", on=True).detail
    assert brake_of(api.url) == ""
    assert brake_of("http://127.0.0.1:1") == ""


def test_releasing_the_brake_names_the_nodes(api: ApiServer, fabric: Fabric) -> None:
    api.on("POST", "/v1/brake/release", ReleaseView(released=["r1c07"], brake=brake()))
    assert fabric("brake", "release").out == "replaced from now on: r1c07\n"
    api.on("POST", "/v1/brake/release", ReleaseView(released=[], brake=brake("r1c07", on=True)))
    again = fabric("brake", "release").out
    assert "no lost node waits" in again
    assert "brake is on" in again
    assert fabric("brake", "release", "--format", "json").code == 0
    assert fabric("brake", "relese").code == 64


# --- audit -----------------------------------------------------------------------------------------------------------


def report(*findings: FindingView, **changes: Any) -> AuditView:
    values: dict[str, Any] = {
        "clean": not findings,
        "complete": True,
        "brake": "",
        "repairing": False,
        "findings": list(findings),
        "omitted": 0,
        "left": sum(not one.repaired for one in findings),
        "deployments": 3,
        "nodes": 8,
        "instances": 20,
        "images": 1,
        "looks": 2,
        "took_ms": 3456,
    }
    return AuditView(**{**values, **changes})


def finding(repaired: bool = False, **changes: Any) -> FindingView:
    values: dict[str, Any] = {
        "kind": "orphan",
        "subject": f"{ID} ordinals 3-4",
        "where": "r1/r1c03",
        "detail": "there is no such deployment",
        "repair": "the node is told",
        "repaired": repaired,
    }
    return FindingView(**{**values, **changes})


def steps(*lines: AuditStep) -> Reply:
    return Reply("".join(f"{line.model_dump_json()}\n" for line in lines).encode())


ASKING = AuditStep(stage="asking the nodes", done=1, total=3)


@pytest.mark.parametrize(
    ("found", "arguments", "code", "said"),
    [
        (report(), (), 0, "all fits together"),
        (report(), ("--repair",), 0, "all fits together"),
        (report(finding()), (), 3, "found: 1 orphan"),
        (report(finding(repaired=True)), ("--repair",), 4, "repaired: 1 orphan"),
        (report(finding(repaired=True), finding()), ("--repair",), 1, "1 of 2 are not repaired"),
        (report(finding(kind="unreachable", repair=""), complete=False), (), 3, "did not answer was not compared"),
    ],
)
def test_the_audit_ends_by_what_it_found(
    api: ApiServer, fabric: Fabric, found: AuditView, arguments: tuple[str, ...], code: int, said: str
) -> None:
    method = "POST" if arguments else "GET"
    api.on(method, "/v1/audit", steps(ASKING, AuditStep(stage="done", report=found)))
    ended = fabric("audit", *arguments)
    assert ended.code == code
    assert said in ended.out
    assert "compared 3 deployments, 8 nodes, 20 instances and 1 image in 3.46 s" in ended.out
    assert "asking the nodes (1 of 3)" in ended.err
    as_json = fabric("audit", *arguments, "--format", "json")
    assert as_json.code == code
    assert json.loads(as_json.out) == json.loads(found.model_dump_json())


def test_a_finding_says_what_where_why_and_what_a_repair_does(api: ApiServer, fabric: Fabric) -> None:
    api.on("GET", "/v1/audit", steps(AuditStep(stage="done", report=report(finding(), omitted=7))))
    ended = fabric("audit")
    for part in ("orphan", f"{ID} ordinals 3-4", "r1/r1c03", "no such deployment", "the node is told", "and 7 more"):
        assert part in ended.out
    assert "fabric audit --repair" in ended.err


def test_what_nobody_here_can_repair_says_what_to_do(api: ApiServer, fabric: Fabric) -> None:
    path = "/deployments/d-1"
    bad = finding(kind="unreadable", subject=path, where=path, detail=f"{path}: expected JSON", repair="")
    api.on("POST", "/v1/audit", steps(AuditStep(stage="done", report=report(bad))))
    ended = fabric("audit", "--repair")
    assert ended.code == 1
    assert "by hand: look at the znode" in ended.out
    assert ended.out.count(path) == 1


def test_the_audit_says_that_it_does_not_look_behind_the_brake(api: ApiServer, fabric: Fabric) -> None:
    """Half of the instances may be dead then, and all the rest fits together."""
    api.on("GET", "/v1/audit", steps(AuditStep(stage="done", report=report(brake="the brake is on: 6 of 8"))))
    ended = fabric("audit")
    assert ended.code == 0
    assert ended.out.splitlines()[1:] == [
        "what ran on lost nodes is not compared: the brake is on: 6 of 8",
        "all else fits together",
    ]


@pytest.mark.parametrize(
    "reply",
    [
        steps(ASKING, AuditStep(stage="failed", problem="No compute node answered.")),
        steps(ASKING),
        problem(409, "conflict", "An audit is running at this API already."),
        None,
    ],
)
def test_an_audit_that_was_not_finished_is_an_error(api: ApiServer, fabric: Fabric, reply: Reply | None) -> None:
    api.on("GET", "/v1/audit", reply)
    ended = fabric("audit")
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err.splitlines()[-1].startswith("fabric: ")
