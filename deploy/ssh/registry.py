"""The directory's part in an installation: whether a boot stub that was found running on its host is in there, the
proof that others can find it; and taking out one that was uninstalled, so that nobody counts on its machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deploy.directory import Directory
from deploy.ssh.fleet import NotForgotten, Registered, Unregistered
from fabric.records import BadRecord
from zk.client import TreeClient
from zk.session_tree import SessionTree
from zk.tree import TreeError

OPEN_WAIT_S = 15.0
LOOK_EVERY_S = 0.25
LOOK_WAIT_S = 10.0


@asynccontextmanager
async def registry(hosts: str, wait_s: float) -> AsyncIterator[Registered]:
    """Looks into the directory at `hosts`, for each boot stub until it is there or `wait_s` are over (at least once).
    Raises zk.connect.Unreachable."""
    tree = SessionTree(hosts)
    await tree.open(OPEN_WAIT_S)
    stubs = Directory(TreeClient(tree)).stubs
    loop = asyncio.get_running_loop()

    async def look(name: str, pid: int) -> str:
        try:
            async with asyncio.timeout(LOOK_WAIT_S):
                found = await stubs.get(name)
        except (TreeError, BadRecord, TimeoutError) as error:
            return f"the directory could not be asked ({error or 'no answer'})"
        if found is None:
            return "the directory does not have it"
        if found.pid != pid or not found.address:
            return f"the directory has one on {found.host or 'no host yet'}, process {found.pid}"
        return ""

    async def registered(name: str, pid: int) -> str:
        deadline = loop.time() + wait_s
        while trouble := await look(name, pid):
            if loop.time() >= deadline:
                return f"boot stub {name} runs as process {pid}, but {trouble}"
            await asyncio.sleep(LOOK_EVERY_S)
        return ""

    try:
        yield registered
    finally:
        await tree.close()


@asynccontextmanager
async def unregistry(hosts: str) -> AsyncIterator[Unregistered]:
    """Takes boot stubs out of the directory at `hosts`. Raises zk.connect.Unreachable."""
    tree = SessionTree(hosts)
    await tree.open(OPEN_WAIT_S)
    stubs = Directory(TreeClient(tree)).stubs

    async def unregistered(name: str, host: str) -> str:
        try:
            async with asyncio.timeout(LOOK_WAIT_S):
                found = await stubs.get(name)
                if found is None:
                    return ""
                if found.host not in ("", host):
                    return f"the directory keeps {name}, which is another one, on {found.host}"
                await stubs.remove(name)
                return f"{name} taken out of the directory"
        except (TreeError, BadRecord, TimeoutError) as error:
            said = error or "no answer"
            raise NotForgotten(f"the directory may have {name} still ({said}): fabric stub remove {name}") from None

    try:
        yield unregistered
    finally:
        await tree.close()
