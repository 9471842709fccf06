"""A port that stays ours while its server is not there."""

from __future__ import annotations

import socket


class Ports:
    """Ports that are bound as long as this lives: the system gives them to nobody who wants any port, neither before
    their server listens there, seconds later, nor while it is restarted. A server that sets SO_REUSEADDR, as ours do,
    may listen there all the same."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def hold(self, host: str, port: int = 0) -> int:
        """`port`, or a free one for 0. Raises OSError when somebody listens there."""
        holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._held.append(holder)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, port))
        return int(holder.getsockname()[1])

    def close(self) -> None:
        for holder in self._held:
            holder.close()
