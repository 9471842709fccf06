"""Reading a tar archive that streams by: drives `fabric.images.tarwalk` from pieces of any size, in constant memory."""

from __future__ import annotations

from fabric.images.errors import BadImage
from fabric.images.manifest import Buffer
from fabric.images.tarwalk import Body, Layout, Limits, Member, Need, walk


class Receiver:
    """What is done with the members of an archive that streams by; this one does nothing."""

    def begin(self, body: Body) -> None: ...

    def data(self, data: memoryview) -> None: ...

    def end(self, member: Member) -> None: ...


class TarStream:
    """Drives `walk` from pieces of an uncompressed archive."""

    def __init__(self, limits: Limits, layout: Layout, receiver: Receiver) -> None:
        self.ended = False
        self._receiver = receiver
        self._walk = walk(limits, layout)
        self._header = bytearray()
        self._need = 0
        self._member: Member | None = None
        self._content = self._padding = 0  # bytes of the current member still to come
        self._step(None)

    def feed(self, data: Buffer) -> None:
        view = memoryview(data)
        while view and not self.ended:
            if self._member is not None:
                view = self._take_body(self._member, view)
            else:
                taken = self._need - len(self._header)
                self._header += view[:taken]
                view = view[taken:]
                if len(self._header) == self._need:
                    self._step(bytes(self._header))

    def finish(self) -> None:
        if self._content:
            assert self._member is not None
            raise BadImage(
                f"member {self._member.path!r}: expected {self._content} more bytes of its content, "
                "found the end of the input: it was cut off"
            )
        while not self.ended:
            self._step(b"")

    def _take_body(self, member: Member, view: memoryview) -> memoryview:
        taken = min(self._content, len(view))
        if taken:
            self._receiver.data(view[:taken])
            self._content -= taken
            view = view[taken:]
        skipped = min(self._padding, len(view)) if not self._content else 0
        self._padding -= skipped
        if not self._content and not self._padding:
            self._member = None
            self._receiver.end(member)
            self._step(b"")
        return view[skipped:]

    def _step(self, answer: bytes | None) -> None:
        self._header.clear()
        try:
            while True:
                wanted = next(self._walk) if answer is None else self._walk.send(answer)
                if isinstance(wanted, Need):
                    self._need = wanted.bytes
                    return
                self._receiver.begin(wanted)
                self._member = wanted.member
                self._content = wanted.member.size
                self._padding = wanted.padded_bytes - wanted.member.size
                if wanted.padded_bytes:
                    return
                self._receiver.end(wanted.member)
                self._member, answer = None, b""
        except StopIteration:
            self.ended = True
