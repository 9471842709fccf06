"""A stand-in for the request API: answers as it is told, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], dict[str, Any]]


@dataclass
class Fake:
    """`refuse(method, path, n)`: an answer instead of the usual one for the n-th request (from 1), or None; a status of
    0 breaks the connection off."""

    url: str = ""
    refuse: Callable[[str, str, int], Answer | None] = lambda method, path, n: None
    asked: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """As it was before the first request."""
        self.asked.clear()
        self.made.clear()
        self.keys.clear()
        self.refuse = lambda method, path, n: None

    def answer(self, method: str, path: str, key: str, body: dict[str, Any]) -> Answer:
        with self.lock:
            self.asked.append((method, path, key, body))
            refused = self.refuse(method, path, len(self.asked))
            if refused is not None:
                return refused
            name = path.split("?")[0].rpartition("/")[2]
            if method == "POST":
                name = self.keys.setdefault(key, f"d-{len(self.keys):06}")
                self.made[name] = self.made.get(name) or self.view(name, "accepted", body["count"])
                return 202, {}, self.made[name]
            if name not in self.made:
                return 404, {}, {"title": "no such deployment"}
            one = self.made[name]
            if method == "DELETE":
                one |= {"state": "deleting", "final": False, "generation": one["generation"] + 1}
                return 202, {}, dict(one)
            if method == "PATCH":
                one |= {"state": "accepted", "final": False, "generation": one["generation"] + 1}
                return 202, {}, dict(one)
            state = "deleted" if one["state"] in ("deleting", "deleted") else "running"
            one |= {"state": state, "final": True, "settled": one["generation"], "index": one["index"] + 1}
            return 200, {}, one

    @staticmethod
    def view(name: str, state: str, count: int) -> dict[str, Any]:
        return {
            "id": name, "state": state, "final": False, "generation": 1, "settled": 0, "placed": count, "index": 1,
            "reason": "",
        }  # fmt: skip


@contextmanager
def fake_api() -> Iterator[Fake]:
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_ANY(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = self.headers.get("Idempotency-Key") or ""
            status, headers, told = fake.answer(self.command, self.path, key, json.loads(body or b"{}"))
            if not status:
                self.close_connection = True
                return
            content = json.dumps(told).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_ANY

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that hangs up

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
