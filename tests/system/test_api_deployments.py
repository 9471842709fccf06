"""Deployments over the API of a real fabric: made, repeated, refused, followed, scaled, explained, deleted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.system.api_world import SCRIPT, World, problem, world
from tests.waiting import wait_until

pytestmark = pytest.mark.system
PATH = "/v1/deployments"
BODY = {"image": "web", "flavor": "Small", "count": 2}
UNKNOWN = "d-00000000000"


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fabric"), zookeeper) as one:
        assert one.push("web", SCRIPT).status_code == 201
        yield one


def test_a_deployment_from_the_request_to_its_end(fabric: World) -> None:
    answer = fabric.http.post(PATH, json={**BODY, "count": 4, "name": "shop", "labels": {"team": "blue"}})
    assert answer.status_code == 202
    made = answer.json()
    assert answer.headers["Location"] == f"{PATH}/{made['id']}"
    assert answer.headers["X-Index"] == str(made["index"])
    assert (made["state"], made["final"], made["count"], made["min_count"]) == ("accepted", False, 4, 4)
    assert (made["name"], made["labels"], made["restart"]) == ("shop", {"team": "blue"}, "always")

    settled = fabric.settled(made["id"])
    assert (settled["state"], settled["placed"], settled["reasons"]) == ("running", 4, [])
    assert {share["rack"]: 0 for share in settled["plan"]} == {"r1": 0, "r2": 0}
    assert sum(share["count"] for share in settled["plan"]) == 4

    gone = fabric.delete(made["id"])
    assert (gone["state"], gone["gone"], gone["placed"]) == ("deleted", True, 0)
    assert fabric.delete(made["id"])["generation"] == gone["generation"], "deleting twice is deleting once"


def test_what_was_settled_is_traced_and_what_was_not_is_not(fabric: World) -> None:
    made = fabric.deploy()
    fabric.settled(made["id"])
    [run] = fabric.http.get(f"{PATH}/{made['id']}/trace").json()["runs"]
    assert run["outcome"] == "running"
    assert {span["step"] for span in run["spans"]} >= {1, 2, 3, 4, 5, 6}
    problem(fabric.http.get(f"{PATH}/{UNKNOWN}/trace"), 404, "not-found")
    fabric.delete(made["id"])


# --- idempotency -----------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_are_the_same_deployment(fabric: World) -> None:
    headers = {"Idempotency-Key": "one"}
    first = fabric.http.post(PATH, json=BODY, headers=headers)
    again = fabric.http.post(PATH, json={**BODY, "policy": "spread"}, headers=headers)  # the default, written out
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    other = problem(fabric.http.post(PATH, json={**BODY, "count": 3}, headers=headers), 422, "idempotency-key-reused")
    assert first.json()["id"] in other["detail"]
    assert fabric.http.post(PATH, json=BODY, headers={"Idempotency-Key": "two"}).json()["id"] != first.json()["id"]


def test_one_key_sent_many_times_at_once_makes_one_deployment(fabric: World) -> None:
    barrier = threading.Barrier(8)

    def send(_: int) -> str:
        with httpx.Client(base_url=str(fabric.http.base_url), timeout=30, trust_env=False) as http:
            barrier.wait(10)
            answer = http.post(PATH, json=BODY, headers={"Idempotency-Key": "crowd"})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(send, range(8)))) == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_key_has_bounds(fabric: World, key: str) -> None:
    problem(fabric.http.post(PATH, json=BODY, headers={"Idempotency-Key": key}), 400, "bad-header")


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "slug", "field", "expected"),
    [
        ({"count": 0}, "invalid", "count", "at least 1"),
        ({"count": -1}, "invalid", "count", "at least 1"),
        ({"count": 10_001}, "invalid", "count", "at most 10000"),
        ({"count": "2"}, "invalid", "count", "a whole number"),
        ({"min_count": 3}, "invalid", "min_count", "at most count, which is 2"),
        ({"image": "nothing"}, "unknown-image", "image", "one of web"),
        ({"flavor": "large"}, "unknown-flavor", "flavor", "one of Tiny, Small, Medium, Large, XLarge"),
        ({"colour": "red"}, "invalid", "colour", "no such field"),
    ],
)
def test_wrong_content_names_the_field(
    fabric: World, changes: dict[str, Any], slug: str, field: str, expected: str
) -> None:
    found = problem(fabric.http.post(PATH, json={**BODY, **changes}), 422, slug)
    assert [(one["field"], one["expected"]) for one in found["errors"]] == [(field, expected)]


@pytest.mark.parametrize(
    ("content", "media", "status", "slug"),
    [
        (b"{", "application/json", 400, "not-json"),
        (b"", "application/json", 400, "not-json"),
        (b"\xff\xfe\xfa", "application/json", 400, "not-json"),
        (b"[" * 100_000, "application/json", 400, "not-json"),
        (b'{"count": ' + b"9" * 5000 + b"}", "application/json", 400, "not-json"),
        (b"[]", "application/json", 422, "invalid"),
        (b"null", "application/json", 422, "invalid"),
        (b'{"image": "web", "flavor": "Small", "count": 1}', "text/plain", 415, "unsupported-media-type"),
        (b'{"name": "' + b"x" * (1 << 20) + b'"}', "application/json", 413, "too-large"),
    ],
    ids=["cut", "empty", "no-utf8", "deep", "huge-number", "list", "null", "text", "too-large"],
)
def test_bodies_that_are_none(fabric: World, content: bytes, media: str, status: int, slug: str) -> None:
    problem(fabric.http.post(PATH, content=content, headers={"Content-Type": media}), status, slug)


def test_a_body_of_unknown_length_is_cut_off_at_the_bound(fabric: World) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b" " * (1 << 16)

    answer = fabric.http.post(PATH, content=pieces(), headers={"Content-Type": "application/json"})
    problem(answer, 413, "too-large")


def test_unknown_paths_methods_and_ids(fabric: World) -> None:
    problem(fabric.http.get("/v1/nothing"), 404, "not-found")
    assert "GET, POST" in problem(fabric.http.put(PATH), 405, "method-not-allowed")["detail"]
    for name in (UNKNOWN, "..", "d-", "%00", "d-ABCDEFGH", "x" * 300):
        for answer in (fabric.http.get(f"{PATH}/{name}/trace"), fabric.http.delete(f"{PATH}/{name}%20")):
            assert answer.status_code in (404, 405), f"{name}: {answer.text}"
    problem(fabric.http.patch(f"{PATH}/{UNKNOWN}", json={"count": 1}), 404, "not-found")


def test_what_an_empty_fabric_could_not_hold_is_refused_with_the_reason_per_dimension(fabric: World) -> None:
    before = len(fabric.http.get(PATH, params={"limit": 1000}).json()["items"])
    found = problem(fabric.http.post(PATH, json={**BODY, "count": 1000}), 422, "does-not-fit")
    about = [line.split(":")[0] for line in found["reasons"]]
    assert about == ["vcpus", "memory_mib", "disk_mib", "rack r1", "rack r2", "would do"]
    limited = problem(fabric.http.post(PATH, json={**BODY, "count": 5, "max_per_node": 1}), 422, "does-not-fit")
    assert "would do: max_per_node 2" in limited["reasons"]
    assert limited["reasons"][0].startswith("max_per_node 1: 4 nodes")
    assert len(fabric.http.get(PATH, params={"limit": 1000}).json()["items"]) == before, "a refused one left a record"


def test_with_a_min_count_that_fits_a_larger_count_is_accepted(fabric: World) -> None:
    made = fabric.deploy(flavor="XLarge", count=5, min_count=2, max_per_node=1)
    settled = fabric.settled(made["id"])
    assert (settled["state"], settled["placed"], settled["count"]) == ("running", 4, 5)
    fabric.delete(made["id"])


# --- dry run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_placement_and_leaves_nothing(fabric: World) -> None:
    before = fabric.http.get("/v1/capacity", params={"flavor": "Medium"}).json()["fits"]
    count = len(fabric.http.get(PATH, params={"limit": 1000}).json()["items"])
    answer = fabric.http.post(PATH, params={"dry_run": "true"}, json={**BODY, "flavor": "Medium", "count": 6})
    assert answer.status_code == 200
    plan = answer.json()
    assert (plan["feasible"], plan["placed"], plan["reason"]) == (True, 6, "all 6 fit")
    assert sorted(rack["used"] for rack in plan["racks"]) == [3, 3]
    assert len(fabric.http.get(PATH, params={"limit": 1000}).json()["items"]) == count
    assert fabric.http.get("/v1/capacity", params={"flavor": "Medium"}).json()["fits"] == before


def test_a_dry_run_tells_exactly_why_not(fabric: World) -> None:
    answer = fabric.http.post(PATH, params={"dry_run": "true"}, json={**BODY, "flavor": "XLarge", "count": 50})
    plan = answer.json()
    assert (answer.status_code, plan["feasible"]) == (200, False)
    assert plan["reasons"][0].startswith("vcpus: XLarge needs 8, so 50 need 400; 4 nodes have 64 together")
    assert [line[:8] for line in plan["reasons"]].count("rack r1:") == 1
    problem(fabric.http.post(PATH, params={"dry_run": "true"}, json={**BODY, "image": "no"}), 422, "unknown-image")


# --- scale -----------------------------------------------------------------------------------------------------------


def test_scaling_up_and_down(fabric: World) -> None:
    made = fabric.deploy(count=2)
    fabric.settled(made["id"])
    up = fabric.http.patch(f"{PATH}/{made['id']}", json={"count": 4})
    assert (up.status_code, up.json()["generation"], up.json()["count"], up.json()["min_count"]) == (202, 2, 4, 4)
    settled = fabric.settled(made["id"])
    assert (settled["state"], settled["placed"]) == ("running", 4)
    same = fabric.http.patch(f"{PATH}/{made['id']}", json={"count": 4})
    assert (same.status_code, same.json()["index"]) == (202, settled["index"]), "scaling to what is, is no change"
    fabric.http.patch(f"{PATH}/{made['id']}", json={"count": 1})
    assert fabric.settled(made["id"])["placed"] == 1
    problem(fabric.http.patch(f"{PATH}/{made['id']}", json={"count": 1000}), 422, "does-not-fit")
    fabric.delete(made["id"])
    problem(fabric.http.patch(f"{PATH}/{made['id']}", json={"count": 2}), 409, "conflict")


def test_a_change_made_while_it_is_being_placed_is_carried_out(fabric: World) -> None:
    made = fabric.deploy(count=1)
    for count in (2, 3, 2):
        assert fabric.http.patch(f"{PATH}/{made['id']}", json={"count": count}).status_code == 202
    assert fabric.settled(made["id"])["placed"] == 2
    fabric.delete(made["id"])


# --- following -------------------------------------------------------------------------------------------------------


def test_a_long_poll_answers_with_the_change_or_when_its_wait_is_over(fabric: World) -> None:
    made = fabric.deploy()
    settled = fabric.settled(made["id"])
    at_once = fabric.http.get(f"{PATH}/{made['id']}", params={"index": settled["index"] - 1, "wait": "20s"})
    assert at_once.json()["index"] == settled["index"]
    timed_out = fabric.http.get(f"{PATH}/{made['id']}", params={"index": settled["index"], "wait": "100ms"})
    assert timed_out.json()["index"] == settled["index"]

    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(
            httpx.get,
            f"{fabric.http.base_url}{PATH}/{made['id']}",
            params={"index": settled["index"], "wait": "20s"},
            timeout=30,
            trust_env=False,
        )
        wait_until(lambda: "fabric_api_watchers 1.0" in fabric.http.get("/metrics").text, what="the poll to wait")
        fabric.http.delete(f"{PATH}/{made['id']}")
        changed = poll.result(5).json()
    assert changed["index"] > settled["index"]
    assert changed["gone"]


@pytest.mark.parametrize("wait", ["soon", "-1s", "1h", "301s", "9999999s"])
def test_a_wait_has_a_form_and_a_bound(fabric: World, wait: str) -> None:
    found = problem(fabric.http.get(f"{PATH}/{UNKNOWN}", params={"wait": wait, "index": 1}), 422, "invalid")
    assert found["errors"][0]["field"] == "wait"


def events(answer: httpx.Response) -> Iterator[dict[str, str]]:
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line and event:
            yield event
            event = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            event[name] = value


def told(fabric: World, deployment: str, **headers: str) -> list[dict[str, Any]]:
    """The records of all events of a stream, which must end by itself."""
    found: list[dict[str, Any]] = []
    with fabric.http.stream("GET", f"{PATH}/{deployment}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for event in events(answer):
            if event.get("event") == "deployment":
                found.append(json.loads(event["data"]))
                assert int(event["id"]) == found[-1]["index"]
    return found


def test_a_stream_tells_of_changes_until_the_deployment_is_at_rest(fabric: World) -> None:
    made = fabric.deploy()
    seen = told(fabric, made["id"])
    assert seen[-1]["final"]
    assert [one["index"] for one in seen] == sorted({one["index"] for one in seen})

    assert told(fabric, made["id"], **{"Last-Event-ID": str(made["index"])})[-1]["index"] == seen[-1]["index"]
    last = {"Last-Event-ID": str(seen[-1]["index"])}
    assert fabric.http.get(f"{PATH}/{made['id']}/events", headers=last).status_code == 204
    assert told(fabric, made["id"], **{"Last-Event-ID": "strange"})[-1]["final"]
    problem(fabric.http.get(f"{PATH}/{UNKNOWN}/events"), 404, "not-found")


def test_a_stream_that_follows_goes_on_past_rest(fabric: World) -> None:
    made = fabric.deploy()
    fabric.settled(made["id"])
    with fabric.http.stream("GET", f"{PATH}/{made['id']}/events", params={"follow": "true"}) as answer:
        stream = events(answer)
        first = next(one for one in stream if one.get("event") == "deployment")
        assert json.loads(first["data"])["final"]
        with httpx.Client(base_url=str(fabric.http.base_url), trust_env=False) as other:
            assert other.delete(f"{PATH}/{made['id']}").status_code == 202
        assert next(one for one in stream if json.loads(one["data"])["state"] == "deleted")


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_list_is_paged_and_in_the_order_of_creation(fabric: World) -> None:
    made = [fabric.deploy(flavor="Tiny")["id"] for _ in range(3)]
    everything = [one["id"] for one in fabric.http.get(PATH, params={"limit": 1000}).json()["items"]]
    assert everything == sorted(everything)
    assert set(made) <= set(everything)
    seen: list[str] = []
    after = ""
    while True:
        page = fabric.http.get(PATH, params={"limit": 2, "after": after}).json()
        seen.extend(one["id"] for one in page["items"])
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == everything
    problem(fabric.http.get(PATH, params={"limit": 0}), 422, "invalid")
    problem(fabric.http.get(PATH, params={"limit": "many"}), 422, "invalid")
    for one in made:
        fabric.delete(one)


def test_the_documentation_needs_no_other_host(fabric: World) -> None:
    page = fabric.http.get("/docs").text
    assert "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"):
        assert f"/docs/assets/{asset}" in page
        assert fabric.http.get(f"/docs/assets/{asset}").status_code == 200
    assert fabric.http.get("/openapi.json").json()["openapi"] == "3.0.3"
