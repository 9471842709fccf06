"""Small disks: what is mounted below a folder is found, and taken away whatever becomes of the run. Root's part is
skipped for others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.chaos import mounts

MOUNTINFO = """\
22 1 0:21 / / rw - ext4 /dev/root rw
31 22 0:30 / /f/nodes/r1c01 rw - tmpfs tmpfs rw
32 22 0:31 / /f/nodes/r1c01/deep rw - tmpfs tmpfs rw
33 22 0:32 / /f2/nodes/r1c02 rw - tmpfs tmpfs rw
34 22 0:33 / /f/a\\040b rw - tmpfs tmpfs rw
"""
ALONE = """
import os, sys
from pathlib import Path
from fabric.chaos import mounts
folder = Path(sys.argv[1])
assert mounts.leave() == ""
with mounts.guarded(folder):
    mounts.small(folder / "node", 1 << 20)
    assert os.path.ismount(folder / "node") and (folder / "node" / "kept").read_text() == "before"
    try:
        (folder / "node" / "large").write_bytes(bytes(2 << 20))
    except OSError as error:
        print(error.strerror)
    (folder / "node" / "large").unlink()
    mounts.read_only(folder / "node", True)
    try:
        (folder / "node" / "other").touch()
    except OSError as error:
        print(error.strerror)
    mounts.read_only(folder / "node", False)
    (folder / "node" / "other").touch()
print(os.path.ismount(folder / "node"), sorted(os.listdir(folder / "node")))
"""


def test_what_is_mounted_below_a_folder_is_found_the_innermost_first() -> None:
    assert mounts.below(Path("/f"), MOUNTINFO) == ["/f/nodes/r1c01/deep", "/f/nodes/r1c01", "/f/a b"]
    assert mounts.below(Path("/g"), MOUNTINFO) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="expected root, to mount a small disk, found another user")
def test_a_small_disk_keeps_what_was_there_can_be_full_and_read_only_and_goes_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "kept").write_text("before")
    ran = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "No space left on device", "Read-only file system", "False ['kept']",
    ]  # fmt: skip
    assert not os.path.ismount(tmp_path / "node"), "nobody else ever saw it"
