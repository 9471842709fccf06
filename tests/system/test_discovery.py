"""Discovery over real sockets on loopback: multicast and broadcast, many listeners on one port, strangers too."""

from __future__ import annotations

import asyncio
import socket

import pytest

from deploy.discovery import Group, Listener, NotFound, discover, find_directory
from deploy.discovery.group import calling_socket
from tests.deployment import stub_record
from tests.zookeeper import LOCAL, eventually

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
DIRECTORY = "192.0.2.1:2181/site"
ADDRESSES = ["239.255.76.1", "127.255.255.255"]


def free_group(address: str) -> Group:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOCAL, 0))
        return Group(address, probe.getsockname()[1], LOCAL)


async def opened(*listeners: Listener) -> None:
    for listener in listeners:
        await listener.open()


@pytest.mark.parametrize("address", ADDRESSES)
def test_all_stubs_of_a_machine_answer_and_strangers_do_not_count(address: str) -> None:
    async def main() -> None:
        group = free_group(address)
        records = [
            stub_record(f"r1c{number:02d}", address=f"tcp://127.0.0.1:{1000 + number}/" + "a" * 8)
            for number in range(20)
        ]
        stubs = [Listener(group, KEY, record=lambda record=record: record) for record in records]
        unready = Listener(group, KEY, record=lambda: None)
        strange = Listener(group, OTHER_KEY, record=lambda: stub_record("stranger"))
        await opened(*stubs, unready, strange)
        try:
            found = await discover(group, KEY, wait_s=0.6)
        finally:
            for listener in (*stubs, unready, strange):
                listener.close()
        assert list(found.records) == records
        assert found.counters.answered >= len(records)
        assert strange.counters.ignored["seal"] > 0
        assert strange.counters.answered == 0

    asyncio.run(main())


@pytest.mark.parametrize("address", ADDRESSES)
def test_where_the_directory_is_is_told_by_who_knows_it(address: str) -> None:
    async def main() -> None:
        group = free_group(address)
        with pytest.raises(NotFound, match=r"nobody at .* told where the directory is"):
            await find_directory(group, KEY, wait_s=0.05)
        ignorant = Listener(group, KEY, record=lambda: stub_record("r1c01"))
        knowing = Listener(group, KEY, directory=DIRECTORY)
        liar = Listener(group, OTHER_KEY, directory="203.0.113.6:2181")
        await opened(liar, ignorant, knowing)
        began = asyncio.get_running_loop().time()
        try:
            assert await find_directory(group, KEY, wait_s=9) == DIRECTORY
        finally:
            for listener in (ignorant, knowing, liar):
                listener.close()
        assert asyncio.get_running_loop().time() - began < 8, "it does not wait for others"

    asyncio.run(main())


def test_what_is_recorded_and_sent_again_is_not_answered() -> None:
    async def main() -> None:
        group = free_group(ADDRESSES[0])
        heard: list[bytes] = []

        class Recorder(Listener):
            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                heard.append(data)
                super().datagram_received(data, addr)

        stub = Recorder(group, KEY, record=lambda: stub_record("r1c01"))
        await stub.open()
        try:
            found = await discover(group, KEY, wait_s=0.1)
            assert len(found.records) == 1
            answered = stub.counters.answered
            with calling_socket(group) as stranger:
                for data in (heard[0], b"noise", b"x" * 5000):
                    stranger.sendto(data, (group.address, group.port))
                await eventually(lambda: sum(stub.counters.ignored.values()) >= 3)
                assert dict(stub.counters.ignored) == {"replay": 1, "seal": 1, "size": 1}
                assert stub.counters.answered == answered
                with pytest.raises(BlockingIOError):
                    stranger.recv(2000)
        finally:
            stub.close()

    asyncio.run(main())


def test_a_call_that_cannot_be_sent_is_said() -> None:
    async def main() -> None:
        with pytest.raises(OSError, match=r"203\.0\.113\.77"):
            await discover(Group("239.255.76.1", 7601, "203.0.113.77"), KEY, wait_s=0.1)

    asyncio.run(main())
