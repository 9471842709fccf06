"""An image that comes in any order ends up as it would have been unpacked from a whole file."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fabric.images.archive import remove_tree, unpack
from fabric.images.errors import BadImage
from fabric.images.hollow import MIN_MOVED_BYTES, Moved, Parts, Placed
from fabric.images.placing import Placer, place
from fabric.images.stretch import Stretch
from fabric.images.tarwalk import Limits
from tests.unit.images.content import Image, image_of
from tests.unit.images.test_archive import START, link, member, tar_of

LARGE = MIN_MOVED_BYTES
Order = Callable[[Image], Sequence[int]]


def in_order(image: Image) -> Sequence[int]:
    return range(len(image.chunks))


def backwards(image: Image) -> Sequence[int]:
    return range(len(image.chunks))[::-1]


def mixed(seed: int) -> Order:
    def order(image: Image) -> Sequence[int]:
        indices = list(in_order(image))
        random.Random(seed).shuffle(indices)
        return indices

    return order


class Coming:
    """An image of which chunk after chunk comes."""

    def __init__(self, folder: Path, image: Image) -> None:
        folder.mkdir()
        self.image, self.folder = image, folder
        self.blob, self.bodies = folder / "blob", folder / "bodies"
        self._fd = os.open(self.blob, os.O_RDWR | os.O_CREAT)
        self.placer = Placer(self._fd, self.bodies, image.manifest.size, image.manifest.chunk_bytes, Limits())

    def take(self, indices: Sequence[int]) -> Coming:
        for index in indices:
            self.placer.write(index, self.image.chunks[index].data)
        return self

    def placed(self) -> Placed:
        found = self.placer.placed()
        assert found is not None
        return found

    def whole(self) -> bytes:
        placed = self.placed()
        return b"".join(Parts(self.blob, placed.folder, placed.parts).pieces())

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def come(tmp_path: Path) -> Iterator[Callable[[Image], Coming]]:
    made: list[Coming] = []

    def make(image: Image) -> Coming:
        made.append(Coming(tmp_path / f"coming-{len(made)}", image))
        return made[-1]

    yield make
    for one in made:
        one.close()


def random_archive(seed: int) -> bytes:
    """Small and large members, deep and flat, with links, and long names."""
    rng = random.Random(seed)
    members = [START]
    for number in range(rng.randrange(1, 14)):
        folder = rng.choice(("", "a/", f"deep/{number}/", "x" * 120 + "/"))
        size = rng.choice((0, 1, 513, LARGE - 1, LARGE, LARGE + rng.randrange(3 * LARGE), rng.randrange(9 * LARGE)))
        members.append(member(f"{folder}f{number}", rng.randbytes(size), mode=rng.choice((0o644, 0o4755))))
    members.append(link("to", "entrypoint"))
    return tar_of(*members)


def tree(root: Path) -> dict[str, tuple[int, bytes | str]]:
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        content = os.readlink(path) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(root))] = (mode, content)
    return found


def large_members(parts: Sequence[Moved]) -> list[tuple[int, int]]:
    return [(part.at, part.size) for part in parts]


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_it_is_what_unpacking_the_whole_file_gives(
    come: Callable[[Image], Coming], tmp_path: Path, seed: int
) -> None:
    data = random_archive(seed)
    (tmp_path / "whole").write_bytes(data)
    plain, _ = unpack(tmp_path / "whole", tmp_path / "plain")
    image = image_of(data, random.Random(seed).choice((4096, 5000, 65536, 1 << 20)))
    for order in (in_order, backwards, mixed(seed), mixed(seed + 100)):
        coming = come(image).take(order(image))
        assert coming.whole() == data
        placed = coming.placed()
        blob = coming.blob.read_bytes()
        assert all(not any(blob[-(-part.at // 4096) * 4096 : (part.at + part.size) // 4096 * 4096])
                   for part in placed.parts), "no byte is kept twice"  # fmt: skip
        prepared, moved = unpack(coming.blob, coming.folder / "root", placed=placed)
        assert tree(prepared.root) == tree(plain.root)
        assert large_members(moved) == large_members(placed.parts)
        assert all(part.size >= LARGE for part in moved)
        assert b"".join(Parts(coming.blob, prepared.root, moved).pieces()) == data
        assert not os.path.exists(coming.bodies) or os.listdir(coming.bodies) == []
        remove_tree(prepared.root)
    remove_tree(plain.root)


@pytest.mark.parametrize("seed", range(6))
def test_what_has_come_is_read_at_every_moment(come: Callable[[Image], Coming], seed: int) -> None:
    image = image_of(random_archive(seed), 16384)
    coming = come(image)
    reader = coming.placer.reader()
    came: list[int] = []
    for index in mixed(seed)(image):
        coming.take([index])
        came.append(index)
        for one in came:
            with closing(reader.open(one * 16384, image.manifest.size_of(one))) as stretch:
                assert stretch.read() == image.chunks[one].data
    reader.close()
    reader.close()


@pytest.mark.parametrize("seed", range(6))
def test_what_is_being_read_stays_while_it_moves(come: Callable[[Image], Coming], seed: int) -> None:
    image = image_of(random_archive(seed), 16384)
    coming = come(image)
    reader = coming.placer.reader()
    being_read: list[tuple[int, Stretch]] = []
    for index in backwards(image):
        coming.take([index])
        being_read.append((index, reader.open(index * 16384, image.manifest.size_of(index))))
    random.Random(seed).shuffle(being_read)
    for index, stretch in being_read:
        assert stretch.read() == image.chunks[index].data
        stretch.close()
        stretch.close()
    reader.close()
    assert coming.whole() == image.data
    blob, parts = coming.blob.read_bytes(), coming.placed().parts
    assert all(not any(blob[-(-part.at // 4096) * 4096 : (part.at + part.size) // 4096 * 4096]) for part in parts)


def test_what_comes_in_order_is_written_once(come: Callable[[Image], Coming], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_move(*_: object) -> None:
        raise AssertionError("bytes were moved that could have been written in place")

    monkeypatch.setattr("fabric.images.placing.move", no_move)
    image = image_of(tar_of(START, *(member(f"{n}", os.urandom(LARGE + 777 * n)) for n in range(9))), 100_000)
    coming = come(image).take(in_order(image))
    assert [part.path for part in coming.placed().parts] == [str(n) for n in range(9)]
    assert coming.whole() == image.data


def test_headers_are_read_once_and_again_only_for_other_limits(
    come: Callable[[Image], Coming], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = image_of(random_archive(4), 65536)
    coming = come(image).take(mixed(2)(image))
    with pytest.raises(BadImage, match="expected at most 1 members"):
        unpack(coming.blob, coming.folder / "root", limits=Limits(members=1), placed=coming.placed())
    coming = come(image).take(mixed(3)(image))
    monkeypatch.setattr("fabric.images.archive.walk", None)
    remove_tree(unpack(coming.blob, coming.folder / "root", placed=coming.placed())[0].root)


BAD = {
    "outside": tar_of(START, member("a", b"a" * LARGE), member("../b", b"b" * LARGE), member("c", b"c" * LARGE)),
    "twice": tar_of(START, member("a", b"a" * LARGE), member("a", b"b" * LARGE)),
    "cut off": tar_of(START, member("a", b"a" * LARGE), member("b", b"b" * 3 * LARGE))[: -3 * LARGE],
    "no end mark": tar_of(START, member("a", b"a" * LARGE))[: 1024 + 512 + LARGE],
    "no entrypoint": tar_of(member("a", b"a" * LARGE)),
    "no tar": b"x" * 5 * LARGE,
    "short": b"x",
    "rubbish after a member": tar_of(START, member("a", b"a" * LARGE))[: 1024 + 512 + LARGE] + b"y" * 2 * LARGE,
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_image_is_refused_as_from_a_whole_file(
    come: Callable[[Image], Coming], tmp_path: Path, what: str
) -> None:
    (tmp_path / "whole").write_bytes(BAD[what])
    with pytest.raises(BadImage) as plain:
        unpack(tmp_path / "whole", tmp_path / "plain")
    image = image_of(BAD[what], 10_000)
    for order in (in_order, backwards, mixed(1)):
        coming = come(image).take(order(image))
        assert coming.whole() == image.data
        with pytest.raises(BadImage) as found:
            unpack(coming.blob, coming.folder / "root", placed=coming.placed())
        assert str(found.value) == str(plain.value)
        assert not (coming.folder / "root").exists()


@pytest.mark.parametrize("disguise", ["program", "gzip"])
def test_what_is_no_plain_archive_stays_whole_though_it_could_be_read_as_one(
    come: Callable[[Image], Coming], tmp_path: Path, disguise: str
) -> None:
    """A name can begin like a program, or like compressed data; unpacking looks at that first."""
    data = bytearray(tar_of(member("??aaaa", b"a" * 2 * LARGE), START))
    data[:2] = b"#!" if disguise == "program" else b"\x1f\x8b"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    image = image_of(bytes(data), 10_000)
    coming = come(image).take(in_order(image))
    assert (coming.placed().parts, coming.blob.read_bytes()) == ((), image.data)


def test_compressed_archives_stay_whole(come: Callable[[Image], Coming]) -> None:
    image = image_of(gzip.compress(random_archive(1), 1), 10_000)
    coming = come(image).take(in_order(image))
    assert (coming.placed().parts, coming.blob.read_bytes()) == ((), image.data)
    assert not coming.bodies.exists()


def test_a_size_that_is_not_there_makes_no_file(come: Callable[[Image], Coming]) -> None:
    data = tar_of(START, member("a", b"a" * LARGE))
    header = data.index(b"a" * LARGE) - 512
    claimed = bytearray(data[header : header + 512])
    claimed[124:136] = b"%011o\0" % (8 << 30)
    claimed[148:156] = b" " * 8
    claimed[148:156] = b"%06o\0 " % sum(claimed)
    image = image_of(data[:header] + bytes(claimed) + data[header + 512 :], 10_000)
    coming = come(image).take(in_order(image))
    assert coming.placed().parts == ()
    assert not coming.bodies.exists()


def test_where_no_holes_can_be_punched_all_is_in_the_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.placing.can_punch", lambda fd: False)
    image = image_of(random_archive(3), 10_000)
    coming = Coming(tmp_path / "a", image).take(in_order(image))
    assert coming.placer.placed() is None
    assert coming.blob.read_bytes() == image.data
    coming.close()
    assert place(coming.blob, coming.bodies, Limits()) is None
