"""The trees that the contract suite runs against."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import cast

import pytest

from tests.zookeeper import Session, kazoo_session, memory_servers, memory_session

MakeTree = Callable[..., AbstractAsyncContextManager[Session]]


@pytest.fixture(params=["memory", "server", "container"])
def make_tree(request: pytest.FixtureRequest) -> MakeTree:
    """A factory of sessions on one and the same tree, which is empty but for the roots. Another implementation of Tree
    joins the suite as another parameter here."""
    if request.param == "memory":
        return cast(MakeTree, partial(memory_session, memory_servers()))
    if request.param == "container":
        hosts = f"{request.getfixturevalue('zookeeper_container')}/test-{uuid.uuid4().hex}"
    else:
        hosts = request.getfixturevalue("chroot")
    return cast(MakeTree, partial(kazoo_session, hosts))
