"""Connections of the HTTP client: kept, replaced, bounded, and over TLS."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from deploy.repository import client
from deploy.repository.client import HttpClient
from deploy.resolved import Unresolved
from tests.unit.deploy.repository.world import QUICK, answer, run, says, scripted
from tests.unit.runtime.until import until


def test_a_connection_is_kept_for_the_next_request() -> None:
    async def main() -> None:
        async with scripted(says(answer(b"x"))) as server:
            asker = HttpClient(QUICK)
            for _ in range(5):
                assert (await asker.ask("GET", server.url, limit_bytes=10)).body == b"x"
            assert asker.connections_made == 1
            await asker.close()

    run(main())


def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    async def once(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"x"))
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with scripted(once) as server:
            asker = HttpClient(QUICK)
            for _ in range(5):
                assert (await asker.ask("GET", server.url, limit_bytes=10)).body == b"x"
            assert 2 <= asker.connections_made <= 5
            await asker.close()

    run(main())


def test_a_kept_connection_that_closes_instead_of_answering_is_replaced() -> None:
    answered: list[int] = []

    async def every_other(head: bytes, writer: asyncio.StreamWriter) -> None:
        if id(writer) in answered:
            writer.close()
        else:
            answered.append(id(writer))
            writer.write(answer(b"x"))

    async def main() -> None:
        async with scripted(every_other) as server:
            asker = HttpClient(QUICK)
            for _ in range(3):
                assert (await asker.ask("GET", server.url, limit_bytes=10)).body == b"x"
            assert len(server.asked) == 5, "two were asked in vain on a kept connection"
            await asker.close()

    run(main())


def test_what_a_connection_still_brings_after_its_answer_is_not_the_next_ones() -> None:
    async def main() -> None:
        async with scripted(says(answer(b"one"), answer(b"two"))) as server:
            asker = HttpClient(QUICK)
            first = await asker.ask("GET", server.url, limit_bytes=10)
            kept = asker._lines[next(iter(asker._lines))].kept[0]
            kept.reader.feed_data(answer(b"forged"))
            assert (first.body, (await asker.ask("GET", server.url, limit_bytes=10)).body) == (b"one", b"two")
            await asker.close()

    run(main())


def test_an_answer_with_a_head_that_was_read_before_is_judged_as_strictly() -> None:
    async def main() -> None:
        short, long = answer(b"xy"), answer(b"x" * 20)
        async with scripted(says(short, long, short, short + b"z", long, short, short[:-1], short)) as server:
            asker = HttpClient(QUICK)
            for limit, body in ((20, b"xy"), (20, b"x" * 20), (20, b"xy")):
                assert (await asker.ask("GET", server.url, limit_bytes=limit)).body == body
            with pytest.raises(Unresolved, match="found more"):
                await asker.ask("GET", server.url, limit_bytes=20)
            with pytest.raises(Unresolved, match="at most 10 bytes, found 20"):
                await asker.ask("GET", server.url, limit_bytes=10)
            pieces: list[bytes] = []
            found = await asker.ask("GET", server.url, limit_bytes=10, sink=pieces.append)
            assert (found.body, pieces, found.headers) == (b"", [b"xy"], {"content-length": "2"})
            with pytest.raises(Unresolved, match="found nothing for"):
                await asker.ask("GET", server.url, limit_bytes=10)
            await asker.close()

    run(main())


def test_more_requests_than_connections_take_turns() -> None:
    limits = client.Limits(connections=3, connections_to_one=2, stall_s=2.0)
    under_way: list[int] = [0, 0]

    async def slowly(head: bytes, writer: asyncio.StreamWriter) -> None:
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.to_thread(lambda: None)
        under_way[0] -= 1
        writer.write(answer(b"x"))

    async def main() -> None:
        async with scripted(slowly) as server:
            asker = HttpClient(limits)
            await asyncio.gather(*(asker.ask("GET", server.url, limit_bytes=10) for _ in range(20)))
            assert (under_way[1], asker.connections_made) == (2, 2)
            await asker.close()

    run(main())


def test_connections_that_nobody_uses_are_closed_and_forgotten() -> None:
    async def main() -> None:
        async with scripted(says(answer(b"x"))) as server:
            asker = HttpClient(client.Limits(idle_s=0.05))
            await asker.ask("GET", server.url, limit_bytes=10)
            await until(lambda: not asker._lines, what="forgotten")
            await asker.ask("GET", server.url, limit_bytes=10)
            assert asker.connections_made == 2
            await asker.close()

    run(main())


def test_a_cancelled_request_leaves_no_connection_in_the_middle_of_an_answer() -> None:
    async def main() -> None:
        async with scripted(says(answer(b"half", length=8), answer(b"x"))) as server:
            asker = HttpClient(QUICK)
            first = asyncio.create_task(asker.ask("GET", server.url, limit_bytes=10))
            await until(lambda: server.asked, what="asked")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            assert (await asker.ask("GET", server.url, limit_bytes=10)).body == b"x"
            assert asker.connections_made == 2
            await asker.close()

    run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    found = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(found[1]), "-out", str(found[0]), "-days", "2", "-subj", "/CN=repository"]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return found


@pytest.mark.parametrize("trusted", [True, False])
def test_https_is_spoken_with_those_whose_certificate_is_trusted(
    trusted: bool, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)

    async def main() -> None:
        async with scripted(says(answer(b"", "Location: http://127.0.0.1:1/x", status="302 Found")), tls=tls) as server:
            asker = HttpClient(QUICK)
            if trusted:
                assert (await asker.ask("GET", server.url, limit_bytes=10)).status == 302
                with pytest.raises(Unresolved, match="expected no redirect to something less safe"):
                    await asker.fetch(server.url, limit_bytes=10)
            else:
                with pytest.raises(Unresolved, match="certificate verify failed"):
                    await asker.ask("GET", server.url, limit_bytes=10)
                assert server.asked == []
            await asker.close()

    run(main())
