"""An image on its way from a client to its holders, in constant memory.

    client ──HTTP──> pieces of 1 MiB ──one in work, one being filled──> worker thread: check archive, push to holders

The loop gathers what comes from the client into a piece, and hands it to the push's own thread when the piece before is
done; so a slow holder slows the client down, by TCP, and nothing queues. In the thread the archive is checked and each
chunk goes to two holders in different racks at once (`fabric.images.push`). What is wrong is known as early as it can
be, and a push that fails, or whose client goes away, is aborted at the holders: nothing half remains.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from starlette.requests import ClientDisconnect

from fabric.api.contents import Contents
from fabric.api.control import ControlPlane, wall_ms
from fabric.api.problems import BAD_IMAGE, DIGEST, STALLED, STORE_FULL, TOO_LARGE, ProblemError, invalid, unavailable
from fabric.images.archive import Checker, is_program
from fabric.images.errors import BadImage, DigestMismatch, EmptyImage, ImageError, ImageTooLarge, PushFailed
from fabric.images.protocol import Holder
from fabric.images.push import REDUNDANCY, Push, PushResult
from fabric.records import Image

PIECE_BYTES = 1 << 20
_DIGEST = re.compile(r"(sha256|b3):[0-9a-f]{64}")
_STRUCTURED = re.compile(r"sha-256=:([A-Za-z0-9+/]{43}=):")


def expected_digest(header: str | None, query: str | None) -> str | None:
    """The digest that the client gave: `Content-Digest` as RFC 9530 has it (sha-256=:…:) or as this fabric writes
    digests, or `?digest=`. 422 when it is neither, or when both were given and differ."""
    from_header = _digest("Content-Digest", header) if header else None
    from_query = _digest("digest", query) if query else None
    if from_header and from_query and from_header != from_query:
        raise invalid("digest", f"the same as Content-Digest, {from_header}", from_query)
    return from_header or from_query


def _digest(where: str, text: str) -> str:
    if structured := _STRUCTURED.fullmatch(text.strip()):
        try:
            return "sha256:" + base64.b64decode(structured[1], validate=True).hex()
        except binascii.Error:
            pass
    if _DIGEST.fullmatch(text.strip().lower()):
        return text.strip().lower()
    raise invalid(where, "sha256:<64 hex digits>, b3:<64 hex digits> or sha-256=:<base64>:", text)


class Pushing:
    """The uploads of one API process."""

    def __init__(self, control: ControlPlane, contents: Contents) -> None:
        self._control = control
        self._contents = contents
        self.under_way = 0

    async def push(self, name: str, size: int | None, digest: str | None, content: AsyncIterator[bytes]) -> Image:
        """Take `content` as image `name`. `size`: of the content, when the client said. Returns when two holders in
        different racks have it whole, and its record is written."""
        limits = self._control.limits
        if size is not None and size > limits.image_bytes:
            raise ProblemError(TOO_LARGE, f"image {name}: expected at most {limits.image_bytes} bytes, found {size}")
        await self._control.require_leaders("storage")
        if self.under_way >= limits.max_pushes:
            raise unavailable(f"{self.under_way} images are being pushed through this API already; wait for one.", 5)
        self.under_way += 1
        try:
            async with aclosing(_Upload(self._control, self._contents, name, digest)) as upload:
                return await upload.run(size, content)
        finally:
            self.under_way -= 1


class _Upload:
    def __init__(self, control: ControlPlane, contents: Contents, name: str, digest: str | None) -> None:
        self._control = control
        self._contents = contents
        self._name = name
        self._digest = digest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"push-{name}")
        self._push: Push | None = None
        self._checker = Checker()
        self._head = b""

    async def aclose(self) -> None:
        """Abort, unless it was finished."""
        loop = asyncio.get_running_loop()
        if self._push is not None:
            await asyncio.shield(loop.run_in_executor(self._thread, self._push.abort))
        self._thread.shutdown(wait=False)

    async def run(self, size: int | None, content: AsyncIterator[bytes]) -> Image:
        try:
            holders = await self._stores(size or 0)
            loop = asyncio.get_running_loop()
            self._push = await loop.run_in_executor(self._thread, self._begin, holders)
            await self._feed_all(content)
            result = await loop.run_in_executor(self._thread, self._finish)
        except ImageError as error:
            raise self._problem(error) from error
        record = Image(
            name=self._name,
            digest=result.digest,
            size=result.size,
            kind="executable" if is_program(self._head) else "tar",
            holders=tuple(holder.node for holder in result.holders),
            pushed_ms=wall_ms(),
            content=result.content_digest or "",
        )
        try:
            await self._contents.name(record, result.holders)
        except BaseException:
            self._control.spawn(self._contents.let_go(result.digest), f"content of {self._name}")
            raise
        return record

    async def _stores(self, size: int) -> tuple[Holder, ...]:
        limits = self._control.limits
        picked = await self._control.pick_stores(size, limits.push_spares, self._name, limits.holders_wait_s)
        racks = {ref.rack for ref in picked.chosen}
        if len(racks) < REDUNDANCY:
            silent = f"; silent: {', '.join(picked.silent)}" if picked.silent else ""
            detail = (
                f"An image needs {REDUNDANCY} storage nodes in different racks with room for {size} bytes, found "
                f"{len(picked.chosen)} in {len(racks)} racks{silent}."
            )
            raise ProblemError(STORE_FULL, detail) if size and not picked.silent else unavailable(detail)
        return tuple(Holder(node=ref.node, rack=ref.rack, endpoint=ref.endpoint) for ref in picked.chosen)

    async def _feed_all(self, content: AsyncIterator[bytes]) -> None:
        """Fill one piece while the one before is at work."""
        loop = asyncio.get_running_loop()
        limits = self._control.limits
        piece = bytearray()
        received = 0
        at_work: asyncio.Future[None] | None = None
        source = aiter(content)
        try:
            while True:
                try:
                    async with asyncio.timeout(limits.upload_idle_s):
                        data = await anext(source)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise ProblemError(
                        STALLED, f"image {self._name}: nothing came for {limits.upload_idle_s:g} s; push it again"
                    ).closing() from None
                received += len(data)
                if received > limits.image_bytes:
                    raise ProblemError(
                        TOO_LARGE, f"image {self._name}: expected at most {limits.image_bytes} bytes, found more"
                    )
                piece += data
                if at_work is not None and at_work.done():
                    await at_work  # raises what went wrong, as soon as it is known
                    at_work = None
                if len(piece) >= PIECE_BYTES:
                    if at_work is not None:
                        await at_work
                    at_work = loop.run_in_executor(self._thread, self._take, piece)
                    piece = bytearray()
            if at_work is not None:
                await at_work
                at_work = None
            if piece:
                await loop.run_in_executor(self._thread, self._take, piece)
        finally:
            if at_work is not None:
                at_work.cancel()

    # --- on the push's thread --------------------------------------------------------------------------------------

    def _begin(self, holders: tuple[Holder, ...]) -> Push:
        return Push(
            holders,
            name=self._name,
            expected_digest=self._digest,
            redundancy=REDUNDANCY,
        )

    def _take(self, piece: bytearray) -> None:
        assert self._push is not None
        if len(self._head) < 6:
            self._head += bytes(piece[:6])
        self._checker.feed(piece)
        self._push.feed(piece)

    def _finish(self) -> PushResult:
        assert self._push is not None
        if self._head:  # an empty upload is told by the push, in better words
            self._checker.finish()
        return self._push.finish()

    def _problem(self, error: ImageError) -> ProblemError:
        text = str(error) if str(error).startswith("image") else f"image {self._name}: {error}"
        match error:
            case DigestMismatch():
                return ProblemError(DIGEST, text)
            case EmptyImage() | BadImage():
                return ProblemError(BAD_IMAGE, text)
            case ImageTooLarge():
                return ProblemError(TOO_LARGE, text)
            case PushFailed(reasons=reasons):
                if error.digest is not None:
                    self._control.spawn(self._contents.let_go(error.digest), f"content of {self._name}")
                told = [f"{node}: {reason}" for node, reason in reasons]
                if reasons and all("(full)" in reason for _, reason in reasons):
                    return ProblemError(STORE_FULL, text, reasons=told)
                return unavailable(text)
            case _:
                return unavailable(text)


async def drained(content: AsyncIterator[bytes], wait_s: float) -> bool:
    """Read on and throw away, so that a client that is still sending gets to read why it was refused. False when it
    goes on for too long: the connection is to be closed then."""
    try:
        async with asyncio.timeout(wait_s):
            async for _ in content:
                pass
    except (TimeoutError, ClientDisconnect):
        return False
    return True
