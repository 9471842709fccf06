"""What the keeper's processes do when agents are deployed as managents: a repository, boot stubs, an initiator.

They are forked while ZooKeeper starts; once all is up the keeper starts repository and boot stubs again whenever they
end, and agents run on meanwhile. They find each other by files in the fabric's folder: `repository.url` when the
repository serves, `<process>.ready` when all boot stubs of a process are in the directory. The initiator waits for all.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from deploy.identity import name_of
from deploy.local import description
from deploy.local.description import SITE
from deploy.records import StubRecord
from fabric.local.control import ControlClient
from fabric.local.crew import Companion, Order, Place, RealCrew
from fabric.local.folder import DEPLOY
from fabric.local.state import LocalSpec, Node, nodes_of
from fabric.local.takedown import MARK

HOST = "127.0.0.1"
CACHE_BYTES = 1 << 30
POLL_S = 0.01
REPOSITORY = "repository"
STUB_PROCESSES = 4
"""That host boot stubs, at most."""


class DeployedCrew(RealCrew):
    @property
    def companions(self) -> tuple[Companion, ...]:
        return (
            *(Companion(name, partial(self.run_bootstubs, name)) for name in stub_processes(self.spec)),
            Companion("repository", run_repository),
            Companion("initiator", run_initiator, once=True),
        )

    @property
    def agents_wait(self) -> bool:
        return True

    def warm_companions(self) -> None:
        import deploy.stub.assembly
        import deploy.top  # noqa: F401
        import zk.session_tree  # noqa: F401
        from deploy.messages import DEPLOY as MESSAGES

        MESSAGES.prepare()
        (self.folder.path / DEPLOY).mkdir(mode=0o700)

    def warm(self) -> None:
        from deploy import agent

        super().warm()
        # Reading a configuration compiles regular expressions, here once instead of in each agent.
        agent.configured({"MANAGENT_ID": f"/{SITE}/r1/r1c01", **description.environment(self.spec, HOST)})

    def run_bootstubs(self, name: str, place: Place) -> int:
        return run_bootstubs(name, place, self.zookeepers.wait_serving)

    def run_ordered(self, place: Place, order: Order) -> int:
        from deploy import agent

        os.chdir(order.cwd)
        os.environ.clear()
        os.environ.update(order.environment)
        os.environ["FABRIC_LIFELINE_FD"] = str(place.lifeline)
        os.environ[MARK] = str(place.folder.path)
        listen, data_listen, advertise = self.network.bus(name_of(order.environment.get("MANAGENT_ID", "")))
        os.environ.update(FABRIC_ZK=self.zookeepers.peers, FABRIC_LISTEN=listen, FABRIC_DATA_LISTEN=data_listen)
        if advertise:
            os.environ["FABRIC_ADVERTISE"] = advertise
        return agent.main()


def stub_processes(spec: LocalSpec) -> dict[str, tuple[Node, ...]]:
    """The processes that host boot stubs, by name: one for each rack, or for several where there are many racks. A
    single one would have all agents wait for one core."""
    racks: dict[str, list[Node]] = {}
    for node in nodes_of(spec):
        racks.setdefault(node.rack, []).append(node)
    found: dict[str, list[Node]] = {}
    for number, nodes in enumerate(racks.values()):
        found.setdefault(f"bootstubs{number % STUB_PROCESSES + 1}", []).extend(nodes)
    return {name: tuple(nodes) for name, nodes in found.items()}


def run_repository(place: Place) -> int:
    """Started anew it serves what is there by then, where it did before: initiators know it by its URL."""
    from deploy.repository.process import run
    from fabric.logs import set_up_log

    set_up_log(place.spec.log_level)
    root, file = _folder(place) / REPOSITORY, place.folder.repository_url
    port = 0
    if file.exists():
        port = urlsplit(file.read_text("utf-8")).port or 0
    else:
        description.write(root, place.spec, place.zk)
    asyncio.run(run(root, HOST, port, "", lambda url: _write(file, url)))
    return 0


def run_bootstubs(name: str, place: Place, serves: Callable[[], bool]) -> int:
    """`serves` waits for ZooKeeper."""
    from deploy.hosted import directory_of
    from deploy.local.launcher import KeeperLauncher
    from deploy.stub.assembly import Surroundings, assembled
    from deploy.stub.process import Parts, run_stubs
    from deploy.stub.settings import StubConfig
    from deploy.stub.shared import Shared
    from fabric.logs import set_up_log

    set_up_log(place.spec.log_level)
    nodes = stub_processes(place.spec)[name]
    left = {node.name for node in nodes}

    def config(node: Node) -> StubConfig:
        return StubConfig(
            node.name,
            _folder(place) / "stubs" / node.name,
            domain=f"/{SITE}/{node.rack}",
            listen=f"{HOST}:0",
            cluster_key=place.key,
        )

    @asynccontextmanager
    async def compose(shared: Shared) -> AsyncIterator[Parts]:
        around = Surroundings(_folder(place) / f"{name}.cache", CACHE_BYTES, directory=place.zk, key=place.key)
        async with assembled(shared, around) as parts:
            served = asyncio.ensure_future(asyncio.to_thread(serves))

            async def register(record: StubRecord) -> None:
                """Over the session that initiators in this process need anyway."""
                await asyncio.shield(served)
                await directory_of(await shared.tree(place.zk)).stubs.register(record)
                left.discard(record.name)
                if not left:
                    _write(_ready(place, name), "")

            launcher = KeeperLauncher(ControlClient(place.folder), shared.spawner)
            yield replace(parts, register=register, launcher=launcher)

    return run_stubs([config(node) for node in nodes], compose)


def run_initiator(place: Place) -> int:
    from fabric.logs import set_up_log

    set_up_log(place.spec.log_level)
    return asyncio.run(_deploy(place))


async def _deploy(place: Place) -> int:
    from deploy.top import Top

    deadline = time.monotonic() + place.spec.start_deadline_s
    wanted = [place.folder.repository_url, *(_ready(place, name) for name in stub_processes(place.spec))]
    while not all(file.exists() for file in wanted):
        if time.monotonic() > deadline:
            print(f"no repository, or not all boot stubs, within {place.spec.start_deadline_s:g} s", file=sys.stderr)
            return 1
        await asyncio.sleep(POLL_S)
    async with Top.open(place.zk, place.key) as top:
        plan = await top.plan(place.folder.repository_url.read_text("utf-8"), roots=(f"/{SITE}",))
        result = await top.apply(plan)
    sets = result.sets
    if sets.complete:
        return 0
    print(f"not all is active: {sets}", file=sys.stderr)
    return 1


def _ready(place: Place, name: str) -> Path:
    """There when all boot stubs of this process are in the directory."""
    return _folder(place) / f"{name}.ready"


def _folder(place: Place) -> Path:
    return place.folder.path / DEPLOY


def _write(file: Path, text: str) -> None:
    """Whole, or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.rename(file)
