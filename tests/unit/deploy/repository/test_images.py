"""image://name as code and as configuration: real chunk servers, a real bus, ZooKeeper in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import zmq

from deploy.brp import Reply
from deploy.documents import Reference
from deploy.matching import prints
from deploy.repository import images
from deploy.repository.digests import digest_of
from deploy.repository.images import ImageAccess
from deploy.resolved import Unresolved
from fabric.messages import AnyMessage, FindHolders, HolderRef, Holders
from fabric.records import Image as Record
from fabric.records import Leader, encode
from fabric.runtime.bus import Bus, SocketContext
from fabric.wire import Codec
from tests.unit.deploy.repository.test_resolver import replying
from tests.unit.deploy.repository.world import LEAF, Stack, run, scripted, stack
from tests.unit.images.content import Image, image_of, random_image
from tests.unit.images.peers import Peers, Served, peers_in
from tests.unit.runtime.until import until
from zk import paths
from zk.connect import Unreachable
from zk.memory import Ensemble
from zk.memory_session import MemoryTree
from zk.tree import Create, Delete, SessionState, Tree

CODE = random_image(300_000)
CONFIGURATION = image_of(LEAF)
KEY = b"k" * 32


@dataclass(slots=True)
class Fabric:
    """A storage rack with a leader that says what `answers` says, and a ZooKeeper."""

    ensemble: Ensemble
    tree: MemoryTree
    peers: Peers
    leader: Bus[AnyMessage]
    context: SocketContext
    asked: list[FindHolders] = field(default_factory=list)
    holders: list[Served] = field(default_factory=list)
    answers: Callable[[FindHolders], Holders | None] = lambda ask: None

    def publish(self, name: str, image: Image, kind: str = "executable") -> None:
        record = Record(name, image.digest, len(image.data), "tar" if kind == "tar" else "executable", (), 0)
        self.ensemble.carry_out(Create(paths.image(name), encode(record)))

    def hold(self, *images: Image) -> None:
        self.holders.append(self.peers.serve(*images))

    def hear(self, sender: str, message: AnyMessage) -> None:
        if isinstance(message, FindHolders):
            self.asked.append(message)
            answer = self.answers(message)
            if answer is not None:
                self.leader.send(sender, answer)

    def known(self, ask: FindHolders) -> Holders:
        chosen = tuple(
            HolderRef(one.holder.node, one.holder.rack, one.holder.endpoint)
            for one in self.holders
            if one.holder.node not in ask.exclude
        )
        return Holders(ask.call, ask.digest, True, chosen, tuple(ref.node for ref in chosen), (), 0)


@asynccontextmanager
async def fabric(folder: Path) -> AsyncIterator[Fabric]:
    loop = asyncio.get_running_loop()
    ensemble = Ensemble(lambda after_s, callback: loop.call_later(after_s, callback), lambda: 0)
    tree = MemoryTree(ensemble, delay=lambda: 0.0)
    tree.open()
    context: SocketContext = zmq.Context()
    with peers_in(folder / "stores") as peers:
        heard: list[Fabric] = []
        bus: Bus[AnyMessage] = Bus(
            context, Codec(KEY), "1" * 32, on_message=lambda sender, message: heard[0].hear(sender, message)
        )
        found = Fabric(ensemble, tree, peers, bus, context)
        found.answers = found.known
        heard.append(found)
        rack = Leader("s1", "r1", "1" * 32, bus.address)
        ensemble.carry_out(Create(paths.leader("storage", "r1"), encode(rack)))
        try:
            await until(lambda: tree.state is SessionState.CONNECTED, what="a session")
            yield found
        finally:
            bus.close()
            tree.close()
            context.term()


@asynccontextmanager
async def with_images(folder: Path, here: Fabric) -> AsyncIterator[Stack]:
    async def tree() -> Tree:
        return here.tree

    async with stack(folder / "cache", images=ImageAccess(tree, KEY, here.context)) as all:
        yield all


def test_code_and_configuration_come_from_the_fabrics_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FRESH_S", 60.0)

    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.hold(CODE, CONFIGURATION)
            here.hold(CODE, CONFIGURATION)
            here.publish("agent", CODE, "tar")
            here.publish("settings", CONFIGURATION)
            refs = (Reference("image://agent"),), (Reference("image://settings"),)
            async with scripted(replying(lambda path: Reply("all", path, refs[0], managent=refs[1]))) as repository:
                first = await all.resolve("/a", repository.url)
                assert first.code[0].file.read_bytes() == CODE.data
                assert (first.code[0].type, first.code[0].name) == ("tar", "agent")
                assert first.managent.env == {"A": "1"}
                assert first.prints == prints([CODE.digest], [], [digest_of(LEAF)])
                reads = here.tree.operations["get"]
                for n in range(20):
                    assert (await all.resolve(f"/n{n}", repository.url)).prints == first.prints
                assert here.tree.operations["get"] == reads, "records are kept for a while"
                assert len(here.asked) == 2, "one search an image"
                assert await all.fetcher.code_digest(refs[0][0]) == CODE.digest

    run(main())


def test_who_only_plans_reads_the_record_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.publish("agent", CODE)
            assert await all.fetcher.code_digest(Reference("image://agent")) == CODE.digest
            assert here.asked == []

    run(main())


def test_an_image_that_is_pushed_anew_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FRESH_S", 0.0)
    other = random_image(50_000, seed=2)

    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.hold(CODE, other)
            here.publish("agent", CODE)
            first = await all.fetcher.code(Reference("image://agent"))
            here.ensemble.carry_out(Delete(paths.image("agent")))
            here.publish("agent", other)
            second = await all.fetcher.code(Reference("image://agent"))
            assert (first.digest, second.digest) == (CODE.digest, other.digest)
            assert second.content == digest_of(other.data)

    run(main())


def test_a_holder_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.hold(CODE)
            here.holders[0].server.stop()
            here.publish("agent", CODE)

            def more(ask: FindHolders) -> Holders:
                if len(here.asked) == 2:
                    here.hold(CODE)
                return here.known(ask)

            here.answers = more
            assert (await all.fetcher.code(Reference("image://agent"))).content == digest_of(CODE.data)

    run(main())


def test_a_wrong_digest_of_the_content_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.hold(CODE)
            here.publish("agent", CODE)
            good = Reference("image://agent", digest_of(CODE.data))
            assert (await all.fetcher.code(good)).digest == CODE.digest
            with pytest.raises(Unresolved, match=f"image://agent: expected blake3:0+, found {digest_of(CODE.data)}"):
                await all.fetcher.code(Reference("image://agent", "blake3:" + "0" * 64))
            left = {path.name for path in (tmp_path / "cache").iterdir()}
            assert left == {"lock", digest_of(CODE.data).removeprefix("blake3:")}

    run(main())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda known: None, "s1, a storage leader, did not answer"),
        (lambda known: msgspec.structs.replace(known, leads=False), "s1 leads no more"),
        (lambda known: msgspec.structs.replace(known, chosen=()), "no storage agent has a whole copy"),
    ],
    ids=["silent", "no leader", "nobody"],
)
def test_nobody_to_get_it_from_is_told(
    tmp_path: Path, answer: Callable[[Holders], Holders | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "FIND_TRIES", 2)
    monkeypatch.setattr(images, "ANSWER_WAIT_S", 0.1)

    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.publish("agent", CODE)
            here.answers = lambda ask: answer(here.known(ask))
            with pytest.raises(Unresolved) as error:
                await all.fetcher._code(Reference("image://agent"))
            assert str(error.value) == f"image://agent: expected to find who holds {CODE.digest}, found: {said}"
            assert error.value.again
            assert [ask.anew for ask in here.asked] == [False, True]

    run(main())


def test_no_leader_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FIND_TRIES", 1)

    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.publish("agent", CODE)
            here.ensemble.carry_out(Delete(paths.leader("storage", "r1")))
            with pytest.raises(Unresolved, match="found: no storage rack has a leader"):
                await all.fetcher._code(Reference("image://agent"))

    run(main())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("image://gone", "image://gone: expected an image of this name in the fabric, found none"),
        ("image://", "expected image://name, found another form"),
        ("image://../leaders", "expected image://name, found another form"),
        ("image://..", "expected image://name, found another form"),
    ],
)
def test_a_name_of_no_image_is_told(tmp_path: Path, url: str, said: str) -> None:
    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            with pytest.raises(Unresolved) as error:
                await all.fetcher.code(Reference(url))
            assert said in str(error.value)
            assert not error.value.again

    run(main())


def test_a_configuration_that_is_too_large_is_not_brought(tmp_path: Path) -> None:
    async def main() -> None:
        async with fabric(tmp_path) as here, with_images(tmp_path, here) as all:
            here.publish("agent", CODE)
            with pytest.raises(Unresolved, match="expected at most 262,144 bytes, found 300,000"):
                await all.fetcher.document(Reference("image://agent"))
            assert here.asked == []

    run(main())


def test_without_zookeeper_it_may_pass(tmp_path: Path) -> None:
    async def tree() -> Tree:
        raise Unreachable("127.0.0.1:1", 1.0)

    async def main() -> None:
        async with stack(tmp_path / "cache", images=ImageAccess(tree, None, zmq.Context.instance())) as all:
            with pytest.raises(Unresolved, match=r"ZooKeeper: no ZooKeeper server answered") as error:
                await all.fetcher.code(Reference("image://agent"))
            assert error.value.again

    run(main())
