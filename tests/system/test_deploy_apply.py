"""`fabric managent …` over real boot stubs: apply, apply again, change, remove, commands to a subtree, kill, resume."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deploy.bip_xml import ControlMessage, write_control
from tests.system.managents import LEAVES, TOTAL, World, paths, world

pytestmark = pytest.mark.system
ROOT = ("--root", "/region1")


def in_a_world(folder: Path, directory: str, body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with world(folder, directory) as here:
            await body(here)

    asyncio.run(main())


def test_a_tree_is_deployed_left_alone_changed_commanded_and_pruned(tmp_path: Path, chroot: str) -> None:
    async def body(here: World) -> None:
        await here.start("s1", "s2", "s3", "s4")
        plan = await here.fabric("plan", *ROOT, "--exit-code", exits=2)
        assert (plan["targeted"], plan["counts"]) == (TOTAL, {"add": TOTAL})
        assert [change["path"] for change in plan["changes"][:3]] == ["/region1", "/region1/zone1", "/region1/zone1/n1"]
        done = await here.fabric("apply", *ROOT)
        assert done["sets"]["counts"]["active"] == len(done["sets"]["active"]) == TOTAL
        assert here.running() == dict.fromkeys(paths(), 1)

        again = await here.fabric("apply")
        assert (again["sets"], again["plan"]["unchanged"]) == (None, TOTAL)

        here.describe("blue")
        plan = await here.fabric("plan")
        assert plan["counts"] == {"reconfigure": len(paths())}
        assert {change["path"] for change in plan["changes"]} == paths()
        assert "leaf.xml" in plan["changes"][0]["reason"]
        done = await here.fabric("apply", "--wave", "25%", "--max-failed", "0")
        assert (done["wave"], done["of"], done["sets"]["counts"]["active"]) == (4, 4, TOTAL)
        assert here.colors() == {"blue": len(paths())}

        told = await here.fabric("deactivate", "/region1/zone2/n*")
        assert set(told["sets"]["passive"]) == paths(["zone2"])
        told = await here.fabric("deactivate", "/region1/zone2/n1", exits=2)
        assert "active" in told["sets"]["refused"][0]["reason"]
        seen = await here.fabric("status")
        assert (seen["sets"]["counts"]["active"], seen["sets"]["counts"]["passive"]) == (TOTAL - LEAVES, LEAVES)
        told = await here.fabric("activate", "/region1/zone2/n*")
        assert set(told["sets"]["active"]) == paths(["zone2"])

        steps = (await here.fabric("trace", "/region1/zone3/n5"))["steps"]
        assert [step["step"] for step in steps if step["ms"] is not None] == [2, 3, 4, 5, 6, 7]

        here.describe("blue", leaves=LEAVES - 1)
        plan = await here.fabric("plan")
        assert plan["counts"] == {"reconfigure": 3, "remove": 3}
        done = await here.fabric("apply")
        assert done["sets"]["counts"]["active"] == done["sets"]["counts"]["targeted"] == TOTAL - 3
        assert here.running() == dict.fromkeys(paths(leaves=LEAVES - 1), 1)

        file = tmp_path / "figure9.xml"
        file.write_bytes(write_control(ControlMessage("deploy", "s1", "me", repository=f"{here.repository}repository")))
        sent = await here.fabric("send", str(file), "--id", "/lab/shelf/one")
        assert (sent["outcome"], sent["life"]) == ("done", "active")
        assert here.running()["/lab/shelf/one"] == 1
        refused = await here.fabric("send", str(file), "--id", "/region1/zone1/n1", exits=1)
        assert "expected a managent of no tree" in refused

        told = await here.fabric("shutdown", "/**")
        assert told["sets"]["counts"]["stopped"] == TOTAL - 3
        refused = await here.fabric("uninstall", "/**", exits=1)
        assert "found 36 of /region1 (and 3 more like it), which is shut down" in refused
        assert "start it (fabric managent start /region1)" in refused
        told = await here.fabric("start", "/region1")
        told = await here.fabric("start", "/region1/*")
        told = await here.fabric("uninstall", "/region1/*/*")
        assert len(told["sets"]["stopped"]) == len(paths(leaves=LEAVES - 1))
        await here.fabric("shutdown", "/region1/*")
        told = await here.fabric("uninstall", "/region1/*")
        assert len(told["sets"]["stopped"]) == 3

    in_a_world(tmp_path, chroot, body)


def test_the_sets_add_up_when_a_stub_dies_and_resume_completes(tmp_path: Path, chroot: str) -> None:
    async def body(here: World) -> None:
        await here.start("s1")
        await here.start("s2")
        await here.start("s3")
        await here.fabric("apply", *ROOT)
        zones = {entry["path"]: entry["stub"] for entry in (await here.fabric("status", "/region1/*"))["entries"]}
        top = (await here.fabric("status", "/region1"))["entries"][0]["stub"]
        victim, name = next((zone, stub) for zone, stub in zones.items() if stub != top)
        here.kill(name)
        here.describe("blue")
        done = await here.fabric("apply", "--wave", "25%", "--max-failed", "1%", exits=2)
        assert done["wave"] < done["of"] == 4
        assert done["halted"].endswith("unreachable), expected at most 0 (1% of 40)")
        assert here.colors()["red"] > 0, "what comes after the watermark is as it was"
        sets = done["sets"]
        lost = {one["path"] for one in sets["unreachable"]}
        named = [*sets["active"], *(one["path"] for kind in ("refused", "failed") for one in sets[kind]), *lost]
        assert sorted(named) == sorted(["/region1", *zones, *paths()])
        assert victim in lost
        assert {path for path in paths() if path.startswith(f"{victim}/")} <= lost
        assert {one["through"] for one in sets["unreachable"] if one["path"].startswith(victim)} == {"/region1"}
        await here.start(name)
        done = await here.fabric("apply", "--resume")
        assert done["sets"] is None or done["sets"]["counts"]["active"] == TOTAL
        assert here.running() == dict.fromkeys(paths(), 1)
        assert here.colors() == {"blue": len(paths())}

    in_a_world(tmp_path, chroot, body)


def test_one_rollout_at_a_time_and_its_death_loses_nothing(tmp_path: Path, chroot: str) -> None:
    async def body(here: World) -> None:
        await here.start("s1", "s2", "s3", "s4")
        go = tmp_path / "go"
        here.describe(install=f"while [ ! -e {go} ]; do sleep 0.1; done")
        code, said = await here.interrupted("apply", *ROOT, "--yes", "--wave", "10", when="wave 1 of 4: ")
        assert code == 130
        assert "--resume" in said
        assert "Traceback" not in said
        process = await here.begun("apply", "--yes")
        await here.top_is(process.pid)
        refused = await here.fabric("apply", exits=1)
        assert f"found process {process.pid} on " in refused
        seen = await here.fabric("status", "--timeout", "5", exits=2)
        assert {one["path"] for one in seen["sets"]["pending"]} == paths(), "through the top that is at work"
        process.kill()
        await process.wait()
        go.touch()  # what was told goes on by itself, so there may be nothing left to do
        done = await here.fabric("apply", "--resume")
        assert done["sets"] is None or done["sets"]["counts"]["active"] == TOTAL
        assert here.running() == dict.fromkeys(paths(), 1)

    in_a_world(tmp_path, chroot, body)
