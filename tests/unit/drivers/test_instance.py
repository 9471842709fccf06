"""The bounded log, the record on disk, and what errno says of an image."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fabric.drivers.base import Launch, Limits
from fabric.drivers.instance import LOG, OLD_LOG, RECORD, Instance, Log, read_log
from fabric.drivers.process import explain


def test_the_log_keeps_the_newest_within_its_bound(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 1000)
    lines = [f"line {number:03}\n".encode() for number in range(200)]
    for line in lines:
        log.write(line)
    assert sum((tmp_path / name).stat().st_size for name in (LOG, OLD_LOG)) <= 1000
    everything = b"".join(lines)
    for wanted in (1, 9, 450, 600):
        assert read_log(str(tmp_path), wanted) == everything[-wanted:]
    assert len(read_log(str(tmp_path), 5000)) > 500
    assert everything.endswith(read_log(str(tmp_path), 5000))
    os.close(log.fd)


def test_one_write_larger_than_the_log_leaves_its_end(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 1000)
    log.write(b"a" * 5000 + b"end")
    assert read_log(str(tmp_path), 3) == b"end"
    assert (tmp_path / LOG).stat().st_size <= 500
    os.close(log.fd)


def test_a_log_goes_on_over_attempts_but_its_tail_is_of_one(tmp_path: Path) -> None:
    for attempt, text in enumerate((b"first\n", b"second\n")):
        one = Instance(str(tmp_path), attempt)
        one.log = Log(str(tmp_path), 1000)
        one.log.write(text)
        one.ended(code=0)
        one.close()
        assert one.record["log_tail"] == text.decode().strip()
    assert read_log(str(tmp_path), 100) == b"first\nsecond\n"
    assert read_log(str(tmp_path / "nothing"), 100) == b""


def test_the_tail_is_ten_lines_and_survives_bytes_that_are_no_text(tmp_path: Path) -> None:
    one = Instance(str(tmp_path), 0)
    one.log = Log(str(tmp_path), 10_000)
    one.log.write(b"".join(b"%d \xff\n" % number for number in range(50)))
    one.ended(signal=9)
    one.close()
    assert one.record["log_tail"].splitlines() == [f"{number} �" for number in range(40, 50)]


@pytest.mark.parametrize("content", ["", "{", "[1]", "7"])
def test_a_record_that_cannot_be_read_is_one_that_never_ended(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    record = Instance.from_disk(str(tmp_path)).record
    assert (record["instance"], record["attempt"], record["ended"]) == (tmp_path.name, 0, False)


def test_a_record_comes_back_from_disk(tmp_path: Path) -> None:
    one = Instance(str(tmp_path), 7)
    one.ended(code=3)
    one.save()
    assert Instance.from_disk(str(tmp_path)).record == one.record == json.loads((tmp_path / RECORD).read_text())


def test_whose_fault_an_errno_is(tmp_path: Path) -> None:
    here = Launch("d-1.0", 0, tmp_path / "run", tmp_path, {}, Limits(1, 1))
    gone = Launch("d-1.0", 0, tmp_path / "x" / "run", tmp_path / "x", {}, Limits(1, 1))
    assert explain(here, errno.ENOENT, "exec").blame == "image"
    assert explain(here, errno.ENOEXEC, "exec").blame == "image"
    for number, step in ((errno.ENOMEM, "exec"), (errno.EAGAIN, "prepare"), (errno.ENOSPC, "prepare")):
        assert explain(here, number, step).blame == "node"
    missing = explain(gone, errno.ENOENT, "exec")
    assert missing.blame == "node"
    assert str(gone.root) in missing.reason
