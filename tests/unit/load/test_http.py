"""Exchanges over real sockets: kept connections, every way that an answer can fail, and what is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from fabric.load import http
from fabric.load.http import Connections, NoAnswer

T = TypeVar("T")
OK = b"HTTP/1.1 202 Accepted\r\nX-Index: 7\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers each request of a connection with the next of `answers`; b"" hangs up, None says nothing. `heard`: the
    requests, of each connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.heard: list[list[bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[bytes] = []
        self.heard.append(mine)
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-le")]
                mine.append(head + (await reader.readexactly(int(length[0])) if length else b""))
                answer = self.answers.pop(0)
                if answer == b"":
                    break
                writer.write(answer or b"")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def talk(server: Server, ask: Callable[[Connections], Awaitable[T]]) -> T:
    async def main() -> T:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with asyncio.timeout(10), Connections(f"http://127.0.0.1:{port}") as connections:
            try:
                return await ask(connections)
            finally:
                listening.close()

    return asyncio.run(main())


def test_one_exchange_after_the_other_uses_one_connection() -> None:
    server = Server(OK, OK, OK)

    async def ask(api: Connections) -> list[int]:
        return [(await api.ask("POST", "/v1/x", {"a": n}, {"idempotency-key": "k"})).status for n in range(3)]

    assert talk(server, ask) == [202, 202, 202]
    assert [len(mine) for mine in server.heard] == [3]
    request = server.heard[0][1]
    assert request.startswith(b"POST /v1/x HTTP/1.1\r\n")
    assert b"idempotency-key: k" in request.lower()
    assert request.endswith(b'\r\n\r\n{"a":1}')


def test_exchanges_at_a_time_have_a_connection_each_and_all_are_used_again() -> None:
    server = Server(*[OK] * 8)

    async def ask(api: Connections) -> int:
        for _ in range(2):
            await asyncio.gather(*(api.ask("GET", "/v1/x") for _ in range(4)))
        return api.exchanges

    assert talk(server, ask) == 8
    assert [len(mine) for mine in server.heard] == [2, 2, 2, 2]


def test_an_answer_in_pieces_is_whole_and_its_headers_are_there() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nRetry-After: 3\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    async def ask(api: Connections) -> tuple[int, bytes, str]:
        answer = await api.ask("GET", "/v1/x")
        return answer.status, answer.content, answer.headers["retry-after"]

    assert talk(Server(chunked), ask) == (200, b"abcde", "3")


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    server = Server(closing, OK)

    async def ask(api: Connections) -> list[int]:
        return [(await api.ask("GET", "/v1/x")).status for _ in range(2)]

    assert talk(server, ask) == [200, 202]
    assert len(server.heard) == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"", "broke off"),
        (None, "no answer to GET /v1/x within 0.2 s"),
        (b"nonsense\r\n\r\n", "the answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\nshort", "no answer to GET /v1/x within"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + b"x" * 40, "expected an answer of at most 16 bytes"),
    ],
)
def test_what_is_no_answer_is_told_and_the_next_exchange_works(
    answer: bytes | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 16)

    async def ask(api: Connections) -> int:
        with pytest.raises(NoAnswer, match=says):
            await api.ask("GET", "/v1/x", answer_s=0.2)
        return (await api.ask("GET", "/v1/x")).status

    assert talk(Server(answer, OK), ask) == 202


def test_where_nobody_listens_there_is_no_answer() -> None:
    async def main() -> None:
        async with Connections("http://127.0.0.1:1") as api:
            with pytest.raises(NoAnswer, match=r"no connection to 127\.0\.0\.1:1"):
                await api.ask("GET", "/")

    asyncio.run(main())


@pytest.mark.parametrize("base", ["127.0.0.1:80", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(base: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        Connections(base)
