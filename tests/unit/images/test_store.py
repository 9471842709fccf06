"""The chunk store: an image is held whole or not at all, whatever is cut off, shared, rotten or full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from fabric.images.errors import (
    BadChunk,
    ChunkCorrupt,
    ManifestError,
    NotHeld,
    PushIncomplete,
    StoreBusy,
    StoreFull,
    UnknownPush,
)
from fabric.images.manifest import Manifest, digest_of
from fabric.images.store import MAX_PUSHES, ChunkStore, HeldImage
from tests.unit.images.content import Image, image_of, put_image, random_image, read_image

IMAGE = random_image(20_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = ChunkStore(tmp_path)
    yield opened
    opened.close()


def reopened(store: ChunkStore, directory: Path) -> ChunkStore:
    store.close()
    return ChunkStore(directory)


def chunk_files(directory: Path) -> set[str]:
    return {path.name for path in (directory / "chunks").iterdir()}


def names(*images: Image) -> set[str]:
    return {chunk.hash.hex() for image in images for chunk in image.chunks}


def test_a_committed_image_is_held_and_survives_reopening(store: ChunkStore, tmp_path: Path) -> None:
    assert put_image(store, IMAGE) == IMAGE.digest
    for opened in (store, reopened(store, tmp_path)):
        assert opened.held() == [HeldImage(IMAGE.digest, 20_000)]
        assert opened.has(IMAGE.digest)
        assert read_image(opened, IMAGE.digest) == IMAGE.data
        assert opened.used_bytes() == 20_000 + len(IMAGE.manifest.encode())
    opened.close()


def test_nothing_is_held_before_the_commit(store: ChunkStore, tmp_path: Path) -> None:
    store.begin("p")
    for chunk in IMAGE.chunks:
        store.put("p", chunk.hash, chunk.data)
    assert store.held() == []
    with pytest.raises(NotHeld):
        store.manifest_bytes(IMAGE.digest)
    again = reopened(store, tmp_path)
    assert chunk_files(tmp_path) == set()
    assert (again.held(), again.used_bytes(), again.pushes()) == ([], 0, 0)
    again.close()


def test_a_half_push_of_a_process_that_died_is_removed_at_opening(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fabric.images.store import ChunkStore\n"
        "from tests.unit.images.content import put_image, random_image\n"
        "store = ChunkStore(Path(sys.argv[1])); put_image(store, random_image(20_000))\n"
        "store.begin('p'); [store.put('p', c.hash, c.data) for c in random_image(9_000, seed=2).chunks]\n"
        "(Path(sys.argv[1]) / 'partial' / 'x').write_bytes(b'half a chunk'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False).returncode == 9
    assert len(chunk_files(tmp_path)) == len(names(IMAGE)) + 3
    store = ChunkStore(tmp_path)
    assert chunk_files(tmp_path) == names(IMAGE)
    assert list((tmp_path / "partial").iterdir()) == []
    assert read_image(store, IMAGE.digest) == IMAGE.data
    store.close()


def test_an_aborted_push_leaves_nothing(store: ChunkStore, tmp_path: Path) -> None:
    store.begin("p")
    store.put("p", IMAGE.chunks[0].hash, IMAGE.chunks[0].data)
    store.abort("p")
    store.abort("p")
    assert (chunk_files(tmp_path), store.used_bytes()) == (set(), 0)
    with pytest.raises(UnknownPush):
        store.put("p", IMAGE.chunks[0].hash, IMAGE.chunks[0].data)


def test_a_push_that_is_idle_is_aborted(tmp_path: Path) -> None:
    now = 0.0
    store = ChunkStore(tmp_path, push_idle_s=30, clock=lambda: now)
    store.begin("idle")
    store.begin("busy")
    store.put("idle", IMAGE.chunks[0].hash, IMAGE.chunks[0].data)
    now = 20.0
    store.put("busy", IMAGE.chunks[1].hash, IMAGE.chunks[1].data)
    now = 31.0
    assert store.abort_idle() == ["idle"]
    assert chunk_files(tmp_path) == {IMAGE.chunks[1].hash.hex()}
    store.close()


def test_only_so_many_pushes_may_be_open(store: ChunkStore) -> None:
    for n in range(MAX_PUSHES):
        store.begin(str(n))
    store.begin("0")
    with pytest.raises(StoreBusy, match=str(MAX_PUSHES)):
        store.begin("one more")


def test_a_chunk_with_another_hash_is_refused(store: ChunkStore, tmp_path: Path) -> None:
    store.begin("p")
    first, second = IMAGE.chunks[:2]
    for chunk, data in (
        (first.hash, second.data),
        (first.hash, b""),
        (b"short", first.data),
        (first.hash, bytes(1 << 21)),
    ):
        with pytest.raises(BadChunk):
            store.put("p", chunk, data)
    assert chunk_files(tmp_path) == set()


def test_repeats_of_put_and_commit_change_nothing(store: ChunkStore) -> None:
    store.begin("p")
    for chunk in (*IMAGE.chunks, *IMAGE.chunks):
        store.put("p", chunk.hash, chunk.data)
    encoded = IMAGE.manifest.encode()
    assert store.commit("p", encoded) == store.commit("p", encoded) == IMAGE.digest
    assert store.drop(IMAGE.digest)
    assert store.used_bytes() == 0


@pytest.mark.parametrize("kind", ["missing chunk", "no manifest", "wrong size"])
def test_a_commit_that_does_not_fit_its_push_leaves_nothing(store: ChunkStore, tmp_path: Path, kind: str) -> None:
    store.begin("p")
    for chunk in IMAGE.chunks[1:] if kind == "missing chunk" else IMAGE.chunks:
        store.put("p", chunk.hash, chunk.data)
    manifest = IMAGE.manifest.encode()
    if kind == "no manifest":
        manifest = b"no manifest"
    if kind == "wrong size":
        manifest = Manifest(IMAGE.manifest.size - 1, 4096, IMAGE.manifest.chunks).encode()
    with pytest.raises(PushIncomplete if kind == "missing chunk" else ManifestError):
        store.commit("p", manifest)
    assert (store.held(), store.pushes(), chunk_files(tmp_path), store.used_bytes()) == ([], 0, set(), 0)


def test_a_commit_without_a_push_is_refused(store: ChunkStore) -> None:
    with pytest.raises(UnknownPush):
        store.commit("p", IMAGE.manifest.encode())


def test_images_share_chunks_and_dropping_one_frees_only_its_own(store: ChunkStore, tmp_path: Path) -> None:
    other = image_of(IMAGE.data[:8192] + b"another end" * 500)
    put_image(store, IMAGE)
    put_image(store, other)
    assert chunk_files(tmp_path) == names(IMAGE, other)
    assert store.drop(IMAGE.digest)
    assert not store.drop(IMAGE.digest)
    assert chunk_files(tmp_path) == names(other)
    assert read_image(store, other.digest) == other.data
    again = reopened(store, tmp_path)
    assert again.held() == [HeldImage(other.digest, len(other.data))]
    assert again.drop(other.digest)
    assert (chunk_files(tmp_path), again.used_bytes()) == (set(), 0)
    again.close()


def test_a_push_keeps_the_shared_chunks_of_an_image_that_is_dropped_meanwhile(store: ChunkStore) -> None:
    put_image(store, IMAGE)
    store.begin("p")
    for chunk in IMAGE.chunks:
        store.put("p", chunk.hash, chunk.data)
    assert store.drop(IMAGE.digest)
    store.commit("p", IMAGE.manifest.encode())
    assert read_image(store, IMAGE.digest) == IMAGE.data


def test_a_chunk_that_is_dropped_and_put_again_while_it_is_read_is_not_taken_for_lost(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(store, IMAGE)
    read = store._shelf.read_chunk

    def meanwhile(chunk: bytes, size: int, from_disk: bool = False) -> tuple[bytes | None, int]:
        """The file is gone when it is opened, and there again when the reader looks why."""
        monkeypatch.setattr(store._shelf, "read_chunk", read)
        store.drop(IMAGE.digest)
        try:
            return read(chunk, size, from_disk)
        finally:
            put_image(store, IMAGE)

    monkeypatch.setattr(store._shelf, "read_chunk", meanwhile)
    with pytest.raises(NotHeld, match="dropped meanwhile"):
        store.read_chunk(IMAGE.chunks[0].hash)
    assert store.has(IMAGE.digest)
    assert store.damaged() == []


def test_a_repeating_image_takes_one_chunk(store: ChunkStore) -> None:
    zeros = image_of(bytes(40 * 4096))
    put_image(store, zeros)
    assert store.used_bytes() == 4096 + len(zeros.manifest.encode())
    assert read_image(store, zeros.digest) == zeros.data


def test_pushes_and_drops_at_once_leave_every_held_image_whole(store: ChunkStore, tmp_path: Path) -> None:
    base = os.urandom(6 * 4096)
    images = [image_of(base[: (n + 1) * 4096] + bytes([n]) * 4096) for n in range(6)]
    together = threading.Barrier(6)

    def work(n: int) -> None:
        together.wait(10)
        for turn in range(8):
            put_image(store, images[n], f"push {n} {turn}")
            assert read_image(store, images[n].digest) == images[n].data
            if turn % 2:
                store.drop(images[n].digest)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert (store.held(), store.used_bytes(), chunk_files(tmp_path)) == ([], 0, set())


def flip(directory: Path, chunk: bytes) -> None:
    path = directory / "chunks" / chunk.hex()
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "gone"])
def test_a_rotten_chunk_is_not_served_and_its_images_are_not_held(store: ChunkStore, tmp_path: Path, how: str) -> None:
    sharing = image_of(IMAGE.data[:4096])
    apart = random_image(5000, seed=9)
    for image in (IMAGE, sharing, apart):
        put_image(store, image)
    rotten = IMAGE.chunks[0].hash
    path = tmp_path / "chunks" / rotten.hex()
    if how == "flipped":
        flip(tmp_path, rotten)
    elif how == "gone":
        path.unlink()
    else:
        os.truncate(path, 4095 if how == "cut" else 4097)
    with pytest.raises(ChunkCorrupt):
        store.read_chunk(rotten)
    with pytest.raises(NotHeld):
        store.read_chunk(rotten)
    store = reopened(store, tmp_path)
    assert store.held() == [HeldImage(apart.digest, 5000)]
    assert store.damaged() == sorted((IMAGE.digest, sharing.digest))
    assert store.manifest_bytes(IMAGE.digest) == IMAGE.manifest.encode()
    put_image(store, sharing)  # brings the chunk again, which repairs the other image as well
    assert {image.digest for image in store.held()} == {IMAGE.digest, sharing.digest, apart.digest}
    assert store.damaged() == []
    assert read_image(store, IMAGE.digest) == IMAGE.data
    for image in (IMAGE, sharing, apart):
        store.drop(image.digest)
    assert (store.used_bytes(), chunk_files(tmp_path)) == (0, set())
    store.close()


def test_a_push_does_not_count_on_a_rotten_chunk_that_nobody_noticed(store: ChunkStore, tmp_path: Path) -> None:
    put_image(store, IMAGE)
    flip(tmp_path, IMAGE.chunks[1].hash)
    put_image(store, IMAGE, "again")
    assert read_image(store, IMAGE.digest) == IMAGE.data


def test_a_claim_needs_a_sound_chunk(store: ChunkStore, tmp_path: Path) -> None:
    put_image(store, IMAGE)
    flip(tmp_path, IMAGE.chunks[1].hash)
    store.begin("p")
    claimed = [store.claim("p", chunk.hash) for chunk in IMAGE.chunks]
    assert claimed == [True, False, True, True, True]
    store.put("p", IMAGE.chunks[1].hash, IMAGE.chunks[1].data)
    store.drop(IMAGE.digest)
    assert store.commit("p", IMAGE.manifest.encode()) == IMAGE.digest
    assert read_image(store, IMAGE.digest) == IMAGE.data


def test_a_rotten_manifest_is_removed_with_its_chunks(store: ChunkStore, tmp_path: Path) -> None:
    put_image(store, IMAGE)
    manifest = tmp_path / "manifests" / IMAGE.digest[3:]
    manifest.write_bytes(manifest.read_bytes()[:-1])
    again = reopened(store, tmp_path)
    assert (again.held(), chunk_files(tmp_path), manifest.exists()) == ([], set(), False)
    again.close()


def test_a_manifest_of_another_version_is_not_thrown_away(store: ChunkStore, tmp_path: Path) -> None:
    data = msgspec.msgpack.encode((2, "something new"))
    manifest = tmp_path / "manifests" / digest_of(data)[3:]
    manifest.write_bytes(data)
    for _ in range(2):
        with pytest.raises(ManifestError, match=f"{manifest.name}.*open it with the version that wrote it"):
            reopened(store, tmp_path)
    assert manifest.read_bytes() == data


def test_what_the_limit_does_not_allow_is_refused_and_the_push_is_gone(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, max_bytes=20_500)
    put_image(store, IMAGE)
    before = store.used_bytes()
    assert store.free_bytes() == 20_500 - before
    other = random_image(9000, seed=3)
    with pytest.raises(StoreFull, match=f"{before} of 20500 bytes are used"):
        put_image(store, other)
    assert (store.used_bytes(), store.pushes(), chunk_files(tmp_path)) == (before, 0, names(IMAGE))
    assert read_image(store, IMAGE.digest) == IMAGE.data
    store.close()


def test_a_manifest_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, max_bytes=20_010)
    with pytest.raises(StoreFull):
        put_image(store, IMAGE)
    assert (store.held(), store.used_bytes(), store.pushes(), chunk_files(tmp_path)) == ([], 0, 0, set())
    store.close()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(disk)], check=False).returncode:
        pytest.skip("this machine doesn't let us mount a tmpfs")
    try:
        store = ChunkStore(disk)
        put_image(store, IMAGE)
        with pytest.raises(StoreFull, match="No space left"):
            put_image(store, random_image(100_000, seed=5))
        assert (store.held(), chunk_files(disk)) == ([HeldImage(IMAGE.digest, 20_000)], names(IMAGE))
        assert list((disk / "partial").iterdir()) == []
        assert read_image(store, IMAGE.digest) == IMAGE.data
        put_image(store, random_image(9000, seed=6))
        store.close()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_one_directory_has_one_owner(store: ChunkStore, tmp_path: Path) -> None:
    with pytest.raises(StoreBusy, match="in use"):
        ChunkStore(tmp_path)


def test_files_of_others_are_left_alone(store: ChunkStore, tmp_path: Path) -> None:
    (tmp_path / "chunks" / "README").write_text("not ours")
    reopened(store, tmp_path).close()
    assert chunk_files(tmp_path) == {"README"}
