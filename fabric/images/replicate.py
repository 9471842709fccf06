"""Copying an image from other holders into a chunk store.

This is how a push survives a holder that dies in the middle, and how an image gets its second holder back. What is
here already (of another image, or of the same one with a rotten chunk) isn't fetched again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import uuid4

from fabric.images.fetch import DEADLINE_S, Fetching, FetchReport, More, Progress, no_more
from fabric.images.manifest import Manifest
from fabric.images.protocol import Holder
from fabric.images.store import ChunkStore
from fabric.images.transfer import STALL_S, WINDOW


def replicate(
    store: ChunkStore,
    digest: str,
    sources: Sequence[Holder],
    *,
    more: More = no_more,
    cancelled: threading.Event | None = None,
    deadline_s: float = DEADLINE_S,
    stall_s: float = STALL_S,
    progress: Progress | None = None,
) -> FetchReport:
    """Makes `store` a holder of the image, from `sources`. Blocks; leaves nothing half.

    Raises `FetchFailed`, `FetchCancelled`, `StoreFull`, `StoreBusy`, `BadDigest`.
    """
    push_id = f"replicate-{uuid4().hex}"
    store.begin(push_id)
    try:
        fetching = Fetching(digest, _StoreSink(store, push_id), more, WINDOW, stall_s, progress)
        report = fetching.run(sources, cancelled or threading.Event(), deadline_s)
        store.commit(push_id, report.manifest.encode())
        return report
    finally:
        store.abort(push_id)


@dataclass(frozen=True, slots=True)
class _StoreSink:
    store: ChunkStore
    push_id: str

    def start(self, manifest: Manifest) -> set[int]:
        first = {chunk: index for index, chunk in reversed(list(enumerate(manifest.chunks)))}
        return {index for chunk, index in first.items() if self.store.claim(self.push_id, chunk)}

    def write(self, manifest: Manifest, places: list[int], data: memoryview) -> None:
        self.store.put(self.push_id, manifest.chunks[places[0]], data)
