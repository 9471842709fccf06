"""Folders of managents: apart from each other, and within what a file system takes. Logs within their bound."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.stub.homes import Homes, bound_log, folder_name, old_of, tail_of

LONG = "/" + "/".join(["x" * 30] * 15)


def test_every_managent_has_a_folder_of_its_own() -> None:
    paths = ["/site", "/site/a", "/site/a/b", LONG, LONG[:-1] + "y"]
    names = {folder_name(path) for path in paths}
    assert len(names) == len(paths)
    assert folder_name("/site/rack3/node7") == "site+rack3+node7"
    assert all(len(os.fsencode(name)) < 240 and "/" not in name for name in names)


def test_a_log_that_grows_too_long_keeps_its_last_part_and_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"old\n" * 1000)
        bound_log(log, 4000)
        assert log.stat().st_size == 4000
        writer.write(b"new\n")
        bound_log(log, 4000)
        assert log.stat().st_size == 0
        assert old_of(log).read_bytes().endswith(b"old\nnew\n")
        assert old_of(log).stat().st_size == 2000
        writer.write(b"later\n")
    assert log.read_bytes() == b"later\n"


def test_a_log_is_bounded_also_where_the_disk_takes_no_copy(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * 5000)
    old_of(log).mkdir()  # so that the copy can't be made
    bound_log(log, 4000)
    assert log.stat().st_size == 0


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert tail_of(log, 3) == ()
    log.write_bytes(b"x" * 50_000 + b"\n\none\n\xff\n")
    assert tail_of(log, 2) == ("one", "\ufffd")


def test_removing_takes_everything_and_follows_no_link(tmp_path: Path) -> None:
    homes, outside = Homes(tmp_path / "stub"), tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "stub").mkdir()
    homes.make()
    deep = homes.work("/site/a") / "deep" / "er"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    (deep / "link").symlink_to(outside)
    deep.chmod(0)
    deep.parent.chmod(0o500)
    homes.work("/site/b").symlink_to(outside)
    for path in ("/site/a", "/site/b", "/site/nobody"):
        homes.remove(path)
    assert list(homes.managents.iterdir()) == []
    assert outside.stat().st_mode & 0o777 == 0o500
    (homes.managents / "site+old").mkdir()
    assert homes.strangers(["/site/a"]) == ["site+old"]
