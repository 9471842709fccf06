"""The image cache: whole entries or none, bounded, and never evicting what runs."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from fabric.images.archive import ENTRYPOINT, Prepared
from fabric.images.cache import CachedImage, ImageCache
from fabric.images.errors import BadImage, CacheFull, NotCached, StoreBusy
from fabric.images.placing import Placer
from tests.unit.images.content import Image, image_of
from tests.unit.images.test_archive import START, member, tar_of

MIB = 1 << 20


def image(fill: int, size: int = 300_000) -> Image:
    return image_of(tar_of(START, member("data", bytes([fill]) * size)), MIB)


SMALL, SECOND, THIRD = image(1), image(2), image(3)
TAKES = 315_392
"""Bytes of one of them in the cache: the blob, and two unpacked files, of which the large one has moved out of the
blob.
"""


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ImageCache]:
    opened = ImageCache(tmp_path / "cache", 10 * MIB)
    yield opened
    opened.close()


def admit(cache: ImageCache, what: Image) -> Prepared:
    blob = cache.incoming(what.digest, len(what.data))
    blob.write_bytes(what.data)
    return cache.admit(what.digest, blob)


def admit_as_it_came(cache: ImageCache, what: Image) -> Prepared:
    """As a fetch does: its chunks come in any order, and its large body is in a file already."""
    blob = cache.incoming(what.digest, len(what.data))
    with open(blob, "x+b", buffering=0) as file:
        bodies, manifest = blob.with_suffix(".bodies"), what.manifest
        placer = Placer(file.fileno(), bodies, manifest.size, manifest.chunk_bytes, cache.limits)
        for index in reversed(range(len(what.chunks))):
            placer.write(index, what.chunks[index].data)
    return cache.admit(what.digest, blob, placer.placed(), pin="a")


def reopened(cache: ImageCache, directory: Path, max_bytes: int = 10 * MIB) -> ImageCache:
    cache.close()
    return ImageCache(directory / "cache", max_bytes)


def digests(cache: ImageCache) -> list[str]:
    return [each.digest for each in cache.images()]


def is_tidy(directory: Path) -> bool:
    return not os.listdir(directory / "cache" / "incoming") and not os.listdir(directory / "cache" / "making")


def test_an_admitted_image_can_be_started(cache: ImageCache, tmp_path: Path) -> None:
    assert cache.get(SMALL.digest) is None
    prepared = admit(cache, SMALL)
    assert cache.get(SMALL.digest) == prepared
    assert subprocess.run([prepared.entrypoint], capture_output=True, check=True).stdout == b"hello\n"
    assert b"".join(cache.read(SMALL.digest)) == SMALL.data
    assert cache.images() == [CachedImage(SMALL.digest, TAKES, 0)]
    assert cache.used_bytes() == TAKES
    assert is_tidy(tmp_path)


def test_what_is_counted_is_what_it_takes(cache: ImageCache, tmp_path: Path) -> None:
    admit(cache, image(7, 5 * MIB // 2))
    folder = tmp_path / "cache" / "entries"
    on_disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    assert abs(cache.used_bytes() - on_disk) < 5 * 4096


def test_what_was_placed_as_it_came_is_taken_over(cache: ImageCache, tmp_path: Path) -> None:
    large = image_of(tar_of(START, member("data", os.urandom(3 * MIB)), member("more", b"m" * 100_000)), MIB)
    prepared = admit_as_it_came(cache, large)
    body = prepared.root / "data"
    assert (stat.S_IMODE(body.stat().st_mode), body.stat().st_nlink) == (0o444, 1)
    assert b"".join(cache.read(large.digest)) == large.data
    assert sorted(os.listdir(prepared.root.parent)) == ["blob", "complete", "root"]
    before = cache.images()
    inode = body.stat().st_ino
    assert admit_as_it_came(cache, large) == prepared, "it is here already"
    assert body.stat().st_ino == inode
    assert (cache.images(), is_tidy(tmp_path)) == (before, True)
    cache.unpin(large.digest, "a")
    again = reopened(cache, tmp_path, 11 * MIB)
    assert [each.bytes for each in again.images()] == [each.bytes for each in before]
    of_another_boot(tmp_path, large)
    revived = reopened(again, tmp_path)
    assert revived.get(large.digest) == prepared
    assert b"".join(revived.read(large.digest)) == large.data
    assert [each.bytes for each in revived.images()] == [each.bytes for each in before]
    assert is_tidy(tmp_path)
    revived.close()


def test_a_bad_image_that_was_placed_leaves_nothing(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="expected each path once"):
        admit_as_it_came(cache, image_of(tar_of(START, member("a", b"d" * MIB), member("b"), member("b")), 65536))
    assert (cache.images(), cache.used_bytes(), is_tidy(tmp_path)) == ([], 0, True)
    with pytest.raises(CacheFull):
        admit_as_it_came(cache, image_of(tar_of(START, *(member(f"{n}", b"d" * MIB) for n in range(11))), MIB))
    assert (cache.images(), cache.used_bytes(), is_tidy(tmp_path)) == ([], 0, True)


def test_one_executable_counts_once(cache: ImageCache) -> None:
    script = image_of(b"#!/bin/sh\n" + b"# much\n" * 100_000, MIB)
    prepared = admit(cache, script)
    assert prepared.entrypoint.name == ENTRYPOINT
    assert prepared.entrypoint.stat().st_nlink == 2
    assert b"".join(cache.read(script.digest)) == script.data
    assert cache.used_bytes() == -(-len(script.data) // 4096) * 4096


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", 2 * TAKES + 1000)
    admit(cache, SMALL)
    admit(cache, SECOND)
    cache.get(SMALL.digest)
    admit(cache, THIRD)
    assert digests(cache) == [SMALL.digest, THIRD.digest]
    assert cache.get(SECOND.digest) is None
    assert sorted(os.listdir(tmp_path / "cache" / "entries")) == sorted(d[3:] for d in (SMALL.digest, THIRD.digest))
    assert is_tidy(tmp_path)
    cache.close()


def test_what_is_pinned_stays(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", 2 * TAKES + 1000)
    admit(cache, SMALL)
    admit(cache, SECOND)
    cache.pin(SMALL.digest, "instance-1")
    cache.pin(SMALL.digest, "instance-2")
    cache.unpin(SMALL.digest, "instance-1")
    cache.get(SECOND.digest)
    admit(cache, THIRD)
    assert digests(cache) == [SMALL.digest, THIRD.digest]
    cache.unpin(SMALL.digest, "instance-2")
    cache.unpin(SMALL.digest, "nobody")
    cache.get(THIRD.digest)
    admit(cache, SECOND)
    assert digests(cache) == [THIRD.digest, SECOND.digest]
    with pytest.raises(NotCached, match="fetch and admit"):
        cache.pin(SMALL.digest, "instance-3")
    cache.close()


def test_an_image_can_be_pinned_as_it_is_got_or_admitted(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", 2 * TAKES + 1000)
    admit(cache, SMALL)
    cache.get(SMALL.digest, pin="a")
    blob = cache.incoming(SECOND.digest, len(SECOND.data))
    blob.write_bytes(SECOND.data)
    cache.admit(SECOND.digest, blob, pin="b")
    assert [each.pinned for each in cache.images()] == [1, 1]
    with pytest.raises(CacheFull):
        admit(cache, THIRD)
    (tmp_path / "again").write_bytes(SECOND.data)
    cache.admit(SECOND.digest, tmp_path / "again", pin="c")
    assert [each.pinned for each in cache.images()] == [1, 2]
    cache.close()


def test_what_does_not_fit_is_refused_with_figures(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", 2 * TAKES + 1000)
    admit(cache, SMALL)
    admit(cache, SECOND)
    cache.pin(SMALL.digest, "a")
    with pytest.raises(
        CacheFull, match=f"{2 * TAKES} bytes more are needed, and {TAKES} of {2 * TAKES + 1000} are used"
    ):
        cache.incoming("b3:" + "0" * 64, 2 * TAKES)
    assert digests(cache) == [SMALL.digest, SECOND.digest]
    blob = tmp_path / "cache" / "incoming" / "blob"
    large = image(9, 900_000)
    blob.write_bytes(large.data)
    with pytest.raises(CacheFull):
        cache.admit(large.digest, blob)
    assert digests(cache) == [SMALL.digest, SECOND.digest]
    assert cache.used_bytes() == 2 * TAKES
    assert is_tidy(tmp_path)
    assert admit(cache, THIRD).entrypoint.is_file()
    cache.close()


def test_what_unpacks_to_more_than_the_cache_is_refused(cache: ImageCache, tmp_path: Path) -> None:
    bomb = image_of(gzip.compress(tar_of(START, member("data", bytes(20 * MIB))), 1))
    assert bomb.manifest.size < MIB
    with pytest.raises(CacheFull, match=f"does not fit in a cache of {10 * MIB} bytes"):
        admit(cache, bomb)
    assert (cache.images(), cache.used_bytes(), is_tidy(tmp_path)) == ([], 0, True)


def test_a_bad_image_leaves_nothing(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(BadImage):
        admit(cache, image_of(tar_of(START, member("/etc/x"))))
    assert (cache.images(), cache.used_bytes(), is_tidy(tmp_path)) == ([], 0, True)


def test_admitting_again_keeps_what_is_there(cache: ImageCache, tmp_path: Path) -> None:
    prepared = admit(cache, SMALL)
    inode = prepared.entrypoint.stat().st_ino
    assert admit(cache, SMALL) == prepared
    assert prepared.entrypoint.stat().st_ino == inode
    assert cache.used_bytes() == TAKES
    assert is_tidy(tmp_path)


def test_a_restart_keeps_the_entries_and_their_order(cache: ImageCache, tmp_path: Path) -> None:
    for what in (SMALL, SECOND, THIRD):
        admit(cache, what)
    cache.get(SMALL.digest)
    before = cache.images()
    again = reopened(cache, tmp_path)
    assert again.images() == before
    assert again.used_bytes() == 3 * TAKES
    smaller = reopened(again, tmp_path, 2 * TAKES)
    assert digests(smaller) == [THIRD.digest, SMALL.digest]
    smaller.close()


def test_half_entries_are_removed_at_opening(cache: ImageCache, tmp_path: Path) -> None:
    admit(cache, SMALL)
    entries = tmp_path / "cache" / "entries"
    for name, marker in (("1" * 64, None), ("2" * 64, b"rubbish"), ("no digest", b"")):
        (entries / name / "root").mkdir(parents=True)
        (entries / name / "root").chmod(0o555)
        if marker is not None:
            (entries / name / "complete").write_bytes(marker)
    shutil.copytree(entries / SMALL.digest[3:], tmp_path / "cache" / "making" / "7")
    (tmp_path / "cache" / "incoming" / ".x.partial").write_bytes(b"half an image")
    (tmp_path / "cache" / "incoming" / ".x.bodies").mkdir(mode=0o700)
    (tmp_path / "cache" / "incoming" / ".x.bodies" / "0").write_bytes(b"half a file of it")
    again = reopened(cache, tmp_path)
    assert os.listdir(entries) == [SMALL.digest[3:]]
    assert digests(again) == [SMALL.digest]
    assert is_tidy(tmp_path)
    again.close()


def of_another_boot(directory: Path, what: Image) -> Path:
    marker = directory / "cache" / "entries" / what.digest[3:] / "complete"
    fields = msgspec.msgpack.decode(marker.read_bytes())
    marker.write_bytes(msgspec.msgpack.encode({**fields, "boot": "another"}))
    return marker.parent


def test_an_entry_of_an_earlier_boot_is_unpacked_anew(cache: ImageCache, tmp_path: Path) -> None:
    """A machine that went down may come back with the marker and without the bytes of an unpacked file."""
    admit(cache, SMALL)
    folder = of_another_boot(tmp_path, SMALL)
    (folder / "root").chmod(0o700)
    (folder / "root" / "entrypoint").unlink()
    again = reopened(cache, tmp_path)
    prepared = again.get(SMALL.digest, pin="instance")
    assert prepared is not None
    assert (prepared.root / "data").stat().st_size == 300_000
    assert again.images() == [CachedImage(SMALL.digest, TAKES, 1)]
    inode = prepared.entrypoint.stat().st_ino
    assert again.get(SMALL.digest) == prepared
    assert prepared.entrypoint.stat().st_ino == inode
    assert is_tidy(tmp_path)
    again.close()


@pytest.mark.parametrize("where", ["blob", "root/data"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_an_entry_of_an_earlier_boot_without_its_bytes_is_removed(
    cache: ImageCache, tmp_path: Path, damage: str, where: str
) -> None:
    admit(cache, SMALL)
    folder = of_another_boot(tmp_path, SMALL)
    (folder / "root").chmod(0o700)
    data = (folder / where).read_bytes()
    (folder / where).unlink()
    if damage != "gone":
        (folder / where).write_bytes({"flipped": b"x" + data[1:], "cut": data[:-1], "empty": b""}[damage])
    again = reopened(cache, tmp_path)
    assert again.get(SMALL.digest) is None
    assert (again.images(), again.used_bytes(), is_tidy(tmp_path)) == ([], 0, True)
    assert admit(again, SMALL).entrypoint.is_file()
    again.close()


@pytest.mark.parametrize("what", ["root", "all"])
def test_an_entry_removed_by_somebody_else_is_not_given(cache: ImageCache, tmp_path: Path, what: str) -> None:
    root = admit(cache, SMALL).root
    root.chmod(0o700)
    shutil.rmtree(root if what == "root" else root.parent)
    assert cache.get(SMALL.digest) is None
    assert (cache.used_bytes(), is_tidy(tmp_path)) == (0, True)
    with pytest.raises(NotCached):
        list(cache.read(SMALL.digest))
    assert admit(cache, SMALL).entrypoint.is_file()


def test_many_at_once(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "cache", 3 * TAKES + 1000)
    images = [image(n) for n in range(6)]
    together = threading.Barrier(8)

    def work(n: int) -> None:
        together.wait(10)
        for turn in range(12):
            what = images[(n + turn) % 6]
            blob = tmp_path / f"blob-{n}"
            blob.write_bytes(what.data)
            try:
                prepared = cache.admit(what.digest, blob)
            except CacheFull:  # all others are pinned or being made at this moment
                continue
            assert cache.used_bytes() <= cache.max_bytes
            try:
                cache.pin(what.digest, str(n))
            except NotCached:
                continue
            assert stat.S_IMODE(prepared.entrypoint.stat().st_mode) == 0o555
            assert cache.get(what.digest) == prepared
            cache.unpin(what.digest, str(n))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.used_bytes() == sum(each.bytes for each in cache.images())
    assert is_tidy(tmp_path)
    cache.close()


def test_one_directory_has_one_owner(cache: ImageCache, tmp_path: Path) -> None:
    with pytest.raises(StoreBusy):
        ImageCache(tmp_path / "cache", MIB)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "small", str(disk)], check=False).returncode:
        pytest.skip("this machine doesn't let us mount a tmpfs")
    try:
        cache = ImageCache(disk / "cache", 10 * MIB)
        admit(cache, image(1, 300_000))
        packed = image_of(gzip.compress(tar_of(START, member("data", os.urandom(250_000))), 1))
        with pytest.raises(CacheFull, match="No space left"):
            admit(cache, packed)
        assert digests(cache) == [SMALL.digest]
        assert is_tidy(disk)
        cache.close()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
