"""A program that takes the place of `fabric` on a host: as `fabric bootstub` does, it listens until it is told to end.

What its name ends with is how it behaves: "-fails" ends at once, "-silent" never listens. It notes each start in its
folder: the arguments, a line each.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from pathlib import Path


def main() -> None:
    words = sys.argv[1:]
    given = dict(zip(words[1::2], words[2::2], strict=False))
    with (Path(given["--dir"]) / "starts").open("a") as file:
        file.write(json.dumps(words) + "\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if given["--name"].endswith("-fails"):
        sys.exit(f"{given['--name']}: expected a better world, found this one")
    if not given["--name"].endswith("-silent"):
        socket.create_server(("127.0.0.1", 0)).accept()
    signal.pause()


if __name__ == "__main__":
    main()
