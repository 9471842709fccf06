"""What an image may be: the same answer while it is uploaded and while it is unpacked, and nothing outside of its
folder.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric.images.archive import ENTRYPOINT, Checker, Prepared, is_program, remove_tree, unpack
from fabric.images.errors import BadImage, UnpacksTooLarge
from fabric.images.tarwalk import MAX_EXTENDED_BYTES, Limits

SCRIPT = b"#!/bin/sh\necho hello\n"


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=target)


START = member(ENTRYPOINT, SCRIPT, mode=0o755)


def tar_of(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def check(data: bytes, piece: int = 1000, limits: Limits | None = None) -> None:
    checker = Checker(limits)
    for at in range(0, len(data), piece):
        checker.feed(data[at : at + piece])
    checker.finish()


def unpacked(data: bytes, directory: Path, limits: Limits | None = None) -> Prepared:
    blob = directory / "blob"
    blob.unlink(missing_ok=True)
    blob.write_bytes(data)
    return unpack(blob, directory / "root", limits=limits)[0]


def refusal(data: bytes, directory: Path, limits: Limits | None = None) -> str:
    """What a check and an unpacking say of bad data, which has to be the same, plain and compressed; nothing may be
    left.
    """
    with pytest.raises(BadImage) as refused:
        check(data, limits=limits)
    with pytest.raises(BadImage) as again:
        unpacked(data, directory, limits)
    assert str(again.value) == str(refused.value)
    with pytest.raises(BadImage):
        unpacked(gzip.compress(data, 1), directory, limits)
    assert os.listdir(directory) == ["blob"]
    return str(refused.value)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
@pytest.mark.parametrize("piece", [1, 513, 1 << 20])
def test_what_is_packed_comes_out(tmp_path: Path, format: int, pack: type[bytes], piece: int) -> None:
    content = os.urandom(70_000)
    deep = "/".join(["folder" * 5] * 3)
    data = pack(
        tar_of(
            member("./", type=tarfile.DIRTYPE, mode=0o700),
            member("./" + ENTRYPOINT, SCRIPT, mode=0o6777),
            member("bin/data", content, mode=0o622),
            member(f"{deep}/ümlaut", b"x"),
            member("empty", type=tarfile.REGTYPE),
            member("folder/", type=tarfile.DIRTYPE),
            member("folder", type=tarfile.DIRTYPE),
            link("bin/up", "../empty"),
            link("bin/same", "data", tarfile.SYMTYPE),
            link("hard", "./bin/data", tarfile.LNKTYPE),
            format=format,
        )
    )
    check(data, piece)
    prepared = unpacked(data, tmp_path)
    root = prepared.root
    assert prepared.entrypoint == root / ENTRYPOINT
    assert subprocess.run([prepared.entrypoint], capture_output=True, check=True).stdout == b"hello\n"
    assert (
        (root / "bin/data").read_bytes() == (root / "hard").read_bytes() == (root / "bin/same").read_bytes() == content
    )
    assert (root / "bin/data").stat().st_ino == (root / "hard").stat().st_ino
    assert (root / deep / "ümlaut").read_bytes() == b"x"
    assert (root / "bin/up").resolve() == (root / "empty").resolve()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert modes == {0o555, 0o444}
    assert stat.S_IMODE(prepared.entrypoint.stat().st_mode) == 0o555
    remove_tree(root)
    assert not root.exists()


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar here")
@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=v7"], ["-z"], ["-J"]], ids=" ".join)
def test_what_the_tar_of_the_system_packs_comes_out(tmp_path: Path, options: list[str]) -> None:
    source = tmp_path / "source"
    (source / "sub" / ("n" * 60)).mkdir(parents=True)
    (source / ENTRYPOINT).write_bytes(SCRIPT)
    (source / ENTRYPOINT).chmod(0o755)
    (source / "sub" / "data").write_bytes(os.urandom(100_000))
    (source / "link").symlink_to("sub/data")
    os.link(source / "sub/data", source / "zz")
    if "--format=v7" not in options:
        (source / "sub" / ("n" * 60) / ("long" * 40)).write_bytes(b"long")
    squeeze = lzma.compress if options == ["-J"] else bytes  # tar would need a program that minimal systems lack
    given = [] if options == ["-J"] else options
    plain = subprocess.run(["tar", "-c", *given, "-C", source, "."], stdout=subprocess.PIPE, check=True).stdout
    packed = squeeze(plain)
    check(packed)
    prepared = unpacked(packed, tmp_path)
    for path in source.rglob("*"):
        if path.is_file():
            assert (prepared.root / path.relative_to(source)).read_bytes() == path.read_bytes()
    remove_tree(prepared.root)


@pytest.mark.parametrize("data", [SCRIPT, b"\x7fELF" + bytes(100), b"#!x"])
def test_one_executable_is_an_image(tmp_path: Path, data: bytes) -> None:
    assert is_program(data)
    for piece in (1, 100):
        check(data, piece)
    prepared = unpacked(data, tmp_path)
    assert prepared.entrypoint.read_bytes() == data
    assert stat.S_IMODE(prepared.entrypoint.stat().st_mode) == 0o555
    assert prepared.entrypoint.stat().st_ino == (tmp_path / "blob").stat().st_ino


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([member("/etc/passwd", b"x")], "member '/etc/passwd': expected a relative path, found an absolute one"),
        ([member("../x", b"x")], "member '../x': expected a path inside of the archive, found '..'"),
        ([member("a/../../x", b"x")], "expected a path inside of the archive"),
        ([link("l", "/etc")], "member 'l': expected a link with a relative target, found '/etc'"),
        ([link("l", "..")], "member 'l': expected a link to a place inside of the archive"),
        ([link("a/b/l", "../../../x")], "member 'a/b/l': expected a link to a place inside"),
        ([link("a/l", "b/../../c")], "with '..' only at its start"),
        ([link("l", "")], "expected a link with a relative target"),
        ([link("h", "/etc/passwd", tarfile.LNKTYPE)], "'/etc/passwd': expected a relative path"),
        ([link("h", "../x", tarfile.LNKTYPE)], "'../x': expected a path inside"),
        ([link("h", "later", tarfile.LNKTYPE), member("later")], "member 'h': expected a hard link to an earlier"),
        ([link("l", ENTRYPOINT), link("h", "l", tarfile.LNKTYPE)], "member 'h': expected a hard link to an earlier"),
        ([link("l", "d"), member("l/x", b"x")], "member 'l/x': expected 'l' to be a folder, found a symlink"),
        ([member("f", b"x"), member("f/x", b"x")], "member 'f/x': expected 'f' to be a folder, found a file"),
        ([member("f", b"x"), member("./f", b"y")], "member 'f': expected each path once"),
        ([member("f", b"x"), member("f", type=tarfile.DIRTYPE)], "member 'f': expected each path once"),
        ([member("d/f", b"x"), member("d", b"x")], "member 'd': expected each path once"),
        ([member("dev", type=tarfile.CHRTYPE)], "member 'dev': expected files, folders and links, found a device"),
        ([member("dev", type=tarfile.BLKTYPE)], "found a device"),
        ([member("pipe", type=tarfile.FIFOTYPE)], "member 'pipe': expected files, folders and links, found a pipe"),
        ([member("odd", type=b"V")], "member 'odd': expected files, folders and links, found a member of type"),
        ([member("x" * 300, b"x")], "expected file names of at most 255 bytes"),
        ([member("/".join(["x" * 99] * 11), b"x")], "expected a path of at most 1024 bytes, found 1099"),
        ([member("\udcff", b"x")], "expected a name in UTF-8"),
        ([member(".", b"x")], "expected a file with a name"),
    ],
)
def test_bad_members_are_named(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], message: str) -> None:
    assert message in refusal(tar_of(START, *members), tmp_path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "expected an executable file 'entrypoint' at the root of the archive, found none"),
        ([member("app/entrypoint", SCRIPT, mode=0o755)], "found none, but 'app/entrypoint': pack the inside"),
        ([member(ENTRYPOINT, SCRIPT, mode=0o644)], "expected an executable file, found one without execute permission"),
        ([member("run", mode=0o755), link(ENTRYPOINT, "run")], "expected an executable regular file, found a symlink"),
        ([member(ENTRYPOINT, type=tarfile.DIRTYPE)], "expected an executable regular file, found a folder"),
    ],
)
def test_an_archive_has_something_to_start(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]], message: str
) -> None:
    assert message in refusal(tar_of(*members), tmp_path)


def test_a_hard_link_to_a_program_can_be_started(tmp_path: Path) -> None:
    data = tar_of(member("app", SCRIPT, mode=0o755), link(ENTRYPOINT, "app", tarfile.LNKTYPE))
    check(data)
    assert unpacked(data, tmp_path).entrypoint.read_bytes() == SCRIPT
    remove_tree(tmp_path / "root")


def test_bounds_are_kept(tmp_path: Path) -> None:
    many = tar_of(START, *(member(f"f{n}") for n in range(20)))
    assert "at most 20 members" in refusal(many, tmp_path, Limits(members=20))
    check(many, limits=Limits(members=21))
    implied = tar_of(START, member("/".join("abcdefgh") + "/x"))
    assert "at most 8 members" in refusal(implied, tmp_path, Limits(members=8))
    folders = tar_of(START, *(member("again", type=tarfile.DIRTYPE) for n in range(20)))
    assert "more headers than these can have" in refusal(folders, tmp_path, Limits(members=4))
    large = tar_of(START, member("a", bytes(1000)), member("b", bytes(1000)))
    assert "expected at most 2000 bytes of contents, found 2021" in refusal(
        large, tmp_path, Limits(unpacked_bytes=2000)
    )
    with pytest.raises(UnpacksTooLarge):
        check(large, limits=Limits(unpacked_bytes=2000))
    names = tar_of(START, *(member(f"{n}" * 50) for n in range(5)))
    assert "expected paths of 200 bytes in all" in refusal(names, tmp_path, Limits(all_path_bytes=200))


def test_a_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, MAX_EXTENDED_BYTES + 1
    data = info.tobuf(tarfile.USTAR_FORMAT) + bytes(MAX_EXTENDED_BYTES + 512)
    assert "expected an extended header of at most" in refusal(data, tmp_path)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (b"18 path=\xff\xff\xff/etc\n", "UTF-8"),
        (b"20 path=/etc/passwd\n", "expected a relative path"),
        (b"16 path=../../x\n", "inside of the archive"),
        (b"12 size=abc\n", "expected a size in its pax header"),
        (b"11 size=-1\n", "expected a size in its pax header"),
        (b"99 path=x\n", "expected pax records"),
        (b"0 path=x\n", "expected pax records"),
        (b"9 path=x\nrubbish", "expected pax records"),
        (b"23 GNU.sparse.name=abc\n", "pack it without --sparse"),
        (b"12 path=a\0b\n", "zero byte"),
    ],
)
def test_pax_headers_are_read_strictly(tmp_path: Path, records: bytes, message: str) -> None:
    if records.startswith(b"18"):
        records = b"%d path=\xff\xff\xff/etc\n" % len(b"18 path=\xff\xff\xff/etc\n")
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    header = info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    assert message in refusal(header + tar_of(START), tmp_path)


def test_a_global_pax_header_may_comment_but_not_rename(tmp_path: Path) -> None:
    def with_global(records: bytes) -> bytes:
        info = tarfile.TarInfo("pax")
        info.type, info.size = tarfile.XGLTYPE, len(records)
        return info.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0") + tar_of(START)

    check(with_global(b"15 comment=abc\n"))
    assert "found ['path'] in a global one" in refusal(with_global(b"9 path=x\n"), tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a tar archive (plain, gzip or xz) or one executable"),
        (b"hello", "found data that begins with b'hello'"),
        (b"PK\x03\x04" + bytes(1000), "found a zip archive"),
        (bz2.compress(tar_of(START)), "found bzip2 data"),
        (b"\x28\xb5\x2f\xfd" + bytes(1000), "found zstd data"),
        (b"<html><body>502 Bad Gateway</body></html>" * 20, "found markup"),
        (os.urandom(600).replace(b"#!", b"xx"), "expected a tar archive"),
        (b"\x7fEL", "expected a tar archive"),
    ],
)
def test_neither_tar_nor_executable(tmp_path: Path, data: bytes, message: str) -> None:
    assert message in refusal(data, tmp_path)


def test_compressed_rubbish_is_refused(tmp_path: Path) -> None:
    for data in (gzip.compress(b"hello" * 200), lzma.compress(b"hello" * 200), gzip.compress(SCRIPT)):
        assert "expected compressed data of a tar archive" in refusal_of_compressed(data, tmp_path)
    good = tar_of(START, member("data", os.urandom(5000)))
    for data, message in (
        (gzip.compress(good)[:-3000], "gzip data, found the end of the input"),
        (lzma.compress(good)[:-3000], "xz data, found the end of the input"),
        (b"\x1f\x8b\x08" + bytes(100), "found it damaged"),
        (b"\xfd7zXZ\x00" + b"x" * 100, "expected xz data"),
    ):
        assert message in refusal_of_compressed(data, tmp_path)


def refusal_of_compressed(data: bytes, directory: Path) -> str:
    with pytest.raises(BadImage) as refused:
        check(data)
    with pytest.raises(BadImage):
        unpacked(data, directory)
    assert os.listdir(directory) == ["blob"]
    return str(refused.value)


def test_an_xz_stream_that_wants_much_memory_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 512 << 20, "preset": 0}]
    compressor = lzma.LZMACompressor(filters=filters)
    data = compressor.compress(tar_of(START)) + compressor.flush()
    assert "unpacks in" in refusal_of_compressed(data, tmp_path)


def test_a_bomb_is_found_at_its_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("bomb")
    info.size = 1 << 40
    data = gzip.compress(tar_of(START)[:1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(50 << 20), 1)
    assert "bytes of contents, found" in refusal_of_compressed(data, tmp_path)


@pytest.mark.parametrize("cut", [100, 511, 512, 700, 1024, 1500, 2047])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    data = tar_of(START, member("data", b"x" * 600))
    message = refusal(data[:cut], tmp_path)
    assert "cut off" in message or (cut < 512 and "expected a tar archive" in message)


def test_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    data = bytearray(tar_of(START, member("data", b"x" * 600)))
    data[1024 + 10] ^= 1
    assert "header 2: expected that of a tar member, found bad checksum" in refusal(bytes(data), tmp_path)


def test_several_compressed_members_are_one_archive(tmp_path: Path) -> None:
    data = tar_of(START, member("data", b"x" * 600))
    for pack in (gzip.compress, lzma.compress):
        parts = pack(data[:700]) + pack(data[700:])
        check(parts, 1)
        assert (unpacked(parts, tmp_path).root / "data").read_bytes() == b"x" * 600
        remove_tree(tmp_path / "root")


def test_without_kernel_copies_between_file_systems_it_is_sent(tmp_path: Path) -> None:
    """A blob on another file system than the cache: copy_file_range may refuse, sendfile does it."""
    other = Path("/dev/shm") if os.path.isdir("/dev/shm") else tmp_path
    content = os.urandom(3_000_000)
    blob = other / f"images-{os.getpid()}-{threading.get_ident()}.tar"
    try:
        blob.write_bytes(tar_of(START, member("data", content)))
        assert (unpack(blob, tmp_path / "root")[0].root / "data").read_bytes() == content
    finally:
        blob.unlink(missing_ok=True)
        remove_tree(tmp_path / "root")


def test_room_is_asked_before_each_file(tmp_path: Path) -> None:
    told: list[int] = []

    def room(size: int) -> None:
        told.append(size)
        if sum(told) > 30_000:
            raise MemoryError("no more room")

    blob = tmp_path / "blob"
    blob.write_bytes(tar_of(START, member("a/b/c", bytes(5000)), member("d", bytes(50_000))))
    with pytest.raises(MemoryError):
        unpack(blob, tmp_path / "root", room=room)
    assert told == [4096, 4 * 4096, 13 * 4096]
    assert os.listdir(tmp_path) == ["blob"]


Names = st.one_of(
    st.text(alphabet="ab./", max_size=12),
    st.lists(st.sampled_from(["..", ".", "a", "b", "entrypoint", ""]), max_size=6).map("/".join),
    st.text(max_size=20),
)


def leads_nowhere(path: Path) -> bool:
    """A link in a circle, as the system has it; `realpath` makes up a place for some of these."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


@settings(max_examples=100, deadline=None)
@example(entries=[("a", b"2", "a//", 0)], format=tarfile.PAX_FORMAT)
@given(
    entries=st.lists(
        st.tuples(Names, st.sampled_from([b"0", b"0", b"1", b"2", b"2", b"5", b"7"]), Names, st.integers(0, 600)),
        max_size=12,
    ),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_whatever_the_names_nothing_is_outside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str, int]], format: int
) -> None:
    directory = tmp_path_factory.mktemp("names")
    data = tar_of(
        START,
        *(
            member(name, bytes(size if kind in (b"0", b"7") else 0), type=kind, linkname=target)
            for name, kind, target, size in entries
        ),
        format=format,
    )
    try:
        check(data)
    except BadImage:
        refusal(data, directory)
        return
    prepared = unpacked(data, directory)
    assert sorted(os.listdir(directory)) == ["blob", "root"]
    inside = os.path.realpath(prepared.root)
    for path in prepared.root.rglob("*"):
        if path.is_symlink() and not leads_nowhere(path):
            assert (os.path.realpath(path) + "/").startswith(inside + "/")
    remove_tree(prepared.root)


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0),
    byte=st.integers(0, 255),
    piece=st.integers(1, 3000),
    pack=st.sampled_from([bytes, gzip.compress]),
)
def test_damage_raises_nothing_but_bad_image(position: int, byte: int, piece: int, pack: type[bytes]) -> None:
    archive = tar_of(START, member("d/data", bytes(700)), link("l", "d/data"), format=tarfile.PAX_FORMAT)
    data = bytearray(pack(archive[:3072] + archive[-1024:]))
    data[position % len(data)] = byte
    with suppress(BadImage):
        check(bytes(data), piece)
