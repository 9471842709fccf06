"""A listing is true again after whatever happened to the connection."""

from __future__ import annotations

from fabric.effects import CallTree
from fabric.records import Lost, encode
from fabric.roles.listing import Listing
from fabric.roles.outbox import Outbox
from zk import paths
from zk import tree as zt

CONNECTED = zt.SessionChanged(zt.SessionState.CONNECTED, 1)
SUSPENDED = zt.SessionChanged(zt.SessionState.SUSPENDED, 1)


def got(version: int, accepted_ms: int = 0) -> zt.Got:
    return zt.Got(encode(Lost("n1", "r1", 1, accepted_ms)), zt.Stat(1, 1 + version, version, 0, 0, 0, 0))


def asked(out: Outbox) -> list[str]:
    return [effect.token for effect in out.take() if isinstance(effect, CallTree)]


def test_an_entry_whose_answer_was_lost_is_read_again_however_long_the_outage_was():
    """Its watch has fired, so nothing else would ever tell that it has changed."""
    out = Outbox()
    listing: Listing[Lost, Lost] = Listing(paths.LOST, Lost, lambda lost, stat: lost, "lost:", out)
    listing.start()
    listing.on_session(CONNECTED)
    listing.on_tree(0.0, "lost:", zt.Listed(("n1",)))
    listing.on_tree(0.0, "lost:n1", got(0))
    assert listing.complete
    listing.on_watch(paths.lost("n1"))
    listing.on_session(SUSPENDED)
    listing.on_tree(1.0, "lost:n1", zt.ConnectionLost(paths.lost("n1")))
    listing.tick(9.0)
    asked(out)
    listing.on_session(CONNECTED)
    assert asked(out) == ["lost:", "lost:n1"]
    listing.on_tree(10.0, "lost:", zt.Listed(("n1",)))
    assert not listing.complete
    listing.on_tree(10.0, "lost:n1", got(1, accepted_ms=5))
    assert listing.complete
    assert listing.entries["n1"].accepted_ms == 5
