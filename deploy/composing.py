"""What the boot stubs of one process get from the other parts of deployment: references fetched over HTTP, initiators,
registration in the directory, programs.

    code = run_stubs(configs, composed(cache=folder / "cache", directory="192.0.2.1:2181/site", key=key))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from deploy.hosted import directory_of
from deploy.initiator_host import new_initiator
from deploy.records import StubRecord
from deploy.repository.client import HttpClient
from deploy.repository.content import ContentCache
from deploy.repository.fetcher import Fetcher
from deploy.repository.images import ImageAccess
from deploy.repository.resolver import HttpResolver
from deploy.settings import Settings
from deploy.stub.launcher import Launcher
from deploy.stub.process import Compose, Parts
from deploy.stub.shared import Shared

CACHE_BYTES = 4 << 30


def composed(
    *,
    cache: Path,
    cache_bytes: int = CACHE_BYTES,
    directory: str = "",
    key: bytes | None = None,
    roots: tuple[Path, ...] = (),
    launcher: Launcher | None = None,
    registered: Callable[[str], None] = lambda name: None,
    settings: Settings | None = None,
) -> Compose:
    """`cache`: a folder of this process alone, for what references gave. `directory`: a connect string, where each boot
    stub registers (`registered` is told its name then), and where the holders of image:// references are found; "" for
    neither. `roots`: what file:// references may name. The context raises deploy.repository.content.CacheBusy, OSError.
    """

    @asynccontextmanager
    async def parts(shared: Shared) -> AsyncIterator[Parts]:
        images = ImageAccess(lambda: shared.tree(directory), key, shared.context) if directory else None
        client = HttpClient()
        contents = ContentCache(cache, cache_bytes)
        fetcher = Fetcher(client, contents, roots=roots, images=images)
        resolver = HttpResolver(client, fetcher)

        async def register(record: StubRecord) -> None:
            await directory_of(await shared.tree(directory)).stubs.register(record)
            registered(record.name)

        try:
            yield Parts(
                resolver,
                new_initiator(settings),
                register if directory else None,
                launcher,
            )
        finally:
            await resolver.close()
            await fetcher.close()
            contents.close()
            await client.close()

    return parts
