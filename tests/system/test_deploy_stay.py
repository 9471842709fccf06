"""`fabric managent apply --stay`: roots are looked after while no command runs, by two as well; and it makes way."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.at_work import Work
from deploy.top import Result, Top
from tests.system.managents import TOTAL, World, paths
from tests.system.quick_stubs import QUICK
from tests.system.test_deploy_apply import ROOT, in_a_world

pytestmark = pytest.mark.system


def test_a_root_whose_boot_stub_is_killed_is_placed_on_another_one(tmp_path: Path, chroot: str) -> None:
    async def body(here: World) -> None:
        for name in ("s1", "s2", "s3"):
            await here.start(name)
        said: list[str] = []
        applied: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        async with Top.open(chroot, settings=QUICK) as top:
            stayer = top.stayer(here.repository, said.append)

            async def then(work: Work, result: Result) -> None:
                applied.set_result(result)
                await stayer.keep(work)

            plan = await top.plan(here.repository, ("/region1",))
            staying = asyncio.create_task(top.apply(plan, then=then))
            try:
                await asyncio.wait([applied, staying], return_when=asyncio.FIRST_COMPLETED)
                assert applied.result().sets.complete
                root = (await here.fabric("status", "/region1"))["entries"][0]["stub"]
                here.kill(root)
                await heard(said, "/region1 is placed on boot stub s", f"as {root} does not answer")
                await here.start(root)
                await heard(said, f"all {TOTAL} are as they were told to be")
                assert (await here.fabric("status", "/region1"))["entries"][0]["stub"] != root
                assert here.running() == dict.fromkeys(paths(), 1)
            finally:
                staying.cancel()
                with suppress(asyncio.CancelledError):
                    await staying
        assert (await here.fabric("apply"))["sets"] is None, "it left the lock, and a tree that is as it is described"

    in_a_world(tmp_path, chroot, body)


async def heard(said: list[str], *parts: str) -> None:
    try:
        async with asyncio.timeout(30):
            while not any(all(part in text for part in parts) for text in said):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"expected {parts}, heard {said}") from None


def test_one_that_stays_makes_way_and_another_one_stands_in_for_it(tmp_path: Path, chroot: str) -> None:
    async def body(here: World) -> None:
        await here.start("s1", "s2")
        one = await here.begun("apply", *ROOT, "--yes", "--stay")
        await told(one, "stays, and looks after the roots")
        assert (await here.fabric("status"))["sets"]["counts"]["active"] == TOTAL, "through the one that stays"
        other = await here.begun("apply", "--yes", "--stay")
        await told(other, "stays, and looks after the roots")
        await told(one, f"makes way for process {other.pid} on ")
        other.send_signal(signal.SIGINT)
        await told(other, "stays no longer")
        assert await other.wait() == 0
        await told(one, "goes on looking after the roots")

        here.describe("blue")
        done = await here.fabric("apply", "--wave", "50%")
        assert done["sets"]["counts"]["active"] == TOTAL, "an apply is let in"
        await told(one, "makes way for ")
        await told(one, "goes on looking after the roots")
        here.describe("red")  # which is not applied: to go on is not to apply
        await here.top_is(one.pid)
        assert here.colors() == {"blue": len(paths())}
        one.send_signal(signal.SIGTERM)
        await told(one, "nobody looks after the roots now")
        assert await one.wait() == 0

    in_a_world(tmp_path, chroot, body)


async def told(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stderr is not None
    said = ""
    while text not in said:
        line = (await asyncio.wait_for(process.stderr.readline(), 30)).decode()
        said += line
        assert line, said
