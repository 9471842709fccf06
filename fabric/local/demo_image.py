"""The demo's image: a tar archive with an entry point and 64 MiB of real random bytes, so that nothing compresses.

The entry point is a small Python script that imports next to nothing: it listens at `answer.sock` in its own
directory, and tells whoever connects who it is, out of its own environment. It is run by the interpreter that runs the
demo, by its absolute path: a machine may have any other, or none, under the name python3.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import tempfile
from typing import IO, BinaryIO, cast

IMAGE_BYTES = 64 << 20
PIECE_BYTES = 4 << 20
MAX_SHEBANG = 126
SOCKET = "answer.sock"
FIELDS = ("deployment", "ordinal", "instance", "node", "rack", "flavor", "image")

_BODY = """
# An instance of the demo: tells whoever connects to answer.sock, in its directory, who it is.
import _socket, posix

names = {names!r}
words = [posix.environ.get(b"FABRIC_" + name.upper().encode(), b"").decode() for name in names]
pairs = ['"%s": "%s"' % pair for pair in zip(names, words)]
answer = ('{{%s, "pid": %d}}\\n' % (", ".join(pairs), posix.getpid())).encode()
try:
    posix.unlink("{socket}")
except FileNotFoundError:
    pass
listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
listener.bind("{socket}")
listener.listen(16)
print("listening", flush=True)
while True:
    number, _ = listener._accept()
    posix.write(number, answer)
    posix.close(number)
"""


def entrypoint() -> bytes:
    """Names in the environment are of [A-Za-z0-9._-], so the answer is JSON without escapes."""
    interpreter = os.path.realpath(sys.executable)
    first = f"#!{interpreter} -IS"
    if len(first) > MAX_SHEBANG or " " in interpreter:
        first = "#!/usr/bin/env -S python3 -I -S"
    return (first + "\n" + _BODY.format(names=FIELDS, socket=SOCKET)).encode()


def build(size: int = IMAGE_BYTES) -> tuple[BinaryIO, int]:
    """An open file without a name, at its start, and how many bytes it has: at least `size`."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with tarfile.open(fileobj=file, mode="w") as tar:
        script = entrypoint()
        _add(tar, "entrypoint", 0o755, len(script), io.BytesIO(script))
        _add(tar, "content.bin", 0o644, size, cast(IO[bytes], _Random(size)))
    total = file.tell()
    file.seek(0)
    return file, total


def _add(tar: tarfile.TarFile, name: str, mode: int, size: int, content: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    tar.addfile(member, content)


class _Random(io.RawIOBase):
    """So many random bytes, read once."""

    def __init__(self, length: int) -> None:
        self.left = length

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(self.left, PIECE_BYTES if size < 0 else size)
        self.left -= size
        return os.urandom(size)
