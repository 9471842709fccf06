"""What can go wrong with an image, split by whose fault it is.

A caller turns these into an answer: `BadImage`, `EmptyImage`, `ImageTooLarge`, `BadDigest` and `DigestMismatch` are
the user's (the upload is not what it has to be); `StoreFull` and `CacheFull` are the operator's (there is no room);
`FetchFailed` and `PushFailed` are the fabric's (no holder did its part); the rest are programming or protocol errors.
"""

from __future__ import annotations


class ImageError(Exception):
    """Everything this package raises on purpose."""


class BadDigest(ImageError):
    """A digest that is not written as `b3:<64 hex>` or `sha256:<64 hex>`."""


class DigestMismatch(ImageError):
    """The content is not what the user said it was."""


class ManifestError(ImageError):
    """Bytes that are no manifest, or a manifest out of its bounds."""


class EmptyImage(ImageError):
    """An image of no bytes."""


class ImageTooLarge(ImageError):
    """More bytes than one manifest can name."""


class BadImage(ImageError):
    """Not what an image may be: see `fabric.images.archive`. Names the member, what was expected and what was found."""


class UnpacksTooLarge(BadImage):
    """An archive whose members add up to more than it may unpack to."""


class StoreFull(ImageError):
    """No room for the chunk or the manifest: the limit is reached or the disk refused the write."""


class StoreBusy(ImageError):
    """Too many pushes at once, or the directory belongs to another process."""


class UnknownPush(ImageError):
    """The push was never begun, was aborted, or was idle for too long."""


class BadChunk(ImageError):
    """A chunk whose bytes do not have the hash it is named by, or whose size is out of bounds."""


class ChunkCorrupt(ImageError):
    """A stored chunk that no longer has its hash, or can't be read. It is not served, and its images are not held."""


class NotHeld(ImageError):
    """A digest or chunk that is not here."""


class NotYet(ImageError):
    """A chunk of an image that is being fetched here, and has not come yet."""


class PushIncomplete(ImageError):
    """A commit of a manifest that names chunks the push did not bring."""


class EndpointError(ImageError):
    """The bulk endpoint could not be bound."""


class FetchCancelled(ImageError):
    """The caller's `cancelled` event was set."""


class FetchFailed(ImageError):
    """No holder was left to give the image, or the time was over. `reasons`: (node, why it was dropped)."""

    def __init__(self, message: str, reasons: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class PushFailed(ImageError):
    """Not enough holders took the image whole.

    `reasons`: (node, why it was dropped). `digest` is given when the push got as far as committing: whole copies of
    that content may be left behind, at `held_by` and where a commit is still under way; nothing refers to them, so they
    may be dropped.
    """

    def __init__(
        self,
        message: str,
        reasons: tuple[tuple[str, str], ...] = (),
        digest: str | None = None,
        held_by: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.reasons = reasons
        self.digest = digest
        self.held_by = held_by


class CacheFull(ImageError):
    """An image does not fit in the cache even with everything evicted that is not pinned."""


class NotCached(ImageError):
    """A digest that the cache does not have."""
