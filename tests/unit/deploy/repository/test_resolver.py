"""Resolving a managent: a real repository, and servers that are slow, broken, lying; each a clear Unresolved."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.brp import Reply, read_request, write_error, write_reply
from deploy.configuration import Children
from deploy.documents import Reference
from deploy.matching import prints, with_told
from deploy.messages import Charge
from deploy.repository import client
from deploy.repository.content import CacheBusy, ContentCache
from deploy.repository.digests import digest_of
from deploy.repository.fetcher import Limits
from deploy.repository.resolver import file_name, repository_url
from deploy.resolved import Resolved, Unresolved
from tests.unit.deploy.repository.world import (
    IMPATIENT,
    INFORMATION,
    INITIATOR,
    LEAF,
    Behave,
    Scripted,
    answer,
    described,
    rename_over,
    run,
    says,
    scripted,
    serving_at,
    stack,
)
from tests.unit.runtime.until import until

ZERO = "blake3:" + "0" * 64
CODE = b"#!/bin/sh\n"


def listing(url: str) -> Behave:
    """A repository whose every managent gets one script from `url`, and nothing else."""
    return replying(lambda path: Reply("all", path, (Reference(url),)))


def replying(reply: Callable[[str], Reply]) -> Behave:
    async def behave(head: bytes, writer: asyncio.StreamWriter) -> None:
        request = read_request(head.partition(b"\r\n\r\n")[2], "request")
        writer.write(answer(write_reply(reply(request.id))))

    return behave


async def refused(folder: Path, path: str, repository: str, scope: str = "", **more: object) -> Unresolved:
    async with stack(folder, **more) as all:  # type: ignore[arg-type]
        with pytest.raises(Unresolved) as error:
            await all.resolve(path, repository, scope)
        return error.value


async def with_code_from(
    folder: Path, behave: Behave, ref: str = "/a.sh", **more: object
) -> tuple[Unresolved, Scripted]:
    """What comes of a managent whose code is on a server that behaves so."""
    async with scripted(behave) as server, scripted(listing(f"{server.url}{ref}")) as repository:
        return await refused(folder, "/a", repository.url, **more), server


def test_a_managent_gets_what_the_repository_describes(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            leaf = await all.resolve("/r1/n1", served.url)
            assert [(code.name, code.type, code.url) for code in leaf.code] == [
                ("leaf.py", "python", f"{served.url}leaf.py")
            ]
            assert leaf.code[0].file.read_bytes() == b"class Agent: ...\n"
            assert (leaf.install.env, leaf.managent.env) == ({"A": "1"}, {"A": "1"})
            assert leaf.managent.initiator is None
            code = digest_of(b"class Agent: ...\n")
            assert leaf.prints == prints([code], [digest_of(LEAF)], [digest_of(LEAF)])
            above = await all.resolve("/r1", served.url)
            assert above.code == ()
            assert above.managent.initiator is not None
            assert above.managent.initiator.children == (Children("count", count=10),)
            assert above.prints == prints([], [], [digest_of(INITIATOR)])
            told = await all.resolver.resolve("/r1/n1", Charge(served.url, start="./run", lease_s=30))
            assert told.prints == with_told(leaf.prints, "./run", 30)

    run(main())


def test_siblings_cost_one_request_each_and_share_what_they_get(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            first = await all.resolve("/r1/n0", served.url)
            before = served.server.requests
            others = await asyncio.gather(*(all.resolve(f"/r1/n{n}", served.url) for n in range(1, 101)))
            assert served.server.requests == before + 100
            assert all.client.connections_made <= 8
            assert {id(one.code[0]) for one in others} == {id(first.code[0])}
            assert {id(one.managent) for one in others} == {id(first.managent)}

    run(main())


def test_what_is_kept_of_a_reply_is_not_given_to_others_after_an_edit(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            for name in ("/a/b", "/a/c"):
                assert (await all.resolve(name, served.url)).managent.env == {"A": "1"}
            rename_over(served.root / "leaf.xml", LEAF.replace(b"1", b"2"))
            await all.client.fetch(f"{served.url}repository", limit_bytes=1 << 20)
            for name in ("/a/b", "/a/c"):
                assert (await all.resolve(name, served.url)).managent.env == {"A": "2"}

    run(main())


def test_many_that_come_at_once_fetch_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            await asyncio.gather(*(all.resolve(f"/r1/n{n}", served.url) for n in range(50)))
            assert served.server.requests == 50 + 2

    run(main())


def test_a_domain_repository_is_asked_for_what_is_left_of_the_path(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            assert (await all.resolve("/MA/M7/M-PA", served.url, "/MA/M7")).managent.initiator is not None
            with pytest.raises(Unresolved, match="/MA/M8: expected one below /MA/M7, the scope") as error:
                await all.resolve("/MA/M8", served.url, "/MA/M7")
            assert not error.value.again

    run(main())


def test_an_edit_between_reply_and_fetching_is_met_by_asking_again(tmp_path: Path) -> None:
    """The reply names the digest of what was there; the repository gives what is there now."""
    stale = iter([True])

    async def main() -> None:
        async with serving_at(described(tmp_path / "d")) as served, stack(tmp_path / "cache") as all:
            ask = all.resolver._asked

            async def behind(repository: str, identifier: str) -> tuple[Reply, bytes]:
                reply = await ask(repository, identifier)
                if next(stale, False):
                    rename_over(served.root / "leaf.xml", LEAF.replace(b"1", b"2"))
                    await all.client.fetch(f"{served.url}repository", limit_bytes=1 << 20)
                return reply

            all.resolver._asked = behind  # type: ignore[method-assign]
            assert (await all.resolve("/a/b", served.url)).managent.env == {"A": "2"}

    run(main())


@pytest.mark.parametrize(
    ("path", "information", "said"),
    [
        (
            "/a/b/c",
            INFORMATION,
            "/a/b/c: expected an entry of managent-code that matches, or the configuration of an init",
        ),
        ("/a", INFORMATION.replace(b"install-config", b"x-config"), "connect"),
    ],
)
def test_nothing_that_matches_is_the_descriptions_fault(
    tmp_path: Path, path: str, information: bytes, said: str
) -> None:
    async def main() -> None:
        if said == "connect":
            error = await refused(tmp_path / "cache", path, "http://127.0.0.1:1/", limits=IMPATIENT)
            assert error.again
            assert "expected to connect to 127.0.0.1:1" in str(error)
            return
        async with serving_at(described(tmp_path / "d", repository_xml=information)) as served:
            error = await refused(tmp_path / "cache", path, served.url)
            assert said in str(error)
            assert not error.again

    run(main())


def test_two_start_commands_name_both_documents(tmp_path: Path) -> None:
    information = INFORMATION.replace(b'<ref url="sub/initiator.xml"/>', b'<ref url="one.xml"/><ref url="two.xml"/>')
    one, two = (f'<configuration><managent start="{start}"/></configuration>'.encode() for start in ("./a", "./b"))

    async def main() -> None:
        root = described(tmp_path / "d", repository_xml=information, one_xml=one, two_xml=two)
        async with serving_at(root) as served:
            error = await refused(tmp_path / "cache", "/a", served.url)
            assert not error.again
            assert f"found './a' in {served.url}one.xml and './b' in {served.url}two.xml" in str(error)

    run(main())


# --- repositories that are none --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said_by_server", "again", "said"),
    [
        (answer(write_error("bad-request", "no such thing"), status="400 Bad"), False, "bad-request: no such thing"),
        (answer(b"<html>oops</html>", status="404 Not Found"), False, "HTTP status 404: no reason that could be read"),
        (answer(b"", status="503 Busy"), True, "HTTP status 503"),
        (answer(b"<reply/>"), False, "expected <type>, found none"),
        (answer(b"<!DOCTYPE x><reply/>"), False, "expected no DOCTYPE"),
        (answer(write_reply(Reply("all", "/other"))), False, "found one with status 200 for /other"),
        (answer(write_reply(Reply("installation-code", "/a"))), False, "to a request for installation-code"),
        (answer(b"", length=(1 << 20) + 1), False, "expected at most 1,048,576 bytes, found 1,048,577 announced"),
        (answer(b"<reply>", length=100), True, "expected a whole HTTP/1.1 answer, found: peer closed connection"),
        (b"HTTP/1.1 200 OK\r\n\r\n<reply/>", False, "expected Content-Length or chunks"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", True, "expected a whole HTTP/1.1 answer"),
        (b"", True, "expected an answer, found nothing for 0.3 s"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000, True, "expected a whole HTTP/1.1 answer"),
    ],
)
def test_a_repository_that_gives_no_reply_is_told(
    tmp_path: Path, said_by_server: bytes, again: bool, said: str
) -> None:
    async def behave(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(said_by_server)
        if said_by_server:
            await writer.drain()
            writer.close()

    async def main() -> None:
        async with scripted(behave) as server, stack(tmp_path / "cache") as all:
            with pytest.raises(Unresolved) as error:
                await all.resolver._ask(f"{server.url}/repository", "/a")
            assert said in str(error.value)
            assert error.value.again == again

    run(main())


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    reply = answer(write_reply(Reply("all", "/a", (Reference("http://127.0.0.1:1/x", ZERO),))))
    broken = [answer(b"", status="503 Busy"), answer(b"", status="500 Oops")]

    async def main() -> None:
        async with scripted(says(*broken, reply)) as server, stack(tmp_path / "cache") as all:
            assert (await all.resolver.ask(server.url, "/a")).id == "/a"
            assert len(server.asked) == 3

    run(main())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://127.0.0.1/", "expected an http or https URL"),
        ("http:///x", "expected an http or https URL"),
        ("http://127.0.0.1:99999/", "expected an http or https URL"),
        ("http://user:secret@127.0.0.1/", "expected a URL without user and password"),
    ],
)
def test_a_repository_that_has_no_address_is_told_and_no_secret_with_it(tmp_path: Path, url: str, said: str) -> None:
    error = run(refused(tmp_path / "cache", "/a", url))
    assert not error.again
    assert said in str(error)
    assert "secret" not in str(error)


# --- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["404 Not Found", "410 Gone", "403 Forbidden"])
def test_a_reference_that_is_not_there_is_told_at_once(tmp_path: Path, status: str) -> None:
    error, server = run(with_code_from(tmp_path / "cache", says(answer(b"", status=status))))
    assert str(error) == f"{server.url}/a.sh: expected it to be there, found HTTP status {status[:3]}"
    assert not error.again
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (says(answer(b"", status="500 Oops")), "found HTTP status 500"),
        (says(answer(b"", status="429 Later")), "found HTTP status 429"),
        (says(b""), "found nothing for 0.3 s"),
        (says(answer(CODE, length=len(CODE) - 3)), "bytes as announced, found more"),
    ],
    ids=["error", "later", "silent", "too much"],
)
def test_a_server_that_fails_is_tried_three_times(tmp_path: Path, behave: Behave, said: str) -> None:
    error, server = run(with_code_from(tmp_path / "cache", behave))
    assert said in str(error)
    assert error.again
    assert len(server.asked) == 3


def test_half_a_download_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async def half(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"x" * 1000, length=2000))
        writer.close()

    error, server = run(with_code_from(tmp_path / "cache", half))
    assert "expected a whole HTTP/1.1 answer, found: peer closed connection" in str(error)
    assert error.again
    assert len(server.asked) == 3
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]


def test_half_a_download_in_chunks_is_told(tmp_path: Path) -> None:
    async def half(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        writer.close()

    error, _ = run(with_code_from(tmp_path / "cache", half))
    assert error.again
    assert "expected a whole HTTP/1.1 answer" in str(error)


def test_a_slow_server_is_given_up_in_all_even_if_it_never_stalls(tmp_path: Path) -> None:
    async def trickle(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", length=1 << 20))
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.to_thread(writer.get_extra_info, "peername")

    quick = client.Limits(stall_s=0.5, whole_s=0.3)
    error, _ = run(with_code_from(tmp_path / "cache", trickle, quick=quick, limits=Limits(tries=1)))
    assert "expected the answer within 0.3 s" in str(error)
    assert error.again


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (answer(b"", length=(1 << 22) + 1), "expected at most 4,194,304 bytes, found 4,194,305 announced"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"500000\r\n"
            + b"x" * 0x500000
            + b"\r\n0\r\n\r\n",
            "expected at most 4,194,304 bytes, found more",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "expected Content-Length or chunks"),
    ],
    ids=["announced", "chunks", "no length"],
)
def test_a_reference_without_end_is_told(tmp_path: Path, code: bytes, said: str) -> None:
    error, server = run(with_code_from(tmp_path / "cache", says(code)))
    assert said in str(error)
    assert not error.again
    assert len(server.asked) == 1


@pytest.mark.parametrize("digest", [ZERO, "sha256:" + "0" * 64])
def test_a_wrong_digest_is_told_with_the_right_one(tmp_path: Path, digest: str) -> None:
    right = digest_of(CODE) if digest == ZERO else f"sha256:{hashlib.sha256(CODE).hexdigest()}"

    async def main() -> None:
        async with scripted(says(answer(CODE))) as server:
            url = f"{server.url}/a.sh"
            async with scripted(replying(lambda path: Reply("all", path, (Reference(url, digest),)))) as repository:
                error = await refused(tmp_path / "cache", "/a", repository.url)
                assert str(error) == f"{url}: expected {digest}, found {right}"
                assert not error.again
                assert len(repository.asked) == 2, "asked once more, whether the description has changed"
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]

    run(main())


def test_a_right_sha256_is_good_and_needs_no_second_fetching(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted(says(answer(CODE))) as server:
            ref = Reference(f"{server.url}/a.sh", f"sha256:{hashlib.sha256(CODE).hexdigest()}", "script")
            async with (
                scripted(replying(lambda path: Reply("all", path, (ref,)))) as repository,
                stack(tmp_path / "cache") as all,
            ):
                for _ in range(3):
                    resolved = await all.resolve("/a", repository.url)
                    assert resolved.prints == prints([digest_of(CODE)], [], [])
                assert len(server.asked) == 1

    run(main())


def test_without_a_digest_what_has_not_changed_is_not_sent_again(tmp_path: Path) -> None:
    async def tagged(head: bytes, writer: asyncio.StreamWriter) -> None:
        same = b'if-none-match: "v1"' in head
        writer.write(answer(b"", status="304 Not Modified") if same else answer(CODE, 'ETag: "v1"'))

    async def main() -> None:
        async with (
            scripted(tagged) as server,
            scripted(listing(f"{server.url}/a.sh")) as repository,
            stack(tmp_path / "cache") as all,
        ):
            for _ in range(3):
                resolved = await all.resolve("/a", repository.url)
                assert resolved.code[0].file.read_bytes() == CODE
            assert [b"if-none-match" in head for head in server.asked] == [False, True, True]

    run(main())


def test_without_a_digest_what_has_changed_is_seen(tmp_path: Path) -> None:
    async def main() -> None:
        new = answer(b"new", 'ETag: "v2"')
        async with (
            scripted(says(answer(CODE, 'ETag: "v1"'), new)) as server,
            scripted(listing(f"{server.url}/a.sh")) as repository,
            stack(tmp_path / "cache") as all,
        ):
            first = await all.resolve("/a", repository.url)
            second = await all.resolve("/a", repository.url)
            assert (first.code[0].file.read_bytes(), second.code[0].file.read_bytes()) == (CODE, b"new")
            assert first.prints != second.prints

    run(main())


def test_not_modified_without_having_been_asked_so_is_no_answer(tmp_path: Path) -> None:
    error, _ = run(with_code_from(tmp_path / "cache", says(answer(b"", status="304 Not Modified"))))
    assert "found 'not modified' unasked" in str(error)


# --- redirects -------------------------------------------------------------------------------------------------------


def redirecting(*to: str) -> Behave:
    """/0 leads to the first, /1 to the second, …; everything else is CODE."""

    async def behave(head: bytes, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ")[1].decode().partition("?")[0]
        number = int(path[1:]) if path[1:].isdecimal() else len(to)
        moved = number < len(to)
        writer.write(answer(b"", f"Location: {to[number]}", status="302 Found") if moved else answer(CODE))

    return behave


def test_redirects_are_followed(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            scripted(redirecting("/1", "2?x=y", "3", "4", "/a.sh")) as server,
            scripted(listing(f"{server.url}/0")) as repository,
            stack(tmp_path / "cache") as all,
        ):
            resolved = await all.resolve("/a", repository.url)
            assert resolved.code[0].file.read_bytes() == CODE
            assert [head.split(b" ")[1] for head in server.asked] == [b"/0", b"/1", b"/2?x=y", b"/3", b"/4", b"/a.sh"]

    run(main())


@pytest.mark.parametrize(
    ("to", "said"),
    [
        (["/1", "/0"], "/1: expected no redirects in a circle, found one back to http://127.0.0.1"),
        (["/0"], "expected no redirects in a circle"),
        (["/1", "/2", "/3", "/4", "/5", "/a.sh"], "expected at most 5 redirects, found more"),
        (["file:///etc/passwd"], "expected no redirect to something less safe, found one to file:///etc/passwd"),
        (["image://x"], "expected no redirect to something less safe"),
        ([""], "expected a URL to be redirected to"),
        (["http://user:secret@127.0.0.1/"], "expected a URL without user and password"),
    ],
)
def test_redirects_that_lead_nowhere_are_told(tmp_path: Path, to: list[str], said: str) -> None:
    error, _ = run(with_code_from(tmp_path / "cache", redirecting(*to), "/0"))
    assert said in str(error)
    assert not error.again


# --- files -----------------------------------------------------------------------------------------------------------


def from_file(folder: Path, url: str, *roots: Path) -> Resolved:
    async def main() -> Resolved:
        async with scripted(listing(url)) as repository, stack(folder, roots=roots) as all:
            return await all.resolve("/a", repository.url)

    return run(main())


def test_a_file_below_an_allowed_root_is_read(tmp_path: Path) -> None:
    root = tmp_path / "allowed"
    root.mkdir()
    (root / "a b.sh").write_bytes(CODE)
    (root / "link.sh").symlink_to("a b.sh")
    for name in ("a%20b.sh", "link.sh"):
        assert from_file(tmp_path / "cache", f"file://{root}/{name}", root).prints == prints([digest_of(CODE)], [], [])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{out}/secret", "expected a file below {root}, found {out}/secret"),
        ("{root}/../secret", "expected a file below {root}, found {out}/secret"),
        ("{root}/link", "expected a file below {root}, found {out}/secret"),
        ("{root}/%2e%2e/secret", "expected a file below {root}, found {out}/secret"),
        ("{root}er/secret", "expected a file below {root}, found {root}er/secret"),
        ("{root}", "expected a file below {root}, found {root}"),
        ("{root}/folder", "expected a file, found something else"),
        ("{root}/pipe", "expected a file, found something else"),
        ("{root}/gone", "expected a file that can be read: No such file"),
        ("{root}/large", "expected at most 4,194,304 bytes, found 4,194,305"),
        ("{root}/a%00b", "expected file:///path"),
    ],
)
def test_a_file_elsewhere_is_not_read(tmp_path: Path, name: str, said: str) -> None:
    root = tmp_path / "allowed"
    (root / "folder").mkdir(parents=True)
    Path(f"{root}er").mkdir()
    for secret in (tmp_path / "secret", Path(f"{root}er") / "secret"):
        secret.write_text("x")
    (root / "link").symlink_to("../secret")
    (root / "large").write_bytes(b"x" * ((1 << 22) + 1))
    os.mkfifo(root / "pipe")
    with pytest.raises(Unresolved) as error:
        from_file(tmp_path / "cache", f"file://{name.format(root=root, out=tmp_path)}", root)
    assert said.format(root=root, out=tmp_path) in str(error.value)
    assert not error.value.again


def test_without_roots_no_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CODE)
    with pytest.raises(Unresolved, match="an allowed root"):
        from_file(tmp_path / "cache", f"file://{tmp_path}/a")
    with pytest.raises(Unresolved, match="expected file:///path"):
        from_file(tmp_path / "cache", f"file://host{tmp_path}/a", tmp_path)


def test_without_a_fabric_there_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(Unresolved, match="image://agent: expected a fabric to get images from, found none") as error:
        from_file(tmp_path / "cache", "image://agent")
    assert not error.value.again


# --- the cache -------------------------------------------------------------------------------------------------------


def test_files_in_use_stay_and_others_make_room(tmp_path: Path) -> None:
    async def main() -> None:
        contents = {f"/{n}": bytes([n]) * 1000 for n in range(4)}

        async def behave(head: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(contents[head.split(b" ")[1].decode()]))

        async with scripted(behave) as server:

            def one(path: str) -> Reply:
                digest = digest_of(contents[f"/{path[-1]}"])
                return Reply("all", path, (Reference(f"{server.url}/{path[-1]}", digest),))

            async with scripted(replying(one)) as repository, stack(tmp_path / "cache", cache_bytes=2500) as all:
                first = await all.resolve("/a0", repository.url)
                second = await all.resolve("/a1", repository.url)
                with pytest.raises(
                    Unresolved, match="expected room for 1,000 bytes more, found 2,000 of 2,500"
                ) as error:
                    await all.resolve("/a2", repository.url)
                assert error.value.again
                assert first.code[0].file.read_bytes() == contents["/0"]
                del first
                gc.collect()
                third = await all.resolve("/a2", repository.url)
                assert third.code[0].file.read_bytes() == contents["/2"]
                assert second.code[0].file.read_bytes() == contents["/1"]
                assert all.cache.path(digest_of(contents["/0"])) is None
                assert all.cache.bytes == 2000

    run(main())


def test_what_an_earlier_process_left_is_used_if_it_is_still_what_it_was(tmp_path: Path) -> None:
    async def main(spoil: bool) -> int:
        async with serving_at(tmp_path / "d") as served:
            async with stack(tmp_path / "cache") as all:
                file = (await all.resolve("/a/b", served.url)).code[0].file
            (tmp_path / "cache" / "x.partial").write_bytes(b"left by a crash")
            if spoil:
                file.chmod(0o600)
                file.write_bytes(b"spoilt")
            before = served.server.requests
            async with stack(tmp_path / "cache") as all:
                assert (await all.resolve("/a/b", served.url)).code[0].file.read_bytes() == b"class Agent: ...\n"
                assert not (tmp_path / "cache" / "x.partial").exists()
            return served.server.requests - before

    described(tmp_path / "d")
    assert run(main(spoil=False)) == 2, "the reply, the configuration"
    assert run(main(spoil=True)) == 3, "and the code"


def test_a_cache_is_one_process_s(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 1000)
    with pytest.raises(CacheBusy, match="expected a directory of this process alone, found one in use"):
        ContentCache(tmp_path, 1000)
    cache.close()
    ContentCache(tmp_path, 1000).close()


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://x/a/b.tar.gz", "b.tar.gz"),
        ("http://x/", "x"),
        ("image://agent-1", "agent-1"),
        ("http://x/a%2f..%2fb", "a_.._b"),
        ("http://x/..", "code"),
        ("http://x/.profile", "profile"),
    ],
)
def test_code_gets_a_file_name(url: str, name: str) -> None:
    assert file_name(url) == name


def test_a_repository_may_be_named_by_its_server() -> None:
    assert repository_url("http://x:1") == repository_url("http://x:1/") == "http://x:1/repository"
    assert repository_url("http://sos.hpl.hp.com:8080/cs/repository") == "http://sos.hpl.hp.com:8080/cs/repository"


def test_who_asks_may_go_away_and_the_others_get_theirs(tmp_path: Path) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def slowly(head: bytes, writer: asyncio.StreamWriter) -> None:
            await go.wait()
            writer.write(answer(CODE))

        async with (
            scripted(slowly) as server,
            scripted(listing(f"{server.url}/a.sh")) as repository,
            stack(tmp_path / "cache") as all,
        ):
            first, second = (asyncio.create_task(all.resolve("/a", repository.url)) for _ in range(2))
            await until(lambda: server.asked and len(repository.asked) == 2, what="both have asked")
            first.cancel()
            go.set()
            assert (await second).code[0].file.read_bytes() == CODE
            assert len(server.asked) == 1

    run(main())
