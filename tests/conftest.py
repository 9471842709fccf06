"""Fixtures: a real ZooKeeper server for the whole run, and for each test a chroot of its own on it."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ensembles import Servers, container_engine_trouble, container_servers, process_servers
from tests.zookeeper import installation, remove_chroot
from zk.server import Server

TEST_ZK = "FABRIC_TEST_ZK"
CONTAINERS = pytest.param("containers", marks=pytest.mark.containers)
"""For fixtures that have this variant: `pytest -m containers` runs it alone."""

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
    with container_servers(size=1) as servers:
        yield servers.hosts


@pytest.fixture(scope="module", params=["processes", CONTAINERS])
def ensemble(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three servers, which tests may hurt and leave whole."""
    if request.param == "processes":
        with process_servers(tmp_path_factory.mktemp("ensemble")) as processes:
            yield processes
        return
    if trouble := container_engine_trouble():
        pytest.skip(trouble)
    with container_servers() as containers:
        yield containers


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
