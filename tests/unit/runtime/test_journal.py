"""The journal on a real disk: what survives, what is cut, what is refused."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import random
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from fabric.runtime.frames import Put, frame_of
from fabric.runtime.journal import (
    COMPACT_MIN_BYTES,
    LOG,
    MAX_VALUE_BYTES,
    NEW_LOG,
    Journal,
    JournalCorrupt,
    JournalError,
    JournalInUse,
    Writer,
)
from tests.unit.runtime.until import until


def run(body: Callable[[Writer], Awaitable[None]]) -> None:
    async def main() -> None:
        writer = Writer()
        try:
            await body(writer)
        finally:
            await asyncio.to_thread(writer.close)

    asyncio.run(main())


async def put(journal: Journal, *puts: Put, deletes: tuple[str, ...] = ()) -> JournalError | None:
    answered: asyncio.Future[JournalError | None] = asyncio.get_running_loop().create_future()
    journal.append(puts, deletes, answered.set_result)
    return await asyncio.wait_for(answered, 10)


def unlocked(directory: Path) -> bool:
    """Whether nobody has the journal open. (In a process of its own: this one may hold it.)"""
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, directory], capture_output=True, check=False).returncode == 0


async def closed(journal: Journal) -> None:
    journal.close()
    await until(lambda: unlocked(journal.directory), what="the journal to be unlocked")


def contents(directory: Path) -> dict[str, bytes]:
    """Open, load, close."""
    found: dict[str, bytes] = {}

    async def body(writer: Writer) -> None:
        journal = Journal(directory, writer)
        found.update(journal.load())
        await closed(journal)

    run(body)
    return found


def test_what_was_appended_is_there_after_a_restart(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path / "deep" / "journal", writer)
        assert journal.load() == {}
        assert await put(journal, ("a", b"1"), ("b", b"\x00\xff")) is None
        assert await put(journal, ("a", b"2"), ("c", b""), deletes=("b", "never there")) is None
        await closed(journal)

    run(body)
    assert contents(tmp_path / "deep" / "journal") == {"a": b"2", "c": b""}


def test_appends_are_answered_in_order_and_never_from_inside(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path, writer)
        journal.load()
        answered: list[int] = []
        for number in range(500):
            journal.append([("n", str(number).encode())], (), lambda _error, number=number: answered.append(number))
        assert answered == []
        await until(lambda: len(answered) == 500)
        assert answered == list(range(500))
        assert writer.appends == 500
        assert writer.groups < 250, "appends that wait for the disk go there together"
        await closed(journal)

    run(body)
    assert contents(tmp_path) == {"n": b"499"}


def test_many_journals_share_a_writer(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journals = [Journal(tmp_path / str(number), writer) for number in range(20)]
        for journal in journals:
            journal.load()
        errors = await asyncio.gather(*(put(journal, ("who", journal.directory.name.encode())) for journal in journals))
        assert errors == [None] * 20
        for journal in journals:
            journal.close()

    run(body)
    for number in range(20):
        assert contents(tmp_path / str(number)) == {"who": str(number).encode()}


def filled(directory: Path, frames: int = 5) -> bytes:
    """A log of `frames` frames, key0 … with 100 bytes each."""

    async def body(writer: Writer) -> None:
        journal = Journal(directory, writer)
        journal.load()
        for number in range(frames):
            assert await put(journal, (f"key{number}", bytes(100))) is None
        await closed(journal)

    run(body)
    return (directory / LOG).read_bytes()


def test_a_torn_tail_is_cut_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    last = whole.rindex(b"FJ1\n")
    keys = [f"key{number}" for number in range(4)]

    async def body(writer: Writer) -> None:
        for end in (last + 1, last + 4, last + 19, last + 20, last + 21, len(whole) - 1):
            (tmp_path / LOG).write_bytes(whole[:end])
            journal = Journal(tmp_path, writer)
            assert sorted(journal.load()) == keys
            assert journal.cut_bytes == end - last
            assert await put(journal, ("after", b"x")) is None
            await closed(journal)
            journal = Journal(tmp_path, writer)
            assert sorted(journal.load()) == ["after", *keys]
            assert journal.cut_bytes == 0
            await closed(journal)
        for garbage in (bytes(5000), random.Random(7).randbytes(5000)):  # as a file system leaves it after a power cut
            (tmp_path / LOG).write_bytes(whole[:last] + garbage)
            journal = Journal(tmp_path, writer)
            assert sorted(journal.load()) == keys
            assert journal.cut_bytes == 5000
            await closed(journal)

    run(body)


def test_damage_in_the_middle_is_refused_with_the_file_the_place_and_what_to_do(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    second = whole.index(b"FJ1\n", 1)
    last = whole.rindex(b"FJ1\n")

    async def body(writer: Writer) -> None:
        for place in (second, second + 5, second + 13, second + 17, second + 30):
            damaged = bytearray(whole)
            damaged[place] ^= 0x40
            (tmp_path / LOG).write_bytes(damaged)
            journal = Journal(tmp_path, writer)
            with pytest.raises(JournalCorrupt, match=rf"{tmp_path}/log: damaged at byte {second} .*move the agent's"):
                journal.load()
            journal.close()
            assert (tmp_path / LOG).read_bytes() == damaged, "nothing is changed in a damaged log"
            await until(lambda: unlocked(tmp_path))
        (tmp_path / LOG).write_bytes(whole[:second] + whole[last:])  # frames are missing
        journal = Journal(tmp_path, writer)
        with pytest.raises(JournalCorrupt, match=f"damaged at byte {second}"):
            journal.load()
        journal.close()

    run(body)


def test_a_whole_frame_with_another_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(frame_of(1, [("key", 7)], []))  # type: ignore[list-item]

    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path, writer)
        with pytest.raises(JournalCorrupt, match=r"makes no sense.*another version"):
            journal.load()
        journal.close()

    run(body)


def test_the_log_is_compacted_and_nothing_is_lost(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path, writer)
        journal.load()
        assert await put(journal, ("kept", b"k" * 1000)) is None
        for number in range(60):
            assert await put(journal, (f"k{number % 3}", bytes([number]) * 100_000)) is None
        assert journal.compactions > 0
        assert (tmp_path / LOG).stat().st_size < COMPACT_MIN_BYTES + 500_000
        assert await put(journal, deletes=("k0",)) is None
        assert await put(journal, ("after", b"x")) is None
        await closed(journal)
        assert not (tmp_path / NEW_LOG).exists()

    run(body)
    expected = {"kept": b"k" * 1000, "k1": bytes([58]) * 100_000, "k2": bytes([59]) * 100_000, "after": b"x"}
    assert contents(tmp_path) == expected


def test_a_compaction_that_was_cut_off_changes_nothing(tmp_path: Path) -> None:
    whole = filled(tmp_path)
    (tmp_path / NEW_LOG).write_bytes(whole[:50])
    assert sorted(contents(tmp_path)) == [f"key{number}" for number in range(5)]
    assert not (tmp_path / NEW_LOG).exists()


def test_a_compaction_without_room_leaves_the_old_log_in_use(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path, writer)
        journal.load()
        (tmp_path / NEW_LOG).mkdir()  # so it can't be created
        for number in range(15):
            assert await put(journal, ("k", bytes([number]) * 100_000)) is None
        assert journal.compactions == 0
        (tmp_path / NEW_LOG).rmdir()
        for number in range(15):
            assert await put(journal, ("k", bytes([100 + number]) * 100_000)) is None
        assert journal.compactions == 1
        await closed(journal)

    run(body)
    assert contents(tmp_path) == {"k": bytes([114]) * 100_000}


def test_a_second_agent_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path, writer)
        assert not unlocked(tmp_path)
        with pytest.raises(JournalInUse, match="another agent has it open; stop that agent, or give"):
            Journal(tmp_path, writer)
        journal.close()
        assert unlocked(tmp_path)

    run(body)


def test_a_disk_that_knows_no_locks_is_not_taken_for_another_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    async def body(writer: Writer) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(JournalError, match=r"can't be locked: .*No locks available") as raised:
            Journal(tmp_path, writer)
        assert not isinstance(raised.value, JournalInUse)

    run(body)


def test_what_can_not_be_written_ends_its_journal_and_not_those_of_others(tmp_path: Path) -> None:
    """Their thread is one: without it every agent of the process would wait for ever."""

    async def body(writer: Writer) -> None:
        ours, others = Journal(tmp_path / "ours", writer), Journal(tmp_path / "others", writer)
        for journal in (ours, others):
            journal.load()
        error = await put(ours, ("\ud800", b"no text"))
        assert error is not None
        assert "a write failed, nothing more is kept" in str(error)
        assert await put(others, ("k", b"v")) is None
        await closed(ours)
        await closed(others)

    run(body)
    assert contents(tmp_path / "others") == {"k": b"v"}


def test_a_directory_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def body(writer: Writer) -> None:
        with pytest.raises(JournalError, match="expected a directory to write to"):
            Journal(tmp_path / "file", writer)
        (tmp_path / "journal" / LOG).mkdir(parents=True)
        journal = Journal(tmp_path / "journal", writer)
        with pytest.raises(JournalError, match="can't be read"):
            journal.load()
        journal.close()

    run(body)


def test_entries_out_of_bounds_are_refused(tmp_path: Path) -> None:
    async def body(writer: Writer) -> None:
        journal = Journal(tmp_path, writer)
        journal.load()
        with pytest.raises(ValueError, match=f"at most {MAX_VALUE_BYTES} bytes"):
            journal.append([("k", bytes(MAX_VALUE_BYTES + 1))], (), lambda _: None)
        with pytest.raises(ValueError, match="at most 256 characters"):
            journal.append([("k" * 257, b"")], (), lambda _: None)
        with pytest.raises(ValueError, match="in one step"):
            journal.append([(f"k{number}", bytes(MAX_VALUE_BYTES)) for number in range(9)], (), lambda _: None)
        assert await put(journal, ("k", bytes(MAX_VALUE_BYTES))) is None
        await closed(journal)

    run(body)


def in_process(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_full_disk_is_told_and_stays_told(tmp_path: Path) -> None:
    """The kernel refuses to let the file grow (RLIMIT_FSIZE), as it would on a full disk."""
    result = in_process(
        """
        import asyncio, resource, sys
        from pathlib import Path
        from fabric.runtime.journal import Journal, Writer

        async def main():
            writer = Writer()
            journal = Journal(Path(sys.argv[1]), writer)
            journal.load()

            async def put(key, size):
                answered = asyncio.get_running_loop().create_future()
                journal.append([(key, bytes(size))], (), answered.set_result)
                return await answered

            assert await put("first", 10) is None
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            print(await put("large", 50_000))
            print(await put("small", 10))
            writer.close()

        asyncio.run(main())
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert f"{tmp_path}/log: a write failed" in first
    assert first == second
    assert contents(tmp_path) == {"first": bytes(10)}


def test_killed_at_any_moment_it_holds_what_it_said_it_holds(tmp_path: Path) -> None:
    code = """
        import asyncio, sys
        from pathlib import Path
        from fabric.runtime.journal import Journal, Writer

        async def main():
            writer = Writer()
            journal = Journal(Path(sys.argv[1]), writer)
            number = int(journal.load().get("n", b"0"))
            durable = asyncio.get_running_loop().create_future()
            while True:
                number += 1
                text = str(number)
                filler = ("filler", bytes(20_000))
                journal.append([("n", text.encode()), filler], (), lambda _, text=text: print(text, flush=True))
                await asyncio.sleep(0.0001)

        asyncio.run(main())
    """
    told = 0
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(100):
            told = int(process.stdout.readline())
        process.kill()
        rest = process.communicate(timeout=10)[0].splitlines()
        told = int(rest[-1]) if rest else told
        assert int(contents(tmp_path)["n"]) >= told
