"""A repository over HTTP, asked by the standard library's client and by raw sockets: answers, bounds, edits, ends."""

from __future__ import annotations

import asyncio
import http.client
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from deploy.brp import Refusal, Reply, Request, read_reply, write_request
from deploy.documents import read_information
from deploy.repository.digests import digest_of
from deploy.repository.serving import Limits
from tests.unit.deploy.repository.world import (
    INFORMATION,
    INITIATOR,
    LEAF,
    Served,
    described,
    rename_over,
    run,
    serving_at,
)
from tests.unit.runtime.until import until

Headers = dict[str, str]


class Asker:
    """One connection of the standard library's, in a thread's step at a time."""

    def __init__(self, served: Served) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Headers | None = None
    ) -> tuple[int, Headers, bytes]:
        def go() -> tuple[int, Headers, bytes]:
            self._connection.request(method, path, body, headers or {})
            answer = self._connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

        return await asyncio.to_thread(go)

    async def brp(self, request: Request) -> tuple[int, Headers, Reply | Refusal]:
        status, headers, body = await self.ask("POST", "/repository", write_request(request))
        return status, headers, read_reply(body, "reply")

    def close(self) -> None:
        self._connection.close()


@asynccontextmanager
async def connected(served: Served) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def raw(served: Served, *sent: bytes) -> bytes:
    """Everything that comes back until the server closes."""
    async with connected(served) as (reader, writer):
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        return await reader.read()


def test_the_four_requests_get_their_references(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served:
            asker = Asker(served)
            status, headers, whole = await asker.brp(Request("all", "/r1/n1"))
            assert (status, headers["content-type"]) == (200, "application/xml; charset=utf-8")
            assert isinstance(whole, Reply)
            assert [(ref.url, ref.digest, ref.type) for ref in whole.code] == [
                (f"{served.url}leaf.py", digest_of(b"class Agent: ...\n"), "python")
            ]
            assert [ref.digest for ref in (*whole.install, *whole.managent)] == [digest_of(LEAF)] * 2
            for type in ("installation-code", "install-configuration", "managent-configuration"):
                _, _, part = await asker.brp(Request(type, "/r1/n1"))  # type: ignore[arg-type]
                assert isinstance(part, Reply)
                assert (part.type, part.id) == (type, "/r1/n1")
                kind = {"installation-code": "code", "install-configuration": "install"}.get(type, "managent")
                assert part.refs(kind) == whole.refs(kind)  # type: ignore[arg-type]
                assert len(part.code) + len(part.install) + len(part.managent) == 1
            _, _, nothing = await asker.brp(Request("all", "/a/b/c"))
            assert nothing == Reply("all", "/a/b/c")
            asker.close()

    run(main())


def test_figure_8s_request_is_answered(tmp_path: Path) -> None:
    figure = (Path(__file__).parents[1] / "figures" / "figure8_request.xml").read_bytes()
    information = INFORMATION.replace(b'xpath="/*/*"', b'path="*/customer_x/*"')

    async def main() -> None:
        async with serving_at(described(tmp_path / "d", repository_xml=information)) as served:
            asker = Asker(served)
            _, _, body = await asker.ask("POST", "/repository", figure)
            reply = read_reply(body, "reply")
            assert isinstance(reply, Reply)
            assert reply.id == "/dc_paloalto/customer_x/cluster_12"
            assert [ref.url for ref in reply.install] == [f"{served.url}leaf.xml"]
            asker.close()

    run(main())


def test_the_information_and_the_documents_have_etags(tmp_path: Path) -> None:
    big = os.urandom(3 << 20)

    async def main() -> None:
        async with serving_at(described(tmp_path / "d", leaf_py=big, more_txt=b"more")) as served:
            asker = Asker(served)
            status, headers, body = await asker.ask("GET", "/repository")
            information = read_information(body, "it")
            assert status == 200
            assert information.code[0].refs[0].digest == digest_of(big)
            assert headers["etag"] == f'"{headers["fabric-generation"]}"'
            for path, content in (
                ("/repository", body),
                ("/leaf.py", big),
                ("/leaf.xml?x=1", LEAF),
                ("/sub/initiator.xml", INITIATOR),
                ("/repository.xml", INFORMATION),
                ("/more.txt", b"more"),
            ):
                status, headers, found = await asker.ask("GET", path)
                assert (status, found == content) == (200, True), path
                status, head, nothing = await asker.ask("HEAD", path)
                assert (status, head["content-length"], nothing) == (200, str(len(content)), b"")
                again = {"If-None-Match": f'"x", W/{headers["etag"]}'}
                assert (await asker.ask("GET", path, headers=again))[::2] == (304, b"")
                assert (await asker.ask("GET", path, headers={"If-None-Match": '"x"'}))[0] == 200
            assert len(served.server.connections) == 1, "all on one connection"
            asker.close()

    run(main())


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/repository", b"<request", 400, "expected well-formed XML"),
        ("POST", "/repository", b"", 400, "found nothing"),
        ("POST", "/repository", b"<request><type>all</type><id>/a/../b</id></request>", 400, "found '..'"),
        ("POST", "/repository", b"<!DOCTYPE x><request/>", 400, "expected no DOCTYPE"),
        ("POST", "/repository", b" " * 4097, 413, "expected at most 4,096 bytes"),
        ("POST", "/leaf.xml", b"", 405, "expected GET, or POST to /repository, found POST /leaf.xml"),
        ("DELETE", "/repository", None, 405, "found DELETE /repository"),
        ("GET", "/gone.xml", None, 404, "gone.xml: expected a file that can be read"),
        ("GET", "/../secret", None, 404, "not beginning with a dot"),
        ("GET", "/%2e%2e/secret", None, 404, "not beginning with a dot"),
        ("GET", "//etc/passwd", None, 404, "names of ASCII letters"),
        ("GET", "/", None, 404, "names of ASCII letters"),
    ],
)
def test_what_is_not_answered_gets_an_error_as_xml(
    tmp_path: Path, method: str, path: str, body: bytes | None, status: int, said: str
) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served:
            asker = Asker(served)
            found, _, refusal = await asker.ask(method, path, body)
            error = read_reply(refusal, "reply")
            assert isinstance(error, Refusal)
            assert found == status
            assert said in error.text
            asker.close()

    run(main())


def test_a_pattern_that_takes_too_long_is_answered_with_its_entry(tmp_path: Path) -> None:
    slow = b'regex="(?:(?:a|a)(?:a|a)?)*/(?:(?:a|a)(?:a|a)?)*b|/.(?:(?:a|a)(?:a|a)?)*b"'

    async def main() -> None:
        information = INFORMATION.replace(b'xpath="/*/*"', slow, 1)
        async with serving_at(described(tmp_path / "d", repository_xml=information)) as served:
            asker = Asker(served)
            path = f"/x{'a' * 60}/{'a' * 60}"
            status, _, refusal = await asker.brp(Request("all", path))
            assert isinstance(refusal, Refusal)
            assert (status, refusal.code) == (422, "bad-match")
            assert "managent-code entry 1: regex=" in refusal.text
            asker.close()

    run(main())


def test_an_edit_is_served_at_once_and_a_broken_one_is_not(tmp_path: Path) -> None:
    root = described(tmp_path / "d")

    async def main() -> None:
        async with serving_at(root) as served:
            asker = Asker(served)

            async def generation() -> tuple[str, str]:
                _, headers, _ = await asker.ask("GET", "/repository")
                return headers["fabric-generation"], headers.get("fabric-broken", "")

            async def leaf() -> tuple[str, Headers]:
                _, headers, reply = await asker.brp(Request("all", "/a/b"))
                assert isinstance(reply, Reply)
                return reply.managent[0].digest, headers

            first, other = await generation(), LEAF.replace(b"1", b"2")
            assert (await leaf())[0] == digest_of(LEAF)
            rename_over(root / "leaf.xml", other)
            second = await generation()
            assert second[0] != first[0]
            digest, headers = await leaf()
            assert (digest, headers["fabric-generation"]) == (digest_of(other), second[0])
            assert (await asker.ask("GET", "/leaf.xml"))[2] == other

            rename_over(root / "leaf.xml", b"<configuration><oops/></configuration>")
            third = await generation()
            assert third[0] == second[0]
            assert third[1].startswith("repository.xml, install-config entry 1: leaf.xml: leaf.xml, line 1")
            digest, headers = await leaf()
            assert digest == digest_of(other)
            assert "fabric-broken" in headers
            assert (await asker.ask("GET", "/leaf.xml"))[2] == other, "what the reply names is what is given"

            rename_over(root / "leaf.xml", LEAF)
            assert await generation() == first
            assert "fabric-broken" not in (await leaf())[1]
            asker.close()

    run(main())


def test_brp_alone_sees_an_edit_soon(tmp_path: Path) -> None:
    root = described(tmp_path / "d")

    async def main() -> None:
        async with serving_at(root) as served:
            asker = Asker(served)
            rename_over(root / "leaf.xml", other := LEAF.replace(b"1", b"2"))
            digests: list[str] = []

            async def look() -> None:
                _, _, reply = await asker.brp(Request("all", "/a/b"))
                assert isinstance(reply, Reply)
                digests.append(reply.managent[0].digest)

            async with asyncio.timeout(5):
                while not digests or digests[-1] != digest_of(other):
                    await look()
            asker.close()

    run(main())


# --- connections -----------------------------------------------------------------------------------------------------

ASK = b"GET /leaf.xml HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /leaf.xml HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_requests_sent_ahead_are_answered_in_their_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d", more_txt=b"more")) as served:
            unknown = b"GET /more.txt HTTP/1.1\r\nHost: x\r\n\r\n"
            found = await raw(served, ASK + unknown + ASK * 300 + LAST)
            assert found.count(b"HTTP/1.1 200") == 303
            assert found.index(b"more") < found.index(LEAF, found.index(LEAF) + 1)

    run(main())


def test_requests_with_a_head_that_was_read_before_are_answered_as_the_first(tmp_path: Path) -> None:
    def post(id: str, *headers: str) -> bytes:
        body = write_request(Request("all", id))
        lines = ["POST /repository HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body

    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, connected(served) as (reader, writer):

            async def asked(*pieces: bytes) -> bytes:
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
                return head + await reader.readexactly(length)

            await asked(post("/a/b"))  # with a look at the directory, which takes a thread
            first = await asked(post("/a/b"))
            assert first.startswith(b"HTTP/1.1 200")
            assert b"<id>/a/b</id>" in first
            assert len(served.server.heads) == 1
            assert await asked(post("/a/c")) == first.replace(b"/a/b", b"/a/c")
            assert (await asked(post("//a/"))).startswith(b"HTTP/1.1 400")
            whole = post("/a/c")
            assert await asked(whole[:-5], whole[-5:]) == first.replace(b"/a/b", b"/a/c")
            assert await asked(post("/a/b")) == first
            assert len(served.server.heads) == 1
            writer.write(post("/a/b") + post("/a/c") + b"nonsense\r\n\r\n")
            writer.write_eof()
            left = await asyncio.wait_for(reader.read(), 10)
            assert left.startswith(first + first.replace(b"/a/b", b"/a/c") + b"HTTP/1.1 400")

    run(main())


def test_a_request_in_pieces_is_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served:
            pieces = [LAST[at : at + 7] for at in range(0, len(LAST), 7)]
            assert (await raw(served, *pieces)).endswith(LEAF)

    run(main())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 9_000 + b"\r\n\r\n", b"431"),
        (b"POST /repository HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n" + b"y" * 300_000, b"413"),
        (b"POST /repository HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
        (
            b"POST /repository HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"1000\r\n"
            + b"y" * 4096
            + b"\r\n1\r\ny\r\n",
            b"413",
        ),
    ],
    ids=["no request", "no host", "long header", "large body", "two lengths", "large chunks"],
)
def test_what_is_no_request_is_refused_and_the_refusal_is_heard(tmp_path: Path, sent: bytes, status: bytes) -> None:
    async def main() -> None:
        limits = Limits(request_s=0.5)
        async with serving_at(described(tmp_path / "d"), limits) as served:
            found = await raw(served, sent)
            assert found.split(b" ")[1] == status
            assert b"<error" in found

    run(main())


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"POST /repository HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"]
)
def test_who_does_not_go_on_is_cut_off(tmp_path: Path, sent: bytes) -> None:
    async def main() -> None:
        limits = Limits(idle_s=0.1, request_s=0.1)
        async with serving_at(described(tmp_path / "d"), limits) as served, connected(served) as (reader, writer):
            writer.write(sent)
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)

    run(main())


def test_who_does_not_take_its_answer_is_cut_off(tmp_path: Path) -> None:
    async def main() -> None:
        root = described(tmp_path / "d", leaf_py=os.urandom(64 << 20))
        async with serving_at(root, Limits(stalled_s=0.1)) as served:
            with socket.create_connection(("127.0.0.1", served.port)) as connection:
                connection.sendall(b"GET /leaf.py HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: served.server.connections, what="connected")
                await until(lambda: not served.server.connections, what="cut off")

    run(main())


def test_one_more_connection_than_there_may_be_takes_the_place_of_an_idle_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            serving_at(described(tmp_path / "d"), Limits(connections=3)) as served,
            connected(served) as (oldest, _),
            connected(served),
            connected(served),
        ):
            await until(lambda: len(served.server.connections) == 3, what="connected")
            assert (await raw(served, LAST)).endswith(LEAF)
            assert await oldest.read(1) == b""

    run(main())


def test_closing_lets_an_answer_be_finished(tmp_path: Path) -> None:
    big = os.urandom(16 << 20)

    async def main() -> None:
        async with serving_at(described(tmp_path / "d", leaf_py=big)) as served:
            async with connected(served) as (idle, _), connected(served) as (reader, writer):
                writer.write(b"GET /leaf.py HTTP/1.1\r\nHost: x\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                closing = asyncio.create_task(served.server.close())
                assert await reader.read() == big
                assert await idle.read() == b""
                await closing
            with pytest.raises(ConnectionError):
                await asyncio.open_connection("127.0.0.1", served.port)

    run(main())


def test_a_fault_of_the_handler_is_an_answer_and_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served:
            handler = served.server.handler

            def fails(*_: object) -> None:
                raise ZeroDivisionError("by test")

            faults: list[Callable[..., object]] = [fails]
            served.server.handler = lambda asked: faults.pop()() if faults else handler(asked)  # type: ignore[assignment,return-value]
            found = await raw(served, ASK + LAST)
            assert found.startswith(b"HTTP/1.1 500")
            assert found.endswith(LEAF)

    run(main())
    assert "by test" in caplog.text
