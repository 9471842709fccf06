"""The API as a process: how it starts, what it says when it can't, and how it ends."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fabric.api.settings import ApiConfig, ApiLimits
from tests.system.api_world import MAIN, problem, start_api
from tests.waiting import wait_until

pytestmark = pytest.mark.system
BODY = {"image": "web", "flavor": "Small", "count": 1}


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        api = start_api(tmp_path, "127.0.0.1:1", port=port)
        assert api.process.wait(10) == 1
    [line] = api.log().splitlines()
    assert line.startswith(f"fabric api: port {port} of 127.0.0.1 is in use")


def test_an_address_that_is_not_ours_is_one_clear_line(tmp_path: Path) -> None:
    api = start_api(tmp_path, "127.0.0.1:1", host="203.0.113.7")
    assert api.process.wait(10) == 1
    assert api.log().startswith("fabric api: can't listen at 203.0.113.7")


def test_without_zookeeper_it_waits_with_a_message_and_gives_up_in_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        hosts = f"127.0.0.1:{nobody.getsockname()[1]}"
    began = time.monotonic()
    api = start_api(tmp_path, hosts, limits=ApiLimits(connect_wait_s=3.0))
    assert api.process.wait(20) == 1
    assert 2.5 < time.monotonic() - began < 12
    assert f"waiting for ZooKeeper at {hosts}" in api.log()
    assert api.log().splitlines()[-1].startswith("fabric api: ")
    assert "Traceback" not in api.log()


def test_told_to_stop_while_it_waits_for_zookeeper(tmp_path: Path) -> None:
    api = start_api(tmp_path, "127.0.0.1:1", limits=ApiLimits(connect_wait_s=60.0))
    wait_until(lambda: "waiting for ZooKeeper" in api.log(), what="the message")
    assert api.end() == 0
    assert "Traceback" not in api.log()


def test_without_agents_it_is_alive_but_not_ready(tmp_path: Path, chroot: str) -> None:
    api = start_api(tmp_path, chroot)
    with httpx.Client(base_url=api.url, timeout=20, trust_env=False) as http:
        assert http.get("/healthz").status_code == 200
        assert int(problem(http.get("/readyz"), 503, "unavailable")["status"]) == 503
        assert http.get("/v1/nodes").json() == {"items": [], "next": None, "silent_racks": []}
        assert http.get("/v1/deployments").json()["items"] == []
        problem(http.post("/v1/deployments", json=BODY), 422, "unknown-image")
        answer = http.put("/v1/images/web", content=b"#!/bin/sh\n")
        assert "storage" in problem(answer, 503, "unavailable")["detail"]
        assert int(answer.headers["Retry-After"]) > 0
    assert api.end() == 0


def test_sigterm_ends_it_at_once_though_clients_are_waiting(tmp_path: Path, chroot: str) -> None:
    api = start_api(tmp_path, chroot)
    with (
        socket.create_connection(("127.0.0.1", httpx.URL(api.url).port or 0)) as idle,
        httpx.Client(base_url=api.url, timeout=20, trust_env=False) as http,
    ):
        assert http.get("/healthz").status_code == 200
        idle.sendall(b"GET /healthz HTTP/1.1\r\n")  # and never the rest
        began = time.monotonic()
        assert api.end() == 0
        assert time.monotonic() - began < 10
    assert "Traceback" not in api.log()


def test_it_ends_with_its_lifeline(tmp_path: Path, chroot: str) -> None:
    reader, writer = os.pipe()
    ready = tmp_path / "ready"
    config = ApiConfig(chroot, port=0, lifeline_fd=reader, ready_file=ready)
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(reader,)
    )
    os.close(reader)
    assert process.stdin is not None
    with process.stdin as stdin:
        pickle.dump(config, stdin)
    try:
        wait_until(ready.exists, 20, "the API to serve")
        os.close(writer)
        assert process.wait(10) != 0
    finally:
        process.kill()
        process.wait()


def test_two_signals_do_not_wait_for_what_is_being_answered(tmp_path: Path, chroot: str) -> None:
    api = start_api(tmp_path, chroot, limits=ApiLimits(stop_wait_s=60.0))
    with socket.create_connection(("127.0.0.1", httpx.URL(api.url).port or 0)) as slow:
        slow.sendall(b"PUT /v1/images/web HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        slow.sendall(b"POST")
        with httpx.Client(base_url=api.url, trust_env=False) as http:
            wait_until(
                lambda: "fabric_api_requests_in_flight 2.0" in http.get("/metrics").text, what="the push to begin"
            )
        api.process.send_signal(signal.SIGTERM)
        assert api.end(signal.SIGTERM) == 0
