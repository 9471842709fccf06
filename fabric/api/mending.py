"""The znodes as an audit reads and mends them: whole folders at a time, and every change only to the version it judged.

A change that lost a race is no error here: somebody is at it, and the look after the repair tells whether it is well.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeVar

import msgspec

from fabric.api.problems import ProblemError, conflict
from fabric.api.reading import Records, Versioned
from fabric.records import BadRecord
from zk import paths
from zk.tree import BadVersion, Check, Create, Delete, MultiFailed, NodeExists, NoNode, NotEmpty

R = TypeVar("R", bound=msgspec.Struct)
_LOST_RACE = (BadVersion, NoNode, NodeExists, NotEmpty)


class Mending(Records):
    async def names(self, folder: str) -> list[str]:
        """409 when there are more than can be compared."""
        names = await self._names(folder)
        if len(names) >= self._limits.list_most:
            raise _too_many(folder, self._limits.list_most)
        return names

    async def folder(self, folder: str, kind: type[R], skip: str = "") -> dict[str, Versioned[R] | BadRecord]:
        """Every record in a folder by its name, but for names that begin with `skip`."""
        found: dict[str, Versioned[R] | BadRecord] = {}
        names = [name for name in await self.names(folder) if not skip or not name.startswith(skip)]
        step = self._limits.list_reads * 8
        for start in range(0, len(names), step):
            some = names[start : start + step]
            records = await self._read_each([f"{folder}/{name}" for name in some], kind)
            found.update((name, one) for name, one in zip(some, records, strict=True) if one is not None)
        return found

    async def delete(self, path: str, version: int) -> None:
        with suppress(*_LOST_RACE):
            await self._bounded(self._client.delete(path, version))

    async def mark(self, deployment: str, version: int) -> None:
        """Open for a coordinator, if its record is still that version."""
        record = Check(paths.deployment(deployment), version)
        await self._together(record, Create(paths.open_marker(deployment)))

    async def unmark(self, deployment: str, version: int) -> None:
        record = Check(paths.deployment(deployment), version)
        await self._together(record, Delete(paths.open_marker(deployment)))

    async def cordon_drained(self, node: str, version: int) -> None:
        await self._together(Check(paths.drain(node), version), Create(paths.cordon(node)))

    async def _together(self, *ops: Create | Delete | Check) -> None:
        try:
            await self._bounded(self._client.multi(*ops))
        except MultiFailed as failed:
            if not isinstance(failed.cause, _LOST_RACE):
                raise


def _too_many(folder: str, most: int) -> ProblemError:
    return conflict(f"{folder} has {most} znodes or more: too many for an audit, which compares all with all.")
