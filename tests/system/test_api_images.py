"""Images over the API of a real fabric: pushed, checked, replaced, shared, refused, deleted; nothing half remains."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from blake3 import blake3

from fabric.api.contents import fence_of
from tests.system.api_world import SCRIPT, World, archive, in_tree, problem, world
from tests.waiting import wait_until
from zk.client import TreeClient

pytestmark = pytest.mark.system
MIB = 1 << 20


@pytest.fixture(scope="module")
def fabric(zookeeper: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("fabric"), zookeeper, compute=1, storage=2) as one:
        yield one


@pytest.fixture(autouse=True)
def cleared(fabric: World) -> Iterator[None]:
    """What a test leaves, because it failed in the middle, is not there for the next one."""
    yield
    for one in fabric.http.get("/v1/deployments").json()["items"]:
        if one["state"] != "deleted":
            fabric.http.delete(f"/v1/deployments/{one['id']}")
    for one in fabric.http.get("/v1/images").json()["items"]:
        fabric.http.delete(f"/v1/images/{one['name']}", params={"force": "true"})


def stored(fabric: World) -> int:
    """Bytes of chunks and manifests in all stores of the fabric."""
    return sum(
        file.stat().st_size
        for node in ("r1s1", "r1s2", "r2s1", "r2s2")
        for file in (fabric.folder / node).rglob("*")
        if file.is_file() and ("chunks" in file.parts or "manifests" in file.parts)
    )


def empty(fabric: World) -> None:
    """Waits until no store holds anything."""
    wait_until(lambda: stored(fabric) == 0, what="the stores to be empty")


def test_a_push_is_held_in_two_racks_when_it_is_acknowledged(fabric: World) -> None:
    content = archive(("entrypoint", SCRIPT, 0o755), ("blob", os.urandom(3 * MIB + 17), 0o644))
    answer = fabric.push("web", content)
    assert answer.status_code == 201
    assert answer.headers["Location"] == "/v1/images/web"
    pushed = answer.json()
    assert (pushed["size"], pushed["kind"]) == (len(content), "tar")
    now = fabric.http.get("/v1/images/web").json()
    assert now["holders"] == sorted(pushed["holders"])
    assert {holder[:2] for holder in now["holders"]} == {"r1", "r2"}
    assert (now["redundant"], pushed["redundant"]) == (True, None)
    assert [one["name"] for one in fabric.http.get("/v1/images").json()["items"]] == ["web"]
    assert fabric.http.delete("/v1/images/web").json()["freed_bytes"] >= 2 * len(content)
    empty(fabric)
    problem(fabric.http.get("/v1/images/web"), 404, "not-found")
    problem(fabric.http.delete("/v1/images/web"), 404, "not-found")


def test_one_executable_is_an_image(fabric: World) -> None:
    assert fabric.push("tool", SCRIPT).json()["kind"] == "executable"
    fabric.http.delete("/v1/images/tool")


def test_a_push_of_unknown_length_is_good(fabric: World) -> None:
    content = SCRIPT + os.urandom(2 * MIB)
    pieces = (content[start : start + 70_000] for start in range(0, len(content), 70_000))
    answer = fabric.http.put("/v1/images/stream", content=pieces)
    assert (answer.status_code, answer.json()["size"]) == (201, len(content))
    fabric.http.delete("/v1/images/stream")


@pytest.mark.parametrize("kind", ["sha256", "b3", "standard", "query"])
def test_a_digest_that_is_right(fabric: World, kind: str) -> None:
    digest = {
        "sha256": f"sha256:{hashlib.sha256(SCRIPT).hexdigest()}",
        "b3": f"b3:{blake3(SCRIPT).hexdigest()}",
        "standard": "sha-256=:" + base64.b64encode(hashlib.sha256(SCRIPT).digest()).decode() + ":",
        "query": f"sha256:{hashlib.sha256(SCRIPT).hexdigest()}",
    }[kind]
    if kind == "query":
        answer = fabric.http.put("/v1/images/tool", params={"digest": digest}, content=SCRIPT)
    else:
        answer = fabric.push("tool", SCRIPT, **{"Content-Digest": digest})
    assert answer.status_code == 201, answer.text
    assert answer.json()["content"].partition(":")[0] in ("sha256", "b3")
    fabric.http.delete("/v1/images/tool")


def test_wrong_content_is_refused_and_leaves_nothing(fabric: World) -> None:
    empty(fabric)
    good = ("entrypoint", SCRIPT, 0o755)
    for name, content, told in (
        ("empty", b"", "at least 1 byte"),
        ("text", b"hello, world", "expected a tar archive"),
        ("no-entry", archive(("other", SCRIPT, 0o755)), "entrypoint"),
        ("not-executable", archive(("entrypoint", SCRIPT, 0o644)), "without execute permission"),
        ("absolute", archive(good, ("/etc/passwd", b"x", 0o644)), "/etc/passwd"),
        ("outside", archive(good, ("../x", b"x", 0o644)), ".."),
        ("cut", archive(good, ("blob", b"x" * MIB, 0o644))[: MIB // 2], "cut off"),
    ):
        found = problem(fabric.push("bad", content), 422, "bad-image")
        assert told in found["detail"], f"{name}: {found['detail']}"
        assert found["detail"].startswith("image bad"), name
        problem(fabric.http.get("/v1/images/bad"), 404, "not-found")
    empty(fabric)


def test_a_wrong_digest_is_refused_and_leaves_nothing(fabric: World) -> None:
    digest = f"sha256:{'0' * 64}"
    found = problem(fabric.push("bad", SCRIPT, **{"Content-Digest": digest}), 422, "digest-mismatch")
    assert hashlib.sha256(SCRIPT).hexdigest() in found["detail"]
    problem(fabric.push("bad", SCRIPT, **{"Content-Digest": "sha256:no"}), 422, "invalid")
    empty(fabric)


def test_a_large_body_that_is_no_image_is_refused_before_it_is_all_sent(fabric: World) -> None:
    # What comes after the refusal is thrown away for `upload_drain_s` (2 s), and loopback carries some GiB by then:
    # the whole must be more than any machine sends in that time.
    sent, whole, piece = 0, 32 * 1024, b"\0x" * (MIB // 2)

    def pieces() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(whole):
            sent += 1
            yield piece

    with contextlib.suppress(httpx.TransportError):  # the client may meet the closed connection before the answer
        problem(fabric.http.put("/v1/images/bad", content=pieces()), 422, "bad-image")
    assert sent < whole
    empty(fabric)


@pytest.mark.parametrize("name", ["Web", "-web", "a%20b", "x" * 65])
def test_a_name_has_a_form(fabric: World, name: str) -> None:
    assert problem(fabric.push(name, SCRIPT), 422, "invalid")["errors"][0]["field"] == "name"


def test_a_push_that_is_cut_off_leaves_nothing(fabric: World) -> None:
    empty(fabric)
    url = fabric.http.base_url
    content = SCRIPT + os.urandom(3 * MIB)
    with socket.create_connection((url.host, url.port or 80)) as connection:
        head = f"PUT /v1/images/cut HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content) + 1}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: stored_or_open(fabric) > 0, what="something of it to be at a holder")
    wait_until(lambda: "fabric_api_pushes 0.0" in fabric.http.get("/metrics").text, what="the push to end")
    empty(fabric)
    wait_until(lambda: stored_or_open(fabric) == 0, what="the stores to have nothing half")
    problem(fabric.http.get("/v1/images/cut"), 404, "not-found")


def stored_or_open(fabric: World) -> int:
    """Also what belongs to pushes that are under way."""
    return sum(
        file.stat().st_size
        for node in ("r1s1", "r1s2", "r2s1", "r2s2")
        for file in (fabric.folder / node / "store").rglob("*")
        if file.is_file() and file.stat().st_size >= 4096
    )


def test_content_is_shared_between_names_and_freed_with_the_last(fabric: World) -> None:
    content = SCRIPT + os.urandom(MIB)
    one, two = fabric.push("one", content).json(), fabric.push("two", content).json()
    assert one["digest"] == two["digest"]
    first = fabric.http.delete("/v1/images/one").json()
    assert (first["freed_bytes"], first["shared_with"]) == (0, ["two"])
    assert len(fabric.http.get("/v1/images/two").json()["holders"]) >= 2
    assert fabric.http.delete("/v1/images/two").json()["freed_bytes"] >= 2 * len(content)
    empty(fabric)


def test_a_push_waits_while_the_same_content_is_being_dropped(fabric: World) -> None:
    digest = fabric.push("one", SCRIPT).json()["digest"]
    fence = fence_of(digest)

    async def raise_it(client: TreeClient) -> None:
        await client.create(fence)

    async def lower_it(client: TreeClient) -> None:
        await client.delete(fence)

    in_tree(fabric.hosts, raise_it)
    with ThreadPoolExecutor(1) as pool:
        url = f"{fabric.http.base_url}/v1/images/two"
        push = pool.submit(httpx.put, url, content=SCRIPT, trust_env=False, timeout=30)
        before = _multis(fabric)
        wait_until(lambda: _multis(fabric) > before + 1, what="it to try to write its record more than once")
        assert not push.done()
        problem(fabric.http.get("/v1/images/two"), 404, "not-found")
        in_tree(fabric.hosts, lower_it)
        assert push.result(10).status_code == 201
    fabric.http.delete("/v1/images/one")
    assert fabric.http.delete("/v1/images/two").json()["freed_bytes"] > 0
    empty(fabric)


def _multis(fabric: World) -> float:
    """Transactions that the API has sent."""
    text = fabric.http.get("/metrics").text
    return max(
        (float(line.split()[-1]) for line in text.splitlines() if 'operations_total{kind="multi"}' in line), default=0.0
    )


def test_replaced_content_is_dropped(fabric: World) -> None:
    fabric.push("web", SCRIPT + os.urandom(2 * MIB))
    small = fabric.push("web", SCRIPT).json()
    wait_until(lambda: stored(fabric) < MIB, what="the old content to be dropped")
    now = fabric.http.get("/v1/images/web").json()
    assert (now["digest"], now["holders"]) == (small["digest"], sorted(small["holders"]))
    assert len(now["holders"]) == 2
    fabric.http.delete("/v1/images/web")


def test_an_image_in_use_stays_unless_forced(fabric: World) -> None:
    fabric.push("used", SCRIPT)
    made = fabric.deploy(image="used")
    found = problem(fabric.http.delete("/v1/images/used"), 409, "conflict")
    assert made["id"] in found["reasons"][0]
    fabric.settled(made["id"])
    assert fabric.http.delete("/v1/images/used", params={"force": "true"}).status_code == 200
    problem(fabric.http.get("/v1/images/used"), 404, "not-found")
    fabric.delete(made["id"])
    empty(fabric)


def test_what_a_deployment_still_needs_is_kept_when_its_name_means_something_else(fabric: World) -> None:
    old = SCRIPT + b"# old\n" + os.urandom(MIB)
    fabric.push("web", old)
    made = fabric.deploy()
    fabric.settled(made["id"])
    fabric.push("web", SCRIPT)
    assert fabric.http.patch(f"/v1/deployments/{made['id']}", json={"count": 4}).status_code == 202
    assert fabric.settled(made["id"])["placed"] == 4, "the other node could not get the old content"
    fabric.delete(made["id"])
    wait_until(lambda: stored(fabric) < MIB, what="the old content to be dropped with its last deployment")
    fabric.http.delete("/v1/images/web")
    empty(fabric)
