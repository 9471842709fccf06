"""Fixtures: a real ZooKeeper server for the whole run, and for each test a chroot of its own on it."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.zookeeper import LOCAL, container_engine_trouble, installation, remove_chroot
from zk.server import Server, ask_status

TEST_ZK = "FABRIC_TEST_ZK"
IMAGE = os.environ.get("FABRIC_ZK_IMAGE", "zookeeper:3.9")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and all that they start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A connect string: that of FABRIC_TEST_ZK, else of a server that runs as long as the tests do."""
    if given := os.environ.get(TEST_ZK):
        yield given.rstrip("/")
        return
    with zookeeper_server(tmp_path_factory.mktemp("zookeeper")) as server:
        yield server.hosts


@pytest.fixture(scope="session")
def zookeeper_container() -> Iterator[str]:
    """The same, of a server in a container (image: FABRIC_ZK_IMAGE)."""
    if trouble := container_engine_trouble():
        pytest.skip(trouble)
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # one image to pull, not two
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(IMAGE).with_exposed_ports(2181)
    container = container.with_envs(
        ZOO_TICK_TIME="500", ZOO_4LW_COMMANDS_WHITELIST="srvr,ruok,mntr", ZOO_ADMINSERVER_ENABLED="false"
    )
    with container:
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(2181))
        host = LOCAL if host == "localhost" else host
        wait_until(lambda: ask_status(port, host), timeout_s=60, what=f"ZooKeeper in a container of {IMAGE}")
        yield f"{host}:{port}"


@pytest.fixture
def chroot(zookeeper: str) -> Iterator[str]:
    """A connect string with a chroot that no other test uses. It is made by whoever connects first."""
    hosts = f"{zookeeper}/test-{uuid.uuid4().hex}"
    yield hosts
    if os.environ.get(TEST_ZK):  # somebody else's server: leave nothing on it
        asyncio.run(remove_chroot(hosts))


def zookeeper_server(data_dir: Path) -> Server:
    """A server of the machine's ZooKeeper, not yet started; a plain failure when there is none."""
    try:
        return Server(installation(), data_dir)
    except AssertionError as nothing:
        pytest.fail(str(nothing), pytrace=False)
