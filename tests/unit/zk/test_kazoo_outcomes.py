"""What kazoo returns of a Multi, in the words of the port: which of its operations failed, or that its session is over.

A server that no longer knows the session, or that has given it to another server, says so of each operation of a Multi
by itself; that is no conflict, and nobody who looks for one may take it for that.
"""

from __future__ import annotations

import pytest
from kazoo import exceptions as ke

from zk.kazoo_tree import _outcome
from zk.tree import BadVersion, Check, ConnectionLost, Delete, Multi, MultiFailed, SessionExpired

OPS = Multi((Check("/a", 1), Delete("/b", 2)))


def outcome(*results: Exception | bool) -> object:
    return _outcome(OPS, "", list(results))


def test_the_operation_that_failed_is_told() -> None:
    failed = outcome(ke.RolledBackError(), ke.BadVersionError())
    assert isinstance(failed, MultiFailed)
    assert (failed.index, type(failed.cause)) == (1, BadVersion)


@pytest.mark.parametrize("error", [ke.SessionExpiredError, ke.SessionMovedError, ke.ConnectionLoss])
def test_the_end_of_the_session_is_no_failed_operation(error: type[Exception]) -> None:
    told = outcome(error(), ke.RuntimeInconsistency())
    assert isinstance(told, SessionExpired if error is ke.SessionExpiredError else ConnectionLost)
