"""Turns and credit: every peer gets its chunks, and memory is bounded whatever they ask for."""

from __future__ import annotations

from dataclasses import dataclass

from fabric.images.credit import ALL_CHUNKS, MAX_PEERS, PEER_CHUNKS, PEER_REQUESTS, ChunkQueue
from fabric.images.protocol import GetChunk


@dataclass(slots=True)
class Flight:
    done: bool = False


def ask(queue: ChunkQueue, peer: str, number: int = 1) -> int:
    return sum(queue.add(peer.encode(), GetChunk(id=n, hash=b"h" * 32)) for n in range(number))


def send(queue: ChunkQueue, at_most: int = 1000) -> list[tuple[str, Flight]]:
    sent: list[tuple[str, Flight]] = []
    while len(sent) < at_most and (turn := queue.next()) is not None:
        flight = Flight()
        queue.sent(turn[0], flight)
        sent.append((turn[0].decode(), flight))
    return sent


def test_peers_have_turns() -> None:
    queue = ChunkQueue()
    for peer in "abc":
        ask(queue, peer, 3)
    assert [peer for peer, _ in send(queue)] == list("abcabcabc")
    assert not queue.waiting


def test_one_peer_has_so_much_credit_and_gets_it_back() -> None:
    queue = ChunkQueue()
    ask(queue, "slow", 10)
    sent = send(queue)
    assert len(sent) == PEER_CHUNKS
    ask(queue, "fast", 1)
    assert [peer for peer, _ in send(queue)] == ["fast"]
    sent[2][1].done = True
    assert [peer for peer, _ in send(queue)] == ["slow"]


def test_all_peers_together_have_so_much_credit() -> None:
    queue = ChunkQueue()
    for n in range(20):
        ask(queue, f"{n}", 4)
    sent = send(queue)
    assert len(sent) == ALL_CHUNKS
    assert len({peer for peer, _ in sent}) == ALL_CHUNKS
    for _, flight in sent[:3]:
        flight.done = True
    assert [peer for peer, _ in send(queue)] == ["16", "17", "18"]


def test_requests_and_peers_are_bounded() -> None:
    queue = ChunkQueue()
    assert ask(queue, "greedy", PEER_REQUESTS + 5) == PEER_REQUESTS
    assert sum(ask(queue, f"{n}") for n in range(MAX_PEERS + 5)) == MAX_PEERS - 1
    assert len(queue) == MAX_PEERS


def test_a_peer_that_is_gone_is_forgotten() -> None:
    queue = ChunkQueue()
    ask(queue, "a", 3)
    ask(queue, "b", 1)
    queue.gone(b"a")
    queue.gone(b"a")
    assert [peer for peer, _ in send(queue)] == ["b"]
    queue.tidy()
    assert len(queue) == 1
    queue = ChunkQueue()
    ask(queue, "c")
    send(queue)[0][1].done = True
    queue.tidy()
    assert len(queue) == 0
