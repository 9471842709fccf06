"""`fabric managent send`: Figure 9 as it is printed, sent for real, and what else a person may say to a boot stub."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from deploy.bip_xml import ControlMessage, write_control
from deploy.directory import Directory
from deploy.states import Verb
from tests.deployment import row, table
from tests.system.managents import World, world
from tests.unit.runtime.until import until
from zk.client import TreeClient
from zk.session_tree import SessionTree

pytestmark = pytest.mark.system

FIGURE_9 = Path(__file__).parents[1] / "unit" / "deploy" / "figures" / "figure9.xml"
PALMTREE = "palmtree.hpl.hp.com"
"""The host of the figure's boot stub."""
INFORMATION = """\
<repository-information>
  <managent-code><entry><pattern path="*/agent"/><ref url="SimpleAgent.class"/></entry></managent-code>
  <managent-config><entry><pattern path="*"/><ref url="agent.xml"/></entry></managent-config>
</repository-information>
"""
CONFIGURATION = """\
<configuration>
  <env-params><env name="COLOR" value="red"/></env-params>
  <arg-params><arg name="PORT" value="7078"/></arg-params>
</configuration>
"""
CLASS = b"\xca\xfe\xba\xbe\0\0\0\x34"
JAVA = '#!/bin/sh\necho "java $*, with $(ls)"\nexec sleep 100000\n'
"""Stands for Java, which not every machine has."""


def at_palmtree(
    folder: Path, directory: str, monkeypatch: pytest.MonkeyPatch, body: Callable[[World], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with world(folder, directory) as here:
            java = folder / "bin" / "java"
            java.parent.mkdir()
            java.write_text(JAVA)
            java.chmod(0o755)
            monkeypatch.setenv("PATH", f"{java.parent}:/usr/bin:/bin")
            (folder / "site" / "SimpleAgent.class").write_bytes(CLASS)
            (folder / "site" / "agent.xml").write_text(CONFIGURATION)
            (folder / "site" / "repository.xml").write_text(INFORMATION)
            await here.start(PALMTREE)
            await body(here)

    asyncio.run(main())


def message(here: World, verb: Verb, **more: str) -> str:
    """A file with it."""
    file = here.folder / f"{verb}.xml"
    file.write_bytes(write_control(ControlMessage(verb, PALMTREE, "me", **more)))
    return str(file)


async def owned(directory: str) -> None:
    """/region1 has a child `node0`, as an initiator wrote it."""
    tree = SessionTree(directory)
    await tree.open(20)
    try:
        tables = Directory(TreeClient(tree)).tables
        claim = await tables.claim("/region1", secrets.token_hex(8), "tcp://127.0.0.1:1/00")
        await tables.save(claim, table("/region1", guid=claim.table.guid, children=(row(0),)))
    finally:
        await tree.close()


def test_figure_9_is_sent_and_what_it_deployed_takes_commands(
    tmp_path: Path, chroot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(here: World) -> None:
        figure = tmp_path / "figure9.xml"
        printed = FIGURE_9.read_text()
        assert "http://sos.hpl.hp.com:8080/cs/" in printed
        figure.write_text(printed.replace("http://sos.hpl.hp.com:8080/cs/", here.repository))
        answer = await here.fabric("send", str(figure), "--id", "/region1/agent")
        assert (answer["outcome"], answer["life"], answer["stub"]) == ("done", "active", PALMTREE)
        assert here.running() == {"/region1/agent": 1}
        log = here.folder / "stubs" / PALMTREE / "logs" / "region1+agent.log"
        await until(lambda: log.exists() and log.read_text())
        assert log.read_text() == "java SimpleAgent PORT=7078, with SimpleAgent.class\n", "as the boot file tells"

        again = await here.fabric("send", str(figure), "--id", "/region1/agent", exits=2)
        assert again["outcome"] == "refused"
        assert "expected the environment to be non-existent" in again["reason"]
        answer = await here.fabric("send", message(here, "shutdown", managent="/region1/agent"))
        assert (answer["outcome"], answer["life"]) == ("done", "configured")
        assert here.running() == {}
        told = await here.fabric("send", message(here, "uninstall"), "--id", "/region1/agent", "--stub", PALMTREE)
        assert (told["outcome"], told["env"]) == ("done", "non-existent")

        # without the third way to learn the start command (4.3), the first: it is recognised by its format
        answer = await here.fabric(
            "send", message(here, "deploy", managent="/region1/agent", repository=here.repository)
        )
        assert answer["outcome"] == "done"
        await until(lambda: log.exists() and log.read_text())
        assert log.read_text() == "java -cp . SimpleAgent PORT=7078, with SimpleAgent.class\n"

    at_palmtree(tmp_path, chroot, monkeypatch, body)


def test_what_can_not_be_sent_is_told(tmp_path: Path, chroot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(here: World) -> None:
        start = message(here, "start")
        nowhere = await here.fabric("send", start, "--id", "/region1/a", "--stub", "s9", exits=1)
        assert "expected a boot stub of the directory, found 's9'" in nowhere
        unknown = await here.fabric("send", start, "--id", "/region1/stranger", exits=2)
        assert (unknown["outcome"], unknown["stub"]) == ("unknown", PALMTREE)
        assert f"no such managent on boot stub {PALMTREE}" in unknown["reason"]
        lost = await here.fabric(
            "send", message(here, "deploy", managent="/region1/none", repository=here.repository), exits=2
        )
        assert (lost["outcome"], lost["final"]) == ("failed", True)
        assert "expected an entry of managent-code that matches" in lost["reason"], "no match at all"

        await owned(here.directory)
        taken = await here.fabric("send", start, "--id", "/region1/node0", exits=1)
        assert "found /region1/node0 in the table of its initiator" in taken

    at_palmtree(tmp_path, chroot, monkeypatch, body)
