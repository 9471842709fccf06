"""What a chunk server answers when a request failed: the error as a code and a reason."""

from __future__ import annotations

import logging

from fabric.images.errors import (
    BadChunk,
    ChunkCorrupt,
    FetchCancelled,
    FetchFailed,
    ImageError,
    ManifestError,
    NotHeld,
    PushIncomplete,
    StoreBusy,
    StoreFull,
    UnknownPush,
)
from fabric.images.protocol import Code, Refused, refused

_CODES: dict[type[ImageError], Code] = {
    NotHeld: "not_found",
    ChunkCorrupt: "corrupt",
    StoreFull: "full",
    StoreBusy: "busy",
    UnknownPush: "unknown_push",
    BadChunk: "refused",
    ManifestError: "refused",
    PushIncomplete: "refused",
    FetchFailed: "failed",
    FetchCancelled: "failed",
}

log = logging.getLogger(__name__)


def refusal(request_id: int, error: Exception) -> Refused:
    code = _CODES.get(type(error)) if isinstance(error, ImageError) else None
    if code is None:
        log.error("a request failed for a reason of our own", exc_info=error)
        code = "failed"
    return refused(request_id, code, str(error))
