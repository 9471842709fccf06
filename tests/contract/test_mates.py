"""Mates over real sockets: about one copy a rack leaves the holders, and no mate can do worse than cost time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fabric.images.fetch import FetchReport
from fabric.images.links import Arrived, Links
from fabric.images.mates import bits
from fabric.images.placing import Placer
from fabric.images.protocol import (
    Answer,
    Begin,
    Data,
    GetChunk,
    GetHave,
    GetMates,
    Have,
    Holder,
    Refused,
    Request,
    Underway,
    refused,
)
from fabric.images.tarwalk import Limits
from tests.unit.images.content import Image, image_of, random_image
from tests.unit.images.peers import Peers, Reaction, Served, answering
from tests.unit.images.rack import Node, Once, Rack
from tests.unit.images.test_archive import START, member, tar_of
from tests.waiting import wait_until

IMAGE = random_image(48 * 65536 + 99, chunk_bytes=65536)
CHUNKS = len(IMAGE.chunks)


@pytest.fixture
def rack(peers: Peers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rack]:
    monkeypatch.setattr("fabric.images.fetch.MIN_SHARED_BYTES", 1)
    with ExitStack() as stack:
        yield Rack(tmp_path, stack)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stalls is dropped soon."""
    monkeypatch.setattr("fabric.images.transfer.MATE_STALL_S", 0.3)
    monkeypatch.setattr("fabric.images.company.MATE_STALL_S", 0.3)
    monkeypatch.setattr("fabric.images.company.MEET_WAIT_S", 0.2)


def holders(peers: Peers, *images: Image) -> tuple[Served, Served]:
    return peers.serve(*images), peers.serve(*images)


def sent(served: tuple[Served, Served]) -> int:
    return sum(each.server.counters().chunks_out for each in served)


def introduce(peers: Peers, served: tuple[Served, Served], mate: Holder, image: Image = IMAGE) -> None:
    """As its own fetch would."""
    with Links() as links:
        for each in served:
            links.open(each.holder)
            links.send(each.holder.node, GetMates(id=1, digest=image.digest, mate=mate))
        found = 0
        while found < len(served):
            found += len(list(links.poll(1)))


def misbehaving(peers: Peers, react: Reaction, rack: str = "r1") -> Holder:
    made = peers.misbehave(react)
    return Holder(f"bad-{made.node}", rack, made.endpoint)


def says_it_has_all(chunk: Reaction) -> Reaction:
    def react(request: Request) -> tuple[Answer, bytes | None] | None:
        if isinstance(request, GetHave):
            return Have(id=request.id), bits([True] * CHUNKS)
        return chunk(request)

    return react


# -- together ----------------------------------------------------------------------------------------------------------


def test_nodes_of_a_rack_share_what_they_fetch(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    nodes = [rack.node(f"c{number}") for number in range(6)]
    at_once = [rack.begin(lambda node=node: node.fetch(IMAGE, [s.holder for s in served])) for node in nodes]
    reports = [one.result(60) for one in at_once]
    assert sent(served) < 2 * CHUNKS
    given = [node.server.counters().chunks_out for node in nodes]
    assert sum(given) > 4 * CHUNKS
    assert sum(number > 0 for number in given) > 3, "not one for all"
    assert all(report.dropped == [] for report in reports)


def test_racks_do_not_share(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    nodes = [rack.node(f"c{number}", f"r{number}") for number in range(3)]
    for one in [rack.begin(lambda node=node: node.fetch(IMAGE, [s.holder for s in served])) for node in nodes]:
        one.result(60)
    assert [node.server.counters().chunks_out for node in nodes] == [0, 0, 0]
    assert sent(served) >= 3 * CHUNKS


def test_who_comes_late_is_served_from_the_cache_of_a_mate(peers: Peers, rack: Rack) -> None:
    image = image_of(tar_of(START, member("data", IMAGE.data), member("other", b"o" * 90_000)), 65536)
    served = holders(peers, image)
    first, late = rack.node("c1", cache_bytes=1 << 24), rack.node("c2", cache_bytes=1 << 24)
    first.fetch(image, [s.holder for s in served])
    before = sent(served)
    report = late.fetch(image, [s.holder for s in served])
    assert set(report.bytes_by_holder) == {"c1"}
    assert sent(served) == before


def test_a_small_image_is_not_shared(peers: Peers, rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.fetch.MIN_SHARED_BYTES", len(IMAGE.data) + 1)
    served = holders(peers, IMAGE)
    for name in ("c1", "c2"):
        assert set(rack.node(name).fetch(IMAGE, [s.holder for s in served]).bytes_by_holder) <= {"s1", "s2"}


def test_two_images_at_once(peers: Peers, rack: Rack) -> None:
    other = random_image(30 * 65536, seed=2, chunk_bytes=65536)
    served = holders(peers, IMAGE, other)
    nodes = [rack.node(f"c{number}") for number in range(4)]
    at_once = [
        rack.begin(lambda node=node, image=image: node.fetch(image, [s.holder for s in served]))
        for node in nodes
        for image in (IMAGE, other)
    ]
    for one in at_once:
        one.result(60)
    assert sent(served) < 2 * (CHUNKS + len(other.chunks))


def test_with_all_holders_gone_mates_that_have_it_are_enough(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    first, late = rack.node("c1"), rack.node("c2")
    first.fetch(IMAGE, [s.holder for s in served])

    def go(done: int, total: int) -> None:
        if done:
            for each in served:
                each.server.stop()

    report = late.fetch(IMAGE, [s.holder for s in served], progress=go)
    assert report.bytes_by_holder == {"c1": IMAGE.manifest.size}


# -- mates that do worse -----------------------------------------------------------------------------------------------


def test_a_mate_that_lies_is_found_out(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    by_hash = {chunk.hash: bytes(chunk.data) for chunk in IMAGE.chunks}

    def lie(request: Request) -> tuple[Answer, bytes]:
        assert isinstance(request, GetChunk)
        data = by_hash[request.hash]
        return Data(id=request.id), data[:-1] + bytes([data[-1] ^ 1])

    liar = misbehaving(peers, says_it_has_all(lie))
    introduce(peers, served, liar)
    report = rack.node("c1").fetch(IMAGE, [s.holder for s in served])
    assert [(drop.node, drop.lied) for drop in report.dropped] == [(liar.node, True)]
    assert set(report.bytes_by_holder) == {"s1", "s2"}


@pytest.mark.usefixtures("impatient")
def test_a_mate_that_says_nothing_is_passed_over(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    mute = misbehaving(peers, lambda request: None)
    stalling = misbehaving(peers, says_it_has_all(lambda request: None))
    introduce(peers, served, mute)
    introduce(peers, served, stalling)
    report = rack.node("c1").fetch(IMAGE, [s.holder for s in served])
    assert stalling.node in {drop.node for drop in report.dropped}
    assert report.seconds < 5


@pytest.mark.usefixtures("impatient")
def test_a_mate_that_says_for_ever_that_it_waits_is_given_up(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    waiting = misbehaving(peers, says_it_has_all(lambda request: (Underway(id=request.id, done=0, total=0), None)))
    introduce(peers, served, waiting)
    report = rack.node("c1").fetch(IMAGE, [s.holder for s in served], stall_s=0.5)
    assert waiting.node in {drop.node for drop in report.dropped}
    assert report.seconds < 10


def test_a_mate_that_has_not_what_it_said_is_dropped(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    boaster = misbehaving(peers, says_it_has_all(lambda request: (refused(request.id, "not_found", "gone"), None)))
    introduce(peers, served, boaster)
    report = rack.node("c1").fetch(IMAGE, [s.holder for s in served])
    assert [(drop.node, drop.reason) for drop in report.dropped] == [(boaster.node, "refused (not_found): gone")]


def test_a_mate_that_dies_is_replaced_by_the_holders(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    dying, living = rack.node("c1"), rack.node("c2")
    dying.fetch(IMAGE, [s.holder for s in served])
    once = Once(IMAGE.manifest.size // 3, dying.server.stop)
    report = living.fetch(IMAGE, [s.holder for s in served], progress=once)
    assert [drop.node for drop in report.dropped] == ["c1"]
    assert report.bytes_by_holder["c1"] > 0
    assert {"s1", "s2"} & set(report.bytes_by_holder)


def test_an_agent_that_starts_again_is_found_at_its_new_endpoint(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    restarting, late = rack.node("c1"), rack.node("c2")
    restarting.fetch(IMAGE, [s.holder for s in served])
    restarting.server.stop()
    restarting.open()
    introduce(peers, served, restarting.here)
    before = sent(served)
    report = late.fetch(IMAGE, [s.holder for s in served])
    assert (report.bytes_by_holder, report.dropped) == ({"c1": IMAGE.manifest.size}, [])
    assert sent(served) == before


def test_a_mate_whose_cache_evicts_in_the_middle_gives_nothing_wrong(peers: Peers, rack: Rack) -> None:
    image = image_of(tar_of(START, member("data", IMAGE.data)), 65536)
    served = holders(peers, image)
    evicting, living = rack.node("c1", cache_bytes=6_000_000), rack.node("c2")
    evicting.fetch(image, [s.holder for s in served])
    cache = evicting.cache
    assert cache is not None
    once = Once(image.manifest.size // 3, lambda: cache.incoming("b3:" + 64 * "0", 5_000_000))
    report = living.fetch(image, [s.holder for s in served], progress=once)
    assert cache.images() == []
    assert [(drop.node, drop.lied) for drop in report.dropped] == [("c1", False)]
    assert "refused (not_found)" in report.dropped[0].reason


def test_a_fetch_that_fails_refuses_those_who_wait_for_it(peers: Peers, rack: Rack) -> None:
    """A node waits for its mate, whose fetch is cancelled before it had anything."""
    node, cancelled = rack.node("c1"), threading.Event()
    gives_no_chunk = answering(IMAGE, lambda number, data: None)
    stuck = peers.misbehave(lambda request: None if isinstance(request, GetMates) else gives_no_chunk(request))

    def fetch() -> FetchReport:
        return node.fetch(IMAGE, [stuck], cancelled=cancelled, stall_s=60)

    failing = rack.begin(fetch)
    wait_until(lambda: len(node.pieces) == 1, what="the fetch to know its manifest")
    with Links() as links:
        links.open(node.here)
        links.send("c1", GetChunk(id=1, hash=IMAGE.chunks[5].hash))
        cancelled.set()
        assert failing.exception(30) is not None
        answers: list[object] = []
        wait_until(lambda: answers.extend(links.poll(0.1)) or bool(answers), what="the waiting one to be answered")
    assert [type(one.answer) for one in answers if not isinstance(one.answer, Underway)] == [Refused]  # type: ignore[attr-defined]


def test_a_stranger_with_the_name_of_a_holder_changes_nothing(peers: Peers, rack: Rack) -> None:
    served = holders(peers, IMAGE)
    for name in ("s1", "c1"):
        introduce(peers, served, Holder(name, "r1", "tcp://127.0.0.1:1"))
    introduce(peers, served, Holder("bad", "r1", "not an endpoint"))
    report = rack.node("c1").fetch(IMAGE, [s.holder for s in served])
    assert set(report.bytes_by_holder) == {"s1", "s2"}
    assert {drop.node for drop in report.dropped} <= {"bad"}


def test_a_node_that_only_fetches_takes_no_pushes(peers: Peers, rack: Rack) -> None:
    node: Node = rack.node("c1")
    with Links() as links:
        links.open(node.here)
        links.send("c1", Begin(id=3, push="p"))
        found: list[object] = []
        wait_until(lambda: found.extend(links.poll(0.1)) or bool(found), what="an answer")
    assert isinstance(found[0].answer, Refused)  # type: ignore[attr-defined]


def test_no_more_than_so_many_wait_at_one_node(
    peers: Peers, rack: Rack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.images.parking.MAX_PARKED", 3)
    node = rack.node("c1")
    with (tmp_path / "partial").open("w+b") as file, Links() as links:
        placer = Placer(file.fileno(), None, IMAGE.manifest.size, IMAGE.manifest.chunk_bytes, Limits())
        node.pieces.begin(IMAGE.digest, IMAGE.manifest, placer.reader())
        links.open(node.here)
        for number in range(5):
            links.send("c1", GetChunk(id=number, hash=IMAGE.chunks[number].hash))
        refusals: list[int] = []

        def count() -> bool:
            answers = [one.answer for one in links.poll(0.1) if isinstance(one, Arrived)]
            refusals.extend(answer.id for answer in answers if isinstance(answer, Refused) and answer.code == "busy")
            return len(refusals) == 2

        wait_until(count, what="those beyond the bound to be refused")
        assert refusals == [3, 4]
