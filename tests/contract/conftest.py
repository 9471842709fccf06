"""The trees that the contract suite runs against, and holders of images."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CONTAINERS
from tests.unit.images.peers import Peers, peers_in
from tests.zookeeper import memory_servers, memory_session, server_session, shaky_server_session

MakeTree = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["memory", "server", CONTAINERS])
def make_tree(request: pytest.FixtureRequest) -> MakeTree:
    """A factory of sessions on one and the same tree, which is empty but for the roots; with `shaky=True`, of
    ShakySessions. Another implementation of Tree joins the suite as another parameter here."""
    if request.param == "memory":
        servers = memory_servers()
        return lambda shaky=False, **options: memory_session(servers, **options)
    if request.param == "containers":
        hosts = f"{request.getfixturevalue('zookeeper_container')}/test-{uuid.uuid4().hex}"
    else:
        hosts = request.getfixturevalue("chroot")
    return lambda shaky=False, **options: (shaky_server_session if shaky else server_session)(hosts, **options)


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Peers]:
    """Holders of images."""
    with peers_in(tmp_path) as made:
        yield made
