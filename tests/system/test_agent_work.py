"""What a compute agent does with real instances and real holders: steps 7 to 9, restarts of the agent, stops."""

from __future__ import annotations

import asyncio
import io
import os
import random
import tarfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.commands import (
    Answer,
    Confirm,
    Describe,
    Described,
    DropImage,
    Dropped,
    HasImage,
    ImageHeld,
    InstanceView,
    LogText,
    Progress,
    ReadLog,
    Replicate,
    Replicating,
    Reserve,
    Stop,
)
from fabric.images.protocol import Holder
from fabric.images.push import Push
from fabric.records import Deployment, Member, Share, Spec, encode
from fabric.resources import Resources
from tests.system.agents import (
    CLAIM,
    QUICK,
    AgentFarm,
    Talker,
    agent_processes,
    read_members,
    registered,
    reserve,
    talk,
)
from tests.unit.runtime.until import until
from zk.client import TreeClient
from zk.session_tree import SessionTree

pytestmark = pytest.mark.system
SMALL = Resources(1, 1024, 1024)
WEB = "d-abcdef0123"

SCRIPT = """#!/bin/sh
echo "I am $FABRIC_INSTANCE on $FABRIC_NODE"
exec sleep 1000
"""


def an_image(script: str = SCRIPT, filler_bytes: int = 5_000_000) -> bytes:
    """A tar with an entry point and incompressible filler, several chunks long."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, mode in (
            ("entrypoint", script.encode(), 0o755),
            ("filler", random.Random(3).randbytes(filler_bytes), 0o644),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def push(image: bytes, holders: list[Member]) -> str:
    """Blocks; the digest."""
    pushing = Push([Holder(one.node, one.rack, one.data_endpoint) for one in holders])
    pushing.feed(image)
    return pushing.finish().digest


def spec(digest: str) -> Spec:
    return Spec("web", digest, "Small", SMALL, {"COLOUR": "blue"}, "always")


async def write_record(hosts: str, digest: str, ordinals: str) -> None:
    """The deployment's record as its coordinator leaves it, so that the agents' own checks find it in order."""
    record = Deployment(
        WEB, "web", spec(digest), 4, 4, "spread", 1, 1, state="running", settled=1, epoch=CLAIM, step=1,
        plan=(Share("n1", "r1", ordinals),),
    )  # fmt: skip
    tree = SessionTree(hosts)
    await tree.open(10)
    try:
        await TreeClient(tree).create(f"/deployments/{WEB}", encode(record))
    finally:
        await tree.close()


async def described(talker: Talker, address: str) -> list[InstanceView]:
    answer = await talker.ask(address, Describe("", 100))
    assert isinstance(answer, Described)
    return list(answer.instances)


async def eventually(
    ask: Callable[[], Awaitable[Answer]], good: Callable[[Answer], bool], what: str, timeout_s: float = 10
) -> Answer:
    deadline = time.monotonic() + timeout_s
    while True:
        answer = await ask()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain for {what}; last: {answer}"
        await asyncio.sleep(0.05)


async def all_running(talker: Talker, address: str, count: int) -> list[InstanceView]:
    views: list[InstanceView] = []

    def probe(answer: Answer) -> bool:
        assert isinstance(answer, Described)
        views[:] = answer.instances
        return [view.state for view in views] == ["running"] * count

    await eventually(lambda: talker.ask(address, Describe("", 100)), probe, f"{count} running instances")
    return views


async def run_four(talker: Talker, address: str, digest: str) -> list[InstanceView]:
    await reserve(talker, address, Reserve(WEB, CLAIM, 1, 1, SMALL, "0-3", 10_000))
    await talker.ask(address, Confirm(WEB, CLAIM, 1, spec(digest), "0-3", talker.bus.address))
    return await all_running(talker, address, 4)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def three(farm: AgentFarm, chroot: str, **changes: object) -> tuple[Member, list[Member]]:
    """A compute agent n1 (with `changes` of its configuration), storage agents s1 and s2 in different racks."""
    farm.start(farm.config(chroot, "s1", layer="storage"))
    farm.start(farm.config(chroot, "s2", "r2", layer="storage"))
    farm.start(farm.config(chroot, "n1", **changes))
    first = registered(chroot, "s1", layer="storage")["s1"]
    farm.started[1].said("leads rack")
    second = asyncio.run(read_members(chroot, "storage", "r2"))["s2"]
    return registered(chroot, "n1")["n1"], [first, second]


def test_an_image_is_found_fetched_from_two_holders_and_run_and_stopped(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        node, stores = three(farm, chroot)
        image = an_image()
        digest = push(image, stores)

        async def body(talker: Talker) -> None:
            for store in stores:
                held = await talker.ask(store.address, HasImage(digest))
                assert isinstance(held, ImageHeld)
                assert held.held, "known as soon as it is committed"
            views = await run_four(talker, node.address, digest)
            assert len({view.pid for view in views}) == 4
            for view in views:
                assert alive(view.pid)
                environment = environment_of(view.pid)
                assert f"FABRIC_INSTANCE={WEB}.{view.ordinal}".encode() in environment
                assert b"COLOUR=blue" in environment
            await until(lambda: talker.told[-1].running == "0-3", what="the report of all four")
            fetch = talker.told[-1].fetch
            assert fetch is not None
            assert sorted(fetch.chosen) == ["s1", "s2"]
            assert sum(fetch.bytes_by_holder.values()) == len(image)
            assert set(fetch.bytes_by_holder) == {"s1", "s2"}, "both gave their part"
            assert not fetch.cached

            log = await eventually(
                lambda: talker.ask(node.address, ReadLog(f"{WEB}.2", 1000)),
                lambda answer: isinstance(answer, LogText) and answer.data != b"",
                "the instance's output",
            )
            assert log == LogText(True, f"I am {WEB}.2 on n1\n".encode())
            assert await talker.ask(node.address, ReadLog(f"{WEB}.99", 1000)) == LogText(False, b"")

            # An instance that ends is started again, by its restart policy.
            os.kill(views[0].pid, 9)
            await eventually(
                lambda: talker.ask(node.address, Describe("", 100)),
                lambda answer: isinstance(answer, Described)
                and answer.instances[0].state == "running"
                and answer.instances[0].pid != views[0].pid,
                "the killed instance to run again",
            )
            views = await described(talker, node.address)

            stopping = await talker.ask(node.address, Stop(WEB, CLAIM, 2, "", everything=True))
            assert isinstance(stopping, Progress)
            assert not stopping.running
            await eventually(
                lambda: talker.ask(node.address, Describe("", 100)),
                lambda answer: answer == Described((), False),
                "all instances to be gone",
            )
            assert not any(alive(view.pid) for view in views)
            assert list((tmp_path / "n1" / "instances").iterdir()) == []

            dropped = await talker.ask(stores[0].address, DropImage(digest))
            assert isinstance(dropped, Dropped)
            assert dropped.freed_bytes >= len(image)
            gone = await talker.ask(stores[0].address, HasImage(digest))
            assert isinstance(gone, ImageHeld)
            assert not gone.held

            # And back again, from the other holder.
            replicate = Replicate(digest, (stores[1].data_endpoint,))
            await eventually(
                lambda: talker.ask(stores[0].address, replicate),
                lambda answer: answer == Replicating(True, ""),
                "the copy to be made",
            )

        talk(body)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "left"])
def test_instances_outlive_their_agent_and_are_adopted(tmp_path: Path, chroot: str, kill: bool) -> None:
    with agent_processes(tmp_path) as farm:
        node, stores = three(farm, chroot)
        digest = push(an_image(), stores)
        agent = farm.started[2]

        async def before(talker: Talker) -> list[InstanceView]:
            await write_record(chroot, digest, "0-3")
            return await run_four(talker, node.address, digest)

        views = talk(before)
        if kill:
            agent.kill()
        else:
            agent.terminate()
        assert all(alive(view.pid) for view in views)
        os.kill(views[1].pid, 9)  # this one ends while nobody is there

        again = farm.start(farm.config(chroot, "n1"))
        again.said("registered at")
        address = registered(chroot, "n1")["n1"].address
        assert address != node.address

        async def after(talker: Talker) -> list[InstanceView]:
            return await all_running(talker, address, 4)

        found = talk(after)
        pids = {view.ordinal: view.pid for view in views}
        assert {view.ordinal: view.pid for view in found if view.ordinal != 1} == {
            ordinal: pid for ordinal, pid in pids.items() if ordinal != 1
        }
        assert found[1].pid != pids[1], "it was started again, once"
        assert alive(found[1].pid)


def test_an_image_that_nobody_holds_fails_with_the_reason(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        node, _ = three(farm, chroot, settings=replace(QUICK, find_wait_s=1.0))
        digest = "b3:" + 64 * "0"

        async def body(talker: Talker) -> None:
            await reserve(talker, node.address, Reserve(WEB, CLAIM, 1, 1, SMALL, "0", 10_000))
            await talker.ask(node.address, Confirm(WEB, CLAIM, 1, spec(digest), "0", talker.bus.address))
            await until(lambda: talker.told[-1].failed, timeout_s=40, what="the failure")
            failure = talker.told[-1].failed[0]
            assert failure.blame == "image", "no other node would find one"
            assert "no storage agent has a whole copy" in failure.reason

        talk(body)


def test_an_image_without_an_entry_point_is_the_images_fault(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        node, stores = three(farm, chroot)
        digest = push(b"\x7fELF no program at all" + bytes(1000), stores)

        async def body(talker: Talker) -> None:
            await reserve(talker, node.address, Reserve(WEB, CLAIM, 1, 1, SMALL, "0", 10_000))
            await talker.ask(node.address, Confirm(WEB, CLAIM, 1, spec(digest), "0", talker.bus.address))
            await until(lambda: talker.told[-1].failed, timeout_s=20, what="the failure")
            assert talker.told[-1].failed[0].blame == "image"

        talk(body)


def test_an_image_larger_than_the_cache_fails_with_the_reason_and_leaves_nothing(tmp_path: Path, chroot: str) -> None:
    with agent_processes(tmp_path) as farm:
        node, stores = three(farm, chroot, cache_bytes=1_000_000)
        digest = push(an_image(), stores)

        async def body(talker: Talker) -> None:
            await reserve(talker, node.address, Reserve(WEB, CLAIM, 1, 1, SMALL, "0", 10_000))
            await talker.ask(node.address, Confirm(WEB, CLAIM, 1, spec(digest), "0", talker.bus.address))
            await until(lambda: talker.told[-1].failed, timeout_s=20, what="the failure")
            failure = talker.told[-1].failed[0]
            assert failure.blame == "node"
            assert "does not fit" in failure.reason

        talk(body)
        assert not [path for path in (tmp_path / "n1" / "cache").rglob("*") if path.is_file() and path.name != "lock"]
