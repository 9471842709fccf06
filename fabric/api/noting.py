"""The znodes about nodes: which are present, cordoned, drained, lost.

What an operator wishes for a node (`/cordons`, `/drains`) and what leaders note about one (`/lost`) has to outlive
whoever deals with it. Writes are versioned and idempotent: a reply that was lost is answered by looking and doing it
again. A drain is a cordon and more, so both come in one transaction; they go one after the other, the drain first: cut
off in between, the node is cordoned still, which harms nobody.
"""

from __future__ import annotations

import asyncio

import msgspec

from fabric.api.problems import unavailable
from fabric.api.reading import UNANSWERED, Records, Versioned
from fabric.records import Drain, LayerName, Lost, encode
from fabric.roles.brake import OPERATOR
from zk import paths
from zk.tree import BadVersion, Check, Create, MultiFailed, NodeExists, NoNode, Set


class NodeNotes(Records):
    # --- present -------------------------------------------------------------------------------------------------

    async def present(self, layer: LayerName) -> dict[str, tuple[str, ...]]:
        """Rack -> the nodes of it that are registered, ascending; also racks that have none now."""
        racks = await self._names(f"{paths.MEMBERS}/{layer}")

        async def nodes(rack: str) -> tuple[str, ...]:
            async with self._reads:
                return tuple(await self._names(paths.rack_members(layer, rack)))

        found = await asyncio.gather(*(nodes(rack) for rack in racks))
        return dict(zip(racks, found, strict=True))

    # --- cordons and drains --------------------------------------------------------------------------------------

    async def cordon(self, node: str) -> None:
        await self.require_session()
        for _ in range(self._limits.write_tries):
            try:
                await self._bounded(self._client.create(paths.cordon(node)))
                return
            except NodeExists:
                return
            except UNANSWERED:
                await self._pause()
        raise _unsure(node, "cordoned")

    async def uncordon(self, node: str) -> None:
        """Ends its drain too."""
        await self.require_session()
        for path in (paths.drain(node), paths.cordon(node)):
            await self._remove(node, path)

    async def _remove(self, node: str, path: str) -> None:
        for _ in range(self._limits.write_tries):
            try:
                await self._bounded(self._client.delete(path))
                return
            except NoNode:
                return
            except UNANSWERED:
                await self._pause()
        raise _unsure(node, "cordoned")

    async def drain(self, node: str, now_ms: int, deadline_ms: int) -> Versioned[Drain]:
        """Begin to drain, or give a drain that has begun another deadline."""
        await self.require_session()
        path, cordon = paths.drain(node), paths.cordon(node)
        for _ in range(self._limits.write_tries):
            before = await self._read(path, Drain)
            cordoned = await self._bounded(self._client.exists(cordon)) is not None
            wanted = Drain(node, before.record.since_ms if before else now_ms, deadline_ms)
            if before is not None and before.record == wanted and cordoned:
                return before
            data = encode(wanted)
            write = Create(path, data) if before is None else Set(path, data, before.stat.version)
            try:
                await self._bounded(self._client.multi(write, Check(cordon, -1) if cordoned else Create(cordon)))
            except MultiFailed as failed:
                if not isinstance(failed.cause, NodeExists | NoNode | BadVersion):
                    raise
            except UNANSWERED:
                pass
            else:
                continue  # read it: the answer is what is written
            await self._pause()
        raise _unsure(node, "drained")

    async def drain_of(self, node: str) -> Versioned[Drain] | None:
        return await self._read(paths.drain(node), Drain)

    async def drains(self) -> list[Versioned[Drain]]:
        return await self._read_all([paths.drain(name) for name in await self._names(paths.DRAINS)], Drain)

    async def cordoned(self) -> list[str]:
        return await self._names(paths.CORDONS)

    # --- lost nodes ----------------------------------------------------------------------------------------------

    async def lost(self) -> list[Versioned[Lost]]:
        return await self._read_all([paths.lost(name) for name in await self._names(paths.LOST)], Lost)

    async def accept(self, found: Versioned[Lost], now_ms: int) -> bool:
        """An operator says that this node is to be replaced. False when its note is gone: it is back."""
        path = paths.lost(found.record.node)
        for _ in range(self._limits.write_tries):
            await self.require_session()
            if found.record.by == OPERATOR and found.record.accepted_ms:
                return True
            accepted_ms = found.record.accepted_ms or now_ms
            after = msgspec.structs.replace(found.record, accepted_ms=accepted_ms, by=OPERATOR)
            try:
                await self._bounded(self._client.set(path, encode(after), found.stat.version))
                return True
            except (BadVersion, *UNANSWERED):
                await self._pause()
            except NoNode:
                return False
            again = await self._read(path, Lost)
            if again is None:
                return False
            found = again
        raise unavailable(f"The note of lost node {found.record.node} changes too often; release the brake again.")


def _unsure(node: str, what: str) -> Exception:
    return unavailable(f"ZooKeeper did not answer; whether {node} is {what} is not known. Try again.")
