"""What a network with faults does, whether it is of namespaces or of proxies."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fabric.local.network import NetworkError
from fabric.net.namespaces import why_not
from fabric.net.rules import Rule, Verdict, cut
from tests.contract.network_world import World, world

pytestmark = pytest.mark.timeout(60)
A, B, C = "r1c01", "r1c02", "r2c01"
SOON_S = 0.3
"""In which nothing is heard that is held."""


@pytest.fixture(scope="module", params=["namespaces", "proxy"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if request.param == "namespaces" and (reason := why_not()):
        pytest.skip(reason)
    with world(request.param, tmp_path_factory.mktemp("network")) as made:
        yield made


@pytest.fixture
def net(shared: World) -> Iterator[World]:
    yield shared
    shared.rules()


def one_way(source: str, target: str, **verdict: float) -> Rule:
    return Rule((source,), (target,), Verdict(**verdict))  # type: ignore[arg-type]


def test_without_rules_all_arrives_as_it_was_sent(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    text = "".join(f"{number:07d}\n" for number in range(12_000))
    for start in range(0, len(text), 24_000):
        one.send(mine, text[start : start + 24_000])
        assert other.hear(theirs, 24_000) == text[start : start + 24_000]
    other.send(theirs, "and back")
    assert one.hear(mine, 8) == "and back"


def test_behind_a_cut_nothing_is_heard_and_all_of_it_after(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    net.rules(*cut((A,), (B,)))
    one.send(mine, "from a")
    other.send(theirs, "from b")
    assert (other.hear(theirs, 6, SOON_S), one.hear(mine, 6, SOON_S)) == ("", "")
    net.rules()
    assert (other.hear(theirs, 6), one.hear(mine, 6)) == ("from a", "from b")


def test_a_cut_is_between_those_it_names(net: World) -> None:
    ab, ac = net.pair(A, B), net.pair(A, C)
    net.rules(*cut(("r1",), ("r2",)))
    for one, mine, _, _ in (ab, ac):
        one.send(mine, "x")
    assert ab[2].hear(ab[3], 1) == "x"
    assert ac[2].hear(ac[3], 1, SOON_S) == ""


def test_one_way_loss_leaves_the_other_way(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    net.rules(one_way(A, B, drop=1))
    one.send(mine, "lost")
    other.send(theirs, "heard")
    assert one.hear(mine, 5) == "heard"
    assert other.hear(theirs, 4, SOON_S) == ""
    net.rules()
    assert other.hear(theirs, 4) == "lost"


@pytest.mark.parametrize(("source", "target"), [(A, B), (B, A)])
def test_a_connection_is_not_made_while_either_way_is_lost(net: World, source: str, target: str) -> None:
    """To whoever connects it may look as if it was."""
    one, other = net.parties[A], net.parties[B]
    net.rules(one_way(source, target, drop=1))
    mine = one.connect(other)
    assert not other.called(SOON_S)
    net.rules()
    one.send(mine, "after")
    assert other.hear(other.accept(), 5) == "after"


def test_the_death_of_a_peer_is_not_heard_behind_a_cut(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    net.rules(*cut((A,), (B,)))
    one.close(mine)
    assert other.hear(theirs, 1, SOON_S) == ""
    net.rules()
    assert other.hear(theirs, 1) == "END"


@pytest.mark.parametrize("verdict", [{"delay_ms": 250}, {"delay_ms": 200, "jitter_ms": 300}])
def test_delay_and_jitter(net: World, verdict: dict[str, float]) -> None:
    one, mine, other, theirs = net.pair(A, B)
    ac = net.pair(A, C)
    net.rules(one_way(A, B, **verdict))
    began = time.monotonic()
    one.send(mine, "late")
    ac[0].send(ac[1], "soon")
    assert ac[2].hear(ac[3], 4) == "soon"
    soon_s = time.monotonic() - began
    assert other.hear(theirs, 4) == "late"
    assert time.monotonic() - began >= verdict["delay_ms"] / 1000 > soon_s


def test_a_narrow_link_takes_its_time(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    net.rules(one_way(A, B, bytes_per_s=100_000))
    began = time.monotonic()
    one.send(mine, "x" * 60_000)
    assert len(other.hear(theirs, 60_000)) == 60_000
    assert time.monotonic() - began > 0.4


def test_what_is_lost_is_sent_again(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    net.rules(one_way(A, B, drop=0.3))
    for number in range(5):
        one.send(mine, f"{number}")
    assert other.hear(theirs, 5) == "01234"


def test_rules_are_replaced_as_a_whole(net: World) -> None:
    ab, ac = net.pair(A, B), net.pair(A, C)
    net.rules(*cut((A,), (B,)))
    net.rules(*cut((A,), (C,)))
    for one, mine, _, _ in (ab, ac):
        one.send(mine, "x")
    assert ab[2].hear(ab[3], 1) == "x"
    assert ac[2].hear(ac[3], 1, SOON_S) == ""


def test_rules_about_strangers_are_refused_and_the_others_hold_on(net: World) -> None:
    one, mine, other, theirs = net.pair(A, B)
    net.rules(*cut((A,), (B,)))
    with pytest.raises(NetworkError, match=r"expected an endpoint or a group of this fabric .* found 'r9c01'"):
        net.rules(*cut((A,), ("r9c01",)))
    one.send(mine, "x")
    assert other.hear(theirs, 1, SOON_S) == ""


def test_rules_outlive_the_process_that_obeys_them(net: World) -> None:
    net.rules(*cut((A,), (B,)))
    net.restart_helpers()
    one, other = net.parties[A], net.parties[B]
    mine = one.connect(other)
    ac = net.pair(A, C)
    ac[0].send(ac[1], "x")
    assert ac[2].hear(ac[3], 1) == "x"
    net.rules()
    one.send(mine, "after")
    assert other.hear(other.accept(), 5) == "after"
