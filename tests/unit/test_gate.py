"""The gate: nothing is performed before what stands before it is on the disk."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric.effects import Effect, Note, Persist
from fabric.gate import Gate
from fabric.runtime.frames import HEADER_BYTES, decode_payload, payload_at
from fabric.runtime.journal import LOG, Journal, Writer
from tests.unit.runtime.until import until


def on_disk(path: Path) -> set[str]:
    """Keys in the log, read as another process would."""
    data, position, sequence, keys = path.read_bytes(), 0, 0, set()
    while position < len(data):
        sequence += 1
        payload = payload_at(data, position, sequence)
        assert payload is not None
        puts, deletes = decode_payload(payload)
        keys |= {key for key, _ in puts}
        keys -= set(deletes)
        position += HEADER_BYTES + len(payload)
    return keys


class Scene:
    def __init__(self, directory: Path, writer: Writer) -> None:
        self.journal = Journal(directory, writer)
        self.journal.load()
        self.seen: list[tuple[str, set[str]]] = []
        self.failures: list[str] = []
        self.gate = Gate(self.journal, self.perform, self.failures.append)

    def perform(self, effect: Effect) -> None:
        assert isinstance(effect, Note)
        self.seen.append((effect.text, on_disk(self.journal.path)))

    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


def run(directory: Path, body: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        writer = Writer()
        scene = Scene(directory, writer)
        try:
            await body(scene)
        finally:
            scene.journal.close()
            await asyncio.to_thread(writer.close)

    asyncio.run(main())


def note(text: str) -> Note:
    return Note("info", text)


def put(key: str) -> Persist:
    return Persist(((key, b"x"),))


def test_without_a_write_under_way_effects_are_performed_at_once(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.gate.put([note("one"), note("two")])
        assert scene.names() == ["one", "two"]

    run(tmp_path, body)


def test_an_effect_waits_for_the_writes_before_it_and_for_no_other(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.gate.put([note("before"), put("a"), note("after a"), put("b"), note("after b")])
        scene.gate.put([note("later input")])
        assert scene.names() == ["before"]
        assert scene.gate.waiting == 3
        await until(lambda: len(scene.seen) == 4)
        assert scene.names() == ["before", "after a", "after b", "later input"]
        assert [keys for _, keys in scene.seen if "a" not in keys] == [set()]
        assert scene.seen[2][1] == scene.seen[3][1] == {"a", "b"}
        scene.gate.put([note("open again")])
        assert scene.names()[-1] == "open again"

    run(tmp_path, body)


def test_the_order_holds_over_many_inputs(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        expected = []
        for number in range(300):
            if number % 3 == 0:
                scene.gate.put([put(f"k{number}")])
            scene.gate.put([note(f"{number}")])
            expected.append(f"{number}")
            if number % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(scene.seen) == 300)
        assert scene.names() == expected
        for name, keys in scene.seen:
            assert {f"k{number}" for number in range(0, int(name) + 1, 3)} <= keys

    run(tmp_path, body)


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_closes_the_gate_for_good(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.gate.put([put("a")])
        await until(lambda: on_disk(scene.journal.path) == {"a"})
        scene.gate.put([note("fine")])
        await until(lambda: scene.names() == ["fine"])
        with no_file_grows_beyond(scene.journal.path.stat().st_size):
            scene.gate.put([put("b"), note("would be a lie"), put("c"), note("too")])
            await until(lambda: scene.failures)
        scene.gate.put([note("too late"), put("d")])
        await asyncio.sleep(0)
        assert scene.names() == ["fine"]
        assert len(scene.failures) == 1
        assert f"{tmp_path / LOG}: a write failed" in scene.failures[0]

    run(tmp_path, body)
    assert on_disk(tmp_path / LOG) == {"a"}


def test_a_closed_gate_performs_nothing_any_more(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.gate.put([put("a"), note("never")])
        scene.gate.close()
        await until(lambda: on_disk(scene.journal.path) == {"a"})
        await asyncio.sleep(0)
        assert scene.seen == []
        assert scene.failures == []

    run(tmp_path, body)
