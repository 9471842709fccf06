"""What is seen on this machine: instances by their processes' environment, stores and caches by their bytes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.chaos import scan
from fabric.chaos.world import place_of
from fabric.drivers.procfs import MARK
from fabric.images.manifest import Chunker, chunk_hash
from fabric.images.store import ChunkStore
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        ("/f/nodes/r1c01/instances/d-1x.12/work", ("r1c01", "d-1x", 12)),
        ("/f/nodes/r1c01/instances/d-1x.12/work/sub", ("r1c01", "d-1x", 12)),
        ("/g/nodes/r1c01/instances/d-1x.12/work", None),
        ("/f/nodes/r1c01/instances", None),
        ("/f/nodes/r1c01/other/d-1x.12", None),
        ("/f/nodes/r1c01/instances/d-1x.last/work", None),
        ("/f/nodes/r1c01/instances/.3/work", None),
        ("", None),
    ],
)
def test_an_instance_is_known_by_its_directory(directory: str, expected: tuple[str, str, int] | None) -> None:
    assert place_of(directory, "/f/nodes") == expected


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    mark = str(tmp_path / "r1c01" / "instances" / "d-111111.3" / "work")
    process = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & wait"], env={**os.environ, MARK: mark, scan.FLAVOR: "Tiny"}, start_new_session=True
    )
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def test_an_instance_runs_as_long_as_any_of_its_processes(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    processes = scan.Processes(tmp_path)
    found = wait_until(lambda: len(*[*processes.look().values(), ()][:1]) == 2 and processes.look(), 5, "both")
    ((one, pids),) = found.items()
    assert (one.node, one.deployment, one.ordinal, one.pid, one.flavor) == (
        "r1c01", "d-111111", 3, sleeper.pid, "Tiny",
    )  # fmt: skip
    sleeper.kill()
    sleeper.wait()
    ((again, left),) = processes.look().items()
    assert again.name == "d-111111.3"
    assert set(left) == set(pids) - {sleeper.pid}
    assert scan.Processes(tmp_path / "other").look() == {}


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, str]:
    """A node's store that holds one image of three chunks; the folder of nodes, and the digest."""
    store = ChunkStore(tmp_path / "r1s01" / "store")
    chunker = Chunker()
    store.begin("p")
    for chunk in chunker.feed(os.urandom(3 << 20)):
        store.put("p", chunk.hash, chunk.data)
    _, manifest = chunker.finish()
    digest = store.commit("p", manifest.encode())
    store.close()
    return tmp_path, digest


def test_a_holder_has_every_byte(stored: tuple[Path, str]) -> None:
    nodes, digest = stored
    for whole in (False, True):
        assert scan.holders(nodes, ["r1s01", "r2s01"], [digest], whole) == {digest: frozenset({"r1s01"})}


def test_rotten_bytes_are_found_by_reading_and_missing_ones_without(stored: tuple[Path, str]) -> None:
    nodes, digest = stored
    chunk = sorted((nodes / "r1s01" / "store" / "chunks").iterdir())[0]
    chunk.write_bytes(b"rot" + chunk.read_bytes()[3:])
    assert scan.holders(nodes, ["r1s01"], [digest], whole=False)[digest]
    assert not scan.holders(nodes, ["r1s01"], [digest], whole=True)[digest]
    chunk.unlink()
    assert not scan.holders(nodes, ["r1s01"], [digest], whole=False)[digest]


def test_a_manifest_that_is_none_holds_nothing(stored: tuple[Path, str]) -> None:
    nodes, digest = stored
    path = nodes / "r1s01" / "store" / "manifests" / digest[3:]
    path.write_bytes(path.read_bytes()[:-1])
    assert scan.stored(nodes / "r1s01" / "store") == {}
    assert scan.stored(nodes / "nobody") == {}


def test_what_a_node_has_unpacked_is_compared_with_what_was_published(tmp_path: Path) -> None:
    digest = "b3:" + "cd" * 32
    entry = tmp_path / "r1c01" / "cache" / "entries" / digest[3:]
    (entry / "root").mkdir(parents=True)
    published = {digest: {"entrypoint": chunk_hash(b"good")}}
    (entry / "root" / "entrypoint").write_bytes(b"bad")
    assert scan.rotten(tmp_path, ["r1c01"], published) == [], "it is being made"
    (entry / "complete").touch()
    assert "with another entrypoint than was published" in scan.rotten(tmp_path, ["r1c01"], published)[0]
    (entry / "root" / "entrypoint").write_bytes(b"good")
    assert scan.rotten(tmp_path, ["r1c01", "r1c02"], published) == []
    (entry / "root" / "entrypoint").unlink()
    assert "without its entrypoint" in scan.rotten(tmp_path, ["r1c01"], published)[0]
