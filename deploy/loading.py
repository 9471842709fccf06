"""Descriptions for the planner, loaded from their repositories: each with all documents that it refers to.

References are read as boot stubs read them: `file://` below allowed roots, which are to hold here what they hold there,
and `image://` from the fabric in the directory's ZooKeeper. Code that cannot be read from here is not known to the
planner; boot stubs will know. A configuration document that can't be is an error of those who get it: without it nobody
can tell what they are.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.configuration import InitiatorRole
from deploy.described import Described
from deploy.expansion import MAX_REPOSITORIES, BadTree, Expansion, Unloaded, expand
from deploy.records import StubRef
from deploy.repository.client import HttpClient
from deploy.repository.content import ContentCache
from deploy.repository.description import load_description
from deploy.repository.fetcher import Fetcher
from deploy.repository.images import ImageAccess
from deploy.resolved import Unresolved

CACHE_BYTES = 1 << 30
"""Of code whose digest the repository does not tell."""


class Loader:
    """Made by `opened`."""

    def __init__(self, client: HttpClient, fetcher: Fetcher) -> None:
        self._client = client
        self._fetcher = fetcher

    async def load(self, url: str) -> Described | Unloaded:
        try:
            found = await load_description(url, self._client, self._fetcher)
        except Unresolved as error:
            return Unloaded(str(error))
        return Described(found.generation, found.information, found.contents, found.broken)

    async def expanded(
        self, top: InitiatorRole, repository: str, stubs: Sequence[StubRef]
    ) -> tuple[Expansion, dict[str, Described]]:
        """The expansion, and all repositories that it took, by URL. Those that gave nothing are errors of the paths
        that they are to describe. Raises BadTree."""
        loaded: dict[str, Described | Unloaded] = {}
        missing = frozenset([repository])
        while True:
            if len(loaded) + len(missing) > MAX_REPOSITORIES:
                some = ", ".join(sorted(missing)[:3])
                raise BadTree(f"expected at most {MAX_REPOSITORIES} repositories, found more: {some}, …")
            urls = sorted(missing)
            loaded |= zip(urls, await asyncio.gather(*map(self.load, urls)), strict=True)
            expansion = expand(top, repository, loaded, stubs)
            missing = expansion.missing
            if not missing:
                return expansion, {url: one for url, one in loaded.items() if isinstance(one, Described)}


@asynccontextmanager
async def opened(roots: tuple[Path, ...] = (), images: ImageAccess | None = None) -> AsyncIterator[Loader]:
    with tempfile.TemporaryDirectory(prefix="managent-plan-") as folder:
        client, cache = HttpClient(), ContentCache(Path(folder), CACHE_BYTES)
        fetcher = Fetcher(client, cache, roots=roots, images=images)
        try:
            yield Loader(client, fetcher)
        finally:
            await fetcher.close()
            await client.close()
            cache.close()
